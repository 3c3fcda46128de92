package why

import (
	"fmt"
	"time"
)

// words say of each reason what it means and what to do. What they leave open is in the
// event's detail. The reasons are those of packages mtls, admission, fleet, listener, broker and
// protocol, and of the server's renewals.
var words = map[Kind]map[string]string{
	Refused: {
		"no-certificate":       "it presented no certificate: enrol it at a station, or look whether its key and certificate are readable",
		"unknown-issuer":       "its certificate is of another issuer than those the hub trusts: `hub issuer list` shows these",
		"expired":              "its certificate has expired: renew it (device-agent renew) while renewal.grace lasts, else enrol it again",
		"not-yet-valid":        "its certificate begins later than now: the hub's clock is slow, or the clock of who issued it was fast",
		"wrong-usage":          "its certificate is not for TLS clients",
		"no-identity":          "its certificate names no device",
		"trust-domain":         "its certificate is of another fleet",
		"wrong-role":           "its certificate is of a role that has no business at this door",
		"bad-chain":            "its certificate doesn't chain to a trusted root",
		"quarantined":          "it waits for approval, since it came before any manifest named it: `hub device approve`, or import the manifest of the station that made it",
		"quarantine-full":      "it is not registered, and too many others wait for approval: approve or revoke them (hub device list --select state=quarantined)",
		"device-budget":        "it is not registered, and its station has made as many devices as it may",
		"issuer-not-factory":   "it is not registered, and its certificate is a renewed one: restore the hub's backup, or enrol it again",
		"serial-taken":         "it is not registered, and its certificate's serial number is another device's",
		"unknown-device":       "it is not registered: import the manifest of the station that made it",
		"certificate-unknown":  "its certificate is not one that is registered for it: it was superseded, or belongs to an earlier enrolment or a copy",
		"key-protection":       "its model's keys must be in a TPM (key_protection in hub.yaml), and its certificate doesn't say so: let it renew with its TPM's word, or replace its certificate at a station",
		"suspended":            "it is suspended: `hub device resume` lifts that",
		"revoked":              "it is revoked, which is final: only `hub device reinstate` and a new certificate lead back",
		"not-admitted":         "its state lets nobody in",
		"client-identifier":    "its MQTT client identifier is not its ID: set it to the certificate's common name",
		"will-not-authorized":  "its last will is for a topic that policy denies it",
		"protocol-version":     "it speaks neither MQTT 3.1.1 nor 5.0",
		"auth-method":          "it asked for enhanced authentication: the certificate is the only one here",
		"first-packet":         "it began with something other than an MQTT CONNECT",
		"malformed-connect":    "its CONNECT is malformed or too large",
		"connect-timeout":      "it completed TLS and sent no CONNECT in time",
		"no-connect":           "it went away after TLS, before its CONNECT",
		"store-unavailable":    "the hub could not store its session: look at the hub's disk",
		"peer-alert":           "it refused the hub's certificate: its clock is wrong or its trust bundle is old",
		"handshake-timeout":    "it didn't complete its handshake in time: a slow line, or a processor that is busy",
		"handshake-aborted":    "it went away during the handshake",
		"handshake-failed":     "no common TLS version, suite or curve, or a malformed message",
		"handshake-too-large":  "it sent more than a handshake has",
		"hello-too-large":      "its ClientHello is too large",
		"chain-too-long":       "it presented more certificates than its own and its issuers'",
		"not-tls":              "it speaks no TLS",
		"too-many-connections": "the hub is full (mqtt.max_connections)",
		"address-limit":        "too many connections of its address have failed (mqtt.limits.address_*)",
		"issuer-limit":         "the devices of its issuer make too many full handshakes (mqtt.limits.issuer_*); it tries again by itself",
		"device-limit":         "it makes too many full handshakes (mqtt.limits.device_*): it keeps no TLS session, restarts all the time, or somebody has its key; it tries again by itself",
		"queue-full":           "the hub had too many handshakes waiting; it tries again by itself",
		"queue-timeout":        "the hub had too many handshakes waiting; it tries again by itself",
		"panic":                "an error of the hub's own: its log has more",
		"error":                "it was turned away",
	},
	NotRenewed: {
		"issuing-key": "the hub's issuing key is not at the hub: put ca/operational.key back for a while; it asks again by itself",
		"issuing-ca":  "the hub's issuing CA may not sign now: look whether it has expired, and at the hub's clock",
		"key":         "it asked for a certificate for the key it has: `device-agent renew` makes a new one",
		"rate":        "it renews too often: look at its clock and whether it can store what it gets",
		"expired":     "its certificate expired longer ago than renewal.grace: enrol it again, with `provisioning replace`",

		"key-protection":        "its model's keys must be in a TPM (key_protection in hub.yaml), and it sent one that no TPM vouches for: look why its agent doesn't use its TPM (device-agent status)",
		"other-tpm":             "the TPM that vouches for its new key is not the one it was enrolled with: another board, or another TPM on it",
		"tpm-malformed":         "what its TPM said of its new key can't be read",
		"tpm-untrusted-ek":      "its TPM's endorsement key is not one that this hub knows",
		"tpm-bad-ak":            "its TPM's attestation key is not restricted to what its TPM made",
		"tpm-bad-key":           "its new key could leave its TPM, or was not made there",
		"tpm-bad-certification": "what vouches for its new key was not signed by its TPM's attestation key",
		"tpm-wrong-statement":   "its TPM vouches for another request",
		"tpm-key-mismatch":      "its request is for another key than its TPM vouches for",
		"tpm-busy":              "too many of its challenges are open: it asks again in a minute",
		"tpm-unknown-challenge": "it answered a challenge that this hub doesn't know, after a restart perhaps: it asks again",
		"tpm-expired":           "it answered its challenge too late: it asks again",
		"tpm-answered":          "it answered its challenge a second time: a copy of its answer, or an answer that was lost",
		"tpm-mixed-up":          "it answered a challenge that was made for another request",
		"tpm-wrong-proof":       "the TPM that answered is not the one that vouched for the key",
		"tpm-relayed":           "its TPM answered on a connection to another server: the hub's certificate changed meanwhile, or somebody is in between",

		"superseded": "its certificate was superseded: it is to use the one that it renewed to",
		"retired":    "it is retired, which is final",
		"replaced":   "another device has taken its place",
	},
	Disconnected: {
		"disconnected":   "it said goodbye",
		"lost":           "the connection broke: the network, a restart, or a power cut",
		"keepalive":      "it was silent for one and a half keep-alive intervals",
		"taken-over":     "another connection with the same identity took its place: often a line that came back, or two boards with one key",
		"protocol":       "it broke the MQTT protocol or published what policy denies it in MQTT 3.1.1",
		"suspended":      "an operator suspended it",
		"revoked":        "an operator revoked it",
		"retired":        "an operator retired it",
		"replaced":       "another device took its place",
		"expired":        "its certificate expired while it was connected",
		"untrusted":      "the issuing CA of its certificate was removed",
		"key-protection": "its model's keys must be in a TPM since (key_protection in hub.yaml), and its certificate doesn't say so",
		"superseded":     "it was connected by a certificate that its renewed one has superseded",
		"hub-shut-down":  "the hub stopped",
	},
}

// Words says an event in words.
func (e Event) Words() string {
	text, known := words[e.Kind][e.Reason]
	if e.Kind == NotRenewed && !known { // who may not connect may not renew
		text, known = words[Refused][e.Reason]
	}
	switch {
	case e.Kind == Connected:
		text, known = "it connected", true
	case e.Kind == Denied:
		return "policy " + e.Reason + ": " + e.Detail
	case !known:
		text = e.Reason
	}
	if e.Detail != "" {
		text += " (" + e.Detail + ")"
	}
	return text
}

// Known reports whether there are words for a reason.
func Known(k Kind, reason string) bool {
	_, ok := words[k][reason]
	if !ok && k == NotRenewed {
		_, ok = words[Refused][reason]
	}
	return ok
}

// Skew says how far a device's clock is off, "" if it is not by much.
func Skew(device, hub time.Time) string {
	off := device.Sub(hub)
	if off.Abs() < time.Minute {
		return ""
	}
	side := "slow"
	if off > 0 {
		side = "fast"
	}
	return fmt.Sprintf("its clock is %s %s", Span(off.Abs()), side)
}

// Span writes a time of a minute or more as people say it.
func Span(d time.Duration) string {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if n := int((d + unit.d/2) / unit.d); d >= unit.d {
			if n == 1 {
				return "1 " + unit.name
			}
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}
	return "less than a minute"
}
