// Package manifest is the signed list of what a station issued: the station writes
// it, the hub reads it, and nothing else makes a device known to a hub.
//
// On the wire it is a JWS in compact serialization (RFC 7515), signed with ES256 by
// the station's issuing CA, whose chain travels in the x5c header. It is UTF-8 text
// in one line.
package manifest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/fleethub/fleethub/certs/identity"
)

// Version is the format this package writes and the only one it reads.
const Version = 1

// MaxSize bounds a manifest in bytes. A device takes about 1.2 kB, so this is some
// 50,000 devices; a larger batch is several manifests.
const MaxSize = 64 << 20

// mediaType is the JWS typ header: a signature made for something else by the same
// key is not a manifest (RFC 8725 §3.11).
const mediaType = "fleethub-manifest+jws"

// ErrInvalid is in the chain of every error about a manifest's contents or signature.
var ErrInvalid = errors.New("manifest not accepted")

// Manifest is one numbered list of a station.
type Manifest struct {
	Version     int       `json:"version"`
	TrustDomain string    `json:"trust_domain"`
	Station     string    `json:"station"`
	Number      uint64    `json:"number"` // counts from 1 per station, without gaps
	CreatedAt   time.Time `json:"created_at"`
	Devices     []Entry   `json:"devices"`
}

// Entry is one device. Everything about it that the certificate says (ID, serial
// number, OU, validity) is read from the certificate.
type Entry struct {
	Certificate []byte            `json:"certificate"` // the leaf's DER
	Model       string            `json:"model,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Protection  string            `json:"protection,omitempty"` // of the key: "software", or "tpm" if the certificate says so, too
	Supersedes  string            `json:"supersedes,omitempty"` // serial number this certificate replaces

	// EK is the SHA-256 of the endorsement key of the board's TPM, in lower-case hex, and
	// tells that board from all others. Without a TPM it isn't there, and the manifest is
	// one that hubs read which know nothing of it.
	EK string `json:"ek,omitempty"`
}

// Sign returns the manifest signed by key, the key of chain[0], the station's issuing
// CA. The root may be left out of chain.
func Sign(m Manifest, chain []*x509.Certificate, key crypto.Signer) ([]byte, error) {
	if len(chain) == 0 {
		return nil, errors.New("sign manifest: no issuer certificate")
	}
	algorithm, err := algorithmFor(chain[0])
	if err != nil {
		return nil, err
	}
	m.Version = Version
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest %d: %w", m.Number, err)
	}
	var x5c [][]byte
	for _, c := range chain {
		x5c = append(x5c, c.Raw)
	}
	options := (&jose.SignerOptions{}).WithType(mediaType).WithHeader("x5c", x5c)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: cryptosigner.Opaque(key)}, options)
	if err != nil {
		return nil, fmt.Errorf("sign manifest %d: %w", m.Number, err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("sign manifest %d: %w", m.Number, err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("sign manifest %d: %w", m.Number, err)
	}
	if len(text) >= MaxSize {
		return nil, fmt.Errorf("manifest %d has %d bytes, at most %d are accepted; write manifests more often", m.Number, len(text), MaxSize)
	}
	return append([]byte(text), '\n'), nil
}

// Open verifies a manifest and returns it with the factory issuer that signed it. The
// issuer must be a factory CA signed by one of roots, valid at now, and named as the
// station the manifest names. The entries' certificates are as the station wrote them:
// the caller holds each against the issuer, and the trust domain against its own.
func Open(data []byte, roots []*x509.Certificate, now time.Time) (Manifest, *x509.Certificate, error) {
	var none Manifest
	if len(data) > MaxSize {
		return none, nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(data), MaxSize)
	}
	signed, err := jose.ParseSignedCompact(string(bytes.TrimSpace(data)), []jose.SignatureAlgorithm{jose.ES256, jose.ES384})
	if err != nil {
		return none, nil, fmt.Errorf("%w: it is not a signed manifest, or is cut short (%.160w)", ErrInvalid, err) // err quotes whole headers
	}
	header := signed.Signatures[0].Protected
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != mediaType {
		return none, nil, fmt.Errorf("%w: it is a signed %.40q, not a manifest", ErrInvalid, typ)
	}
	issuer, err := verifyIssuer(header, roots, now)
	if err != nil {
		return none, nil, err
	}
	if want, err := algorithmFor(issuer); err != nil || header.Algorithm != string(want) {
		return none, nil, fmt.Errorf("%w: its signature algorithm %s does not fit the issuer's key", ErrInvalid, header.Algorithm)
	}
	payload, err := signed.Verify(issuer.PublicKey)
	if err != nil {
		return none, nil, fmt.Errorf("%w: the signature is not by %q; it was changed after signing", ErrInvalid, issuer.Subject.CommonName)
	}
	m, err := decode(payload)
	if err != nil {
		return none, nil, err
	}
	if m.Station != issuer.Subject.CommonName {
		return none, nil, fmt.Errorf("%w: it names station %.80q but is signed by %q", ErrInvalid, m.Station, issuer.Subject.CommonName)
	}
	return m, issuer, nil
}

func decode(payload []byte) (Manifest, error) {
	m, err := parse(payload)
	if err != nil {
		return m, fmt.Errorf("%w: its contents are malformed: %.160w", ErrInvalid, err)
	}
	if m.Version != Version {
		return m, fmt.Errorf("%w: it has format version %d, this hub reads %d", ErrInvalid, m.Version, Version)
	}
	if m.Number == 0 {
		return m, fmt.Errorf("%w: it has no number", ErrInvalid)
	}
	return m, nil
}

func verifyIssuer(header jose.Header, roots []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	// No intermediates: x5c brings only the issuer, which a root itself must have signed. Through an intermediate an issuing
	// CA could bring another of its own making, and path length 0 wouldn't hold it back: the last certificate doesn't count.
	chains, err := header.Certificates(x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("%w: the station's issuing CA is not signed by this hub's root, or not valid now: %w", ErrInvalid, err)
	}
	issuer := chains[0][0]
	kind, err := identity.KindOf(issuer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if kind != identity.KindFactory {
		return nil, fmt.Errorf("%w: it is signed by the %s %q, a factory issuing CA is required", ErrInvalid, kind, issuer.Subject.CommonName)
	}
	return issuer, nil
}

func algorithmFor(issuer *x509.Certificate) (jose.SignatureAlgorithm, error) {
	if key, ok := issuer.PublicKey.(*ecdsa.PublicKey); ok {
		switch key.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		}
	}
	return "", fmt.Errorf("%w: the key of %q is not ECDSA on P-256 or P-384", ErrInvalid, issuer.Subject.CommonName)
}
