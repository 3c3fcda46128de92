package capture

import (
	"crypto/tls"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// isGREASE reports whether a value is one of those that mean nothing (RFC 8701).
func isGREASE(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

func versionName(v uint16) string {
	if isGREASE(v) {
		return "GREASE"
	}
	return tls.VersionName(v)
}

// suiteName returns the name of a cipher suite: those that crypto/tls knows, and those
// that small TLS libraries offer besides.
func suiteName(v uint16) string {
	if isGREASE(v) {
		return "GREASE"
	}
	if name := tls.CipherSuiteName(v); !strings.HasPrefix(name, "0x") {
		return name
	}
	switch v {
	case 0x00ff:
		return "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"
	case 0x5600:
		return "TLS_FALLBACK_SCSV"
	case 0x1304:
		return "TLS_AES_128_CCM_SHA256"
	case 0x1305:
		return "TLS_AES_128_CCM_8_SHA256"
	case 0x0033:
		return "TLS_DHE_RSA_WITH_AES_128_CBC_SHA"
	case 0x0039:
		return "TLS_DHE_RSA_WITH_AES_256_CBC_SHA"
	case 0x003d:
		return "TLS_RSA_WITH_AES_256_CBC_SHA256"
	case 0x0067:
		return "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256"
	case 0x006b:
		return "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256"
	case 0x009e:
		return "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256"
	case 0x009f:
		return "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384"
	case 0x00a8:
		return "TLS_PSK_WITH_AES_128_GCM_SHA256"
	case 0xc024:
		return "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384"
	case 0xc028:
		return "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384"
	case 0xc0a8:
		return "TLS_PSK_WITH_AES_128_CCM_8"
	case 0xc0ac:
		return "TLS_ECDHE_ECDSA_WITH_AES_128_CCM"
	case 0xc0ad:
		return "TLS_ECDHE_ECDSA_WITH_AES_256_CCM"
	case 0xc0ae:
		return "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8"
	case 0xc0af:
		return "TLS_ECDHE_ECDSA_WITH_AES_256_CCM_8"
	case 0xccaa:
		return "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
	}
	return fmt.Sprintf("0x%04x", v)
}

// ephemeral reports whether a TLS 1.2 suite agrees on its key by elliptic curves.
func ephemeral(suite uint16) bool { return strings.Contains(suiteName(suite), "_ECDHE_") }

func groupName(g tls.CurveID) string {
	if isGREASE(uint16(g)) {
		return "GREASE"
	}
	switch g {
	case 19:
		return "P-192"
	case 21:
		return "P-224"
	case 22:
		return "secp256k1"
	case 26:
		return "brainpoolP256r1"
	case 27:
		return "brainpoolP384r1"
	case 28:
		return "brainpoolP512r1"
	case 30:
		return "X448"
	}
	if g >= 256 && g <= 260 {
		return fmt.Sprintf("ffdhe%d", []int{2048, 3072, 4096, 6144, 8192}[g-256])
	}
	return g.String()
}

func signatureName(s tls.SignatureScheme) string {
	if isGREASE(uint16(s)) {
		return "GREASE"
	}
	switch s {
	case 0x0202:
		return "DSAWithSHA1"
	case 0x0301:
		return "PKCS1WithSHA224"
	case 0x0302:
		return "DSAWithSHA224"
	case 0x0303:
		return "ECDSAWithSHA224"
	case 0x0402:
		return "DSAWithSHA256"
	case 0x0502:
		return "DSAWithSHA384"
	case 0x0602:
		return "DSAWithSHA512"
	case 0x0808:
		return "Ed448"
	case 0x0809, 0x080a, 0x080b:
		return fmt.Sprintf("PSSPSSWithSHA%d", []int{256, 384, 512}[s-0x0809])
	case 0x081a, 0x081b, 0x081c:
		return fmt.Sprintf("ECDSAWithBrainpoolP%dr1", []int{256, 384, 512}[s-0x081a])
	}
	return s.String()
}

// extensionName returns the IANA name of an extension.
func extensionName(v uint16) string {
	if isGREASE(v) {
		return "GREASE"
	}
	switch v {
	case extServerName:
		return "server_name"
	case 1:
		return "max_fragment_length"
	case 5:
		return "status_request"
	case extSupportedGroups:
		return "supported_groups"
	case 11:
		return "ec_point_formats"
	case extSignatureAlgorithms:
		return "signature_algorithms"
	case extALPN:
		return "application_layer_protocol_negotiation"
	case 18:
		return "signed_certificate_timestamp"
	case 21:
		return "padding"
	case 22:
		return "encrypt_then_mac"
	case 23:
		return "extended_master_secret"
	case 27:
		return "compress_certificate"
	case 28:
		return "record_size_limit"
	case extSessionTicket:
		return "session_ticket"
	case extPreSharedKey:
		return "pre_shared_key"
	case extEarlyData:
		return "early_data"
	case extSupportedVersions:
		return "supported_versions"
	case 44:
		return "cookie"
	case extPSKModes:
		return "psk_key_exchange_modes"
	case 47:
		return "certificate_authorities"
	case 49:
		return "post_handshake_auth"
	case 50:
		return "signature_algorithms_cert"
	case extKeyShare:
		return "key_share"
	case 54:
		return "connection_id"
	case 0xfe0d:
		return "encrypted_client_hello"
	case 0xff01:
		return "renegotiation_info"
	}
	return fmt.Sprintf("extension %d", v)
}

func messageName(v uint8) string {
	switch v {
	case helloRequest:
		return "HelloRequest"
	case clientHelloType:
		return "ClientHello"
	case serverHelloType:
		return "ServerHello"
	case newSessionTicket:
		return "NewSessionTicket"
	case certificateType:
		return "Certificate"
	case serverKeyExchange:
		return "ServerKeyExchange"
	case certificateRequest:
		return "CertificateRequest"
	case serverHelloDone:
		return "ServerHelloDone"
	case certificateVerify:
		return "CertificateVerify"
	case clientKeyExchange:
		return "ClientKeyExchange"
	case 20:
		return "Finished"
	case 22:
		return "CertificateStatus"
	}
	return fmt.Sprintf("handshake message of type %d", v)
}

// certificateKind returns the name of a certificate type of RFC 5246 §7.4.4, RFC 8422 §5.5.
func certificateKind(v byte) string {
	switch v {
	case 1:
		return "rsa_sign"
	case 2:
		return "dss_sign"
	case 64:
		return "ecdsa_sign"
	}
	return fmt.Sprintf("type %d", v)
}

// printable keeps what a terminal shows as it is, and replaces what would steer it.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return utf8.RuneError
}
