package est

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"

	"github.com/smallstep/pkcs7"
)

// lineLength is that of base64 in mail (RFC 2045 §6.8), which every decoder takes.
const lineLength = 76

// encodeBase64 returns base64 in lines.
func encodeBase64(der []byte) []byte {
	text := base64.StdEncoding.AppendEncode(nil, der)
	out := make([]byte, 0, len(text)+2*(len(text)/lineLength+1))
	for len(text) > 0 {
		n := min(lineLength, len(text))
		out = append(append(out, text[:n]...), '\r', '\n')
		text = text[n:]
	}
	return out
}

// decodeBase64 reads base64 with or without white space in it (RFC 8951 §3.1). Padding
// is required and nothing may follow it.
func decodeBase64(text []byte) ([]byte, error) {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("-----BEGIN")) {
		return nil, fmt.Errorf("%w: it is PEM, where base64 without its first and last line is required", ErrMalformed)
	}
	packed := make([]byte, 0, len(text))
	for _, c := range text {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			packed = append(packed, c)
		}
	}
	der, err := base64.StdEncoding.Strict().AppendDecode(nil, packed)
	if err != nil || len(der) == 0 {
		return nil, fmt.Errorf("%w: it is not base64 of anything", ErrMalformed)
	}
	return der, nil
}

// encodeCerts returns a certs-only CMS message, a SignedData that nobody signed (RFC
// 5652 §5, RFC 7030 §4.1.3).
func encodeCerts(certs ...*x509.Certificate) ([]byte, error) {
	var raw []byte
	for _, c := range certs {
		raw = append(raw, c.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("encode %d certificates: %w", len(certs), err)
	}
	return der, nil
}

// decodeCerts reads a certs-only CMS message of 1 to maxCerts certificates.
func decodeCerts(der []byte) ([]*x509.Certificate, error) {
	// The decoder of package pkcs7 takes BER too, and of nested BER, time that grows with
	// the square of its depth. All that is ours is DER.
	var whole asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &whole); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("%w: it is not one DER value", ErrMalformed)
	}
	message, err := pkcs7.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("%w: it is no CMS message of certificates", ErrMalformed)
	}
	if len(message.Signers) > 0 || len(message.Content) > 0 {
		return nil, fmt.Errorf("%w: the CMS message has more in it than certificates", ErrMalformed)
	}
	if n := len(message.Certificates); n == 0 || n > maxCerts {
		return nil, fmt.Errorf("%w: the CMS message has %d certificates, 1 to %d are read", ErrMalformed, n, maxCerts)
	}
	return message.Certificates, nil
}

// DefaultAttributes returns the answer to /csrattrs that asks for an ECDSA key on P-256
// and a signature with SHA-256 (RFC 8951 §3.2 has the grammar), in DER.
func DefaultAttributes() []byte {
	oid := func(arcs ...int) []byte {
		der, err := asn1.Marshal(asn1.ObjectIdentifier(arcs))
		if err != nil {
			panic(err) // it is one of the two below
		}
		return der
	}
	sequence := func(tag int, parts ...[]byte) []byte {
		der, err := asn1.Marshal(asn1.RawValue{Tag: tag, IsCompound: true, Bytes: bytes.Join(parts, nil)})
		if err != nil {
			panic(err) // it has no length that can't be encoded
		}
		return der
	}
	key := sequence(asn1.TagSequence, oid(1, 2, 840, 10045, 2, 1), sequence(asn1.TagSet, oid(1, 2, 840, 10045, 3, 1, 7)))
	return sequence(asn1.TagSequence, key, oid(1, 2, 840, 10045, 4, 3, 2))
}
