package capture

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// The alerts that are spoken of (RFC 8446 §6, RFC 5246 §7.2).
const (
	closeNotify           = 0
	handshakeFailure      = 40
	badCertificate        = 42
	unsupportedCert       = 43
	certificateRevoked    = 44
	certificateExpired    = 45
	certificateUnknown    = 46
	unknownCA             = 48
	accessDenied          = 49
	decryptError          = 51
	protocolVersion       = 70
	insufficientSecurity  = 71
	internalError         = 80
	inappropriateFallback = 86
	userCanceled          = 90
	unrecognizedName      = 112
	certificateRequired   = 116
	noApplicationProtocol = 120
)

// alertName returns the RFC's name of an alert and its number.
func alertName(code uint8) string {
	names := map[uint8]string{
		closeNotify: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 21: "decryption_failed", 22: "record_overflow",
		30: "decompression_failure", handshakeFailure: "handshake_failure", 41: "no_certificate", badCertificate: "bad_certificate",
		unsupportedCert: "unsupported_certificate", certificateRevoked: "certificate_revoked", certificateExpired: "certificate_expired",
		certificateUnknown: "certificate_unknown", 47: "illegal_parameter", unknownCA: "unknown_ca", accessDenied: "access_denied",
		50: "decode_error", decryptError: "decrypt_error", 60: "export_restriction", protocolVersion: "protocol_version",
		insufficientSecurity: "insufficient_security", internalError: "internal_error", inappropriateFallback: "inappropriate_fallback",
		userCanceled: "user_canceled", 100: "no_renegotiation", 109: "missing_extension", 110: "unsupported_extension",
		111: "certificate_unobtainable", unrecognizedName: "unrecognized_name", 113: "bad_certificate_status_response",
		114: "bad_certificate_hash_value", 115: "unknown_psk_identity", certificateRequired: "certificate_required",
		noApplicationProtocol: "no_application_protocol", 121: "ech_required",
	}
	if name, ok := names[code]; ok {
		return fmt.Sprintf("%s (%d)", name, code)
	}
	return fmt.Sprintf("of unknown number %d", code)
}

// meaning says in a sentence what an alert from that end probably means here, and what to
// do about it.
func (c *conversation) meaning(e *event) string {
	switch e.alert {
	case closeNotify:
		return "a normal end"
	case userCanceled:
		return "the program ended the handshake on purpose"
	case 10, 22, 47, 50, 109, 110:
		return "the other side's message isn't TLS as this side understands it: a bug of a TLS library, or something in between that changes bytes"
	case 20, 21:
		return "what arrived can't be decrypted: bytes were changed on the way, or the two sides don't have the same keys"
	case internalError:
		return fmt.Sprintf("the %s's own fault: its log says more", sideOf(e.end, c.client))
	case inappropriateFallback:
		return "the client fell back to an older version than both speak: it retried after a connection that broke"
	}
	if e.end == c.client {
		return c.clientMeans(e)
	}
	return c.serverMeans(e)
}

// clientMeans explains an alert by which the client refuses the server.
func (c *conversation) clientMeans(e *event) string {
	shown := c.certificates[1-c.client]
	switch e.alert {
	case certificateExpired:
		return "for the client, the server's certificate is out of its validity: renew it, or set the board's clock, which may have begun in 1970 (date on the board)" + c.serverValidity(e.at)
	case unknownCA:
		return "the client doesn't trust the server's issuer: ca.crt on the device must hold this fleet's root (compare it with the hub's ca.crt)" + c.serverValidity(e.at)
	case badCertificate, certificateUnknown, unsupportedCert, certificateRevoked, accessDenied:
		if shown != nil && shown.leaf != nil && c.hello != nil && c.hello.serverName != "" && shown.leaf.VerifyHostname(c.hello.serverName) != nil {
			return fmt.Sprintf("the client refused the server's certificate, which is not made out to %s: dial a name that it has, or make a new one for this name", c.hello.serverName)
		}
		return "the client refused the server's certificate: another fleet's root in ca.crt on the device, a name or address that the certificate doesn't have, a certificate that is no hub's, or a board's clock that is wrong" + c.serverValidity(e.at)
	case decryptError:
		return "the server's signature doesn't fit its certificate: server.key and server.crt are not a pair, or somebody is in between"
	case protocolVersion, handshakeFailure, insufficientSecurity:
		return "the client doesn't take what the server chose: too old a version, or a suite or curve it doesn't have"
	}
	return "the client ended the handshake"
}

// serverMeans explains an alert by which the server refuses the client.
func (c *conversation) serverMeans(e *event) string {
	show := "`hub device show ID`"
	if shown := c.certificates[c.client]; shown != nil && shown.id.Role == identity.RoleDevice {
		show = "`hub device show " + text(shown.id.ID) + "`"
	}
	switch e.alert {
	case protocolVersion:
		offered := "an older version"
		if c.hello != nil {
			offered = "at most " + versionName(c.hello.newest())
		}
		return fmt.Sprintf("the client is too old: it offers %s, and a hub takes TLS 1.3 and 1.2 only; update its TLS library", offered)
	case handshakeFailure, insufficientSecurity:
		if c.showsNoCertificate() {
			return noCertificate
		}
		return c.nothingInCommon()
	case certificateRequired:
		return noCertificate
	case certificateExpired:
		return "the client's certificate is out of its validity" + c.clientValidity(e.at) + ": issue a new one, or set the hub's clock; " + show + " has the dates"
	case unknownCA:
		return "the server doesn't know the issuer of the client's certificate: a device of another fleet, or of a station this hub has not approved or has removed"
	case badCertificate, certificateUnknown, certificateRevoked, unsupportedCert, accessDenied:
		return "the server refused the client's certificate" + c.clientValidity(e.at) + ": revoked, suspended, expired, replaced by a newer one, not registered at this hub, or not of one of its issuers; " + show + " and the hub's log tell which"
	case decryptError:
		return "the client's signature doesn't fit its certificate: its key and certificate are not a pair; or its ticket is damaged"
	case unrecognizedName:
		return "the server doesn't go by the name that the client dialled"
	case noApplicationProtocol:
		offered := "what the client offers"
		if c.hello != nil && len(c.hello.protocols) > 0 {
			offered = strings.Join(c.hello.protocols, ", ")
		}
		return fmt.Sprintf("no common application protocol (ALPN): the server doesn't speak %s on this port; MQTT is on 8883, HTTPS on 8443", offered)
	}
	return "the server ended the handshake: its log says more"
}

const noCertificate = "the client showed no certificate, and a hub needs one: device.crt and device.key are not configured, not readable, or of a kind the server didn't ask for"

// showsNoCertificate reports whether the client was asked for a certificate and sent none.
func (c *conversation) showsNoCertificate() bool {
	shown := c.certificates[c.client]
	return shown != nil && shown.count == 0
}

func (c *conversation) clientValidity(at time.Time) string {
	if shown := c.certificates[c.client]; shown != nil && shown.leaf != nil && validity(shown.leaf, at) != "" {
		return " (valid " + shown.leaf.NotBefore.UTC().Format(time.DateTime) + " to " + shown.leaf.NotAfter.UTC().Format(time.DateTime) + ")"
	}
	return ""
}

func (c *conversation) serverValidity(at time.Time) string {
	if shown := c.certificates[1-c.client]; shown != nil && shown.leaf != nil && validity(shown.leaf, at) != "" {
		return "; the server's certificate was " + validity(shown.leaf, at)
	}
	return ""
}

// policy is what a hub takes, by default.
func policy() *tls.Config { return mtls.ServerConfig(mtls.ServerOptions{}) }

// nothingInCommon says what a ClientHello lacks to suit a hub, by the hub's own policy.
func (c *conversation) nothingInCommon() string {
	if c.hello == nil || c.server != nil && !c.server.retry {
		return "the two sides have no suite, curve or signature algorithm in common"
	}
	hub := policy()
	tls13 := slices.Contains(c.hello.versions, tls.VersionTLS13)
	var suites []string
	suits := func(suite uint16) bool {
		return slices.Contains(hub.CipherSuites, suite) || tls13 && suite >= tls.TLS_AES_128_GCM_SHA256 && suite <= tls.TLS_CHACHA20_POLY1305_SHA256
	}
	for _, s := range hub.CipherSuites {
		suites = append(suites, tls.CipherSuiteName(s))
	}
	if !slices.ContainsFunc(c.hello.suites, suits) {
		return "no common cipher suite: the client offers none that a hub takes, which are those of TLS 1.3 and " + strings.Join(suites, ", ")
	}
	var groups []string
	for _, g := range hub.CurvePreferences {
		groups = append(groups, g.String())
	}
	if !slices.ContainsFunc(c.hello.groups, func(g uint16) bool { return slices.Contains(hub.CurvePreferences, tls.CurveID(g)) }) {
		return "no common curve: the client offers none that a hub takes, which are " + strings.Join(groups, ", ")
	}
	if !slices.Contains(c.hello.schemes, uint16(tls.ECDSAWithP256AndSHA256)) {
		return "no common signature algorithm: the client doesn't take ECDSA with P-256, and a hub's certificate is of that kind"
	}
	return "the two sides have no suite, curve or signature algorithm in common, or the server has no certificate that suits the client"
}
