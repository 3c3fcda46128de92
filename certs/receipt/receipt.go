// Package receipt signs what a hub did and says about it, so that it can be shown to
// others: a revocation's receipt is a JWS (RFC 7515) in compact serialization, ES256,
// with the signer's certificate in the x5c header. It is UTF-8 text in one line.
//
// The signer is the hub's operational issuing CA or, where its key is kept elsewhere,
// the hub's own server certificate. Whoever has the fleet's root can verify either
// offline.
package receipt

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

// MaxSize bounds a receipt in bytes: 10,000 devices take some 3 MB.
const MaxSize = 16 << 20

// mediaType is the JWS typ header: a signature made for something else by the same
// key is not a receipt (RFC 8725 §3.11).
const mediaType = "fleethub-receipt+jws"

// ErrInvalid is in the chain of every error about a receipt that isn't what it should
// be.
var ErrInvalid = errors.New("receipt not accepted")

// Sign returns the payload, JSON with a member signed_at (RFC 3339), signed by key, the
// key of chain[0]. What lies between chain[0] and the root belongs into chain, the root
// may be left out.
func Sign(payload []byte, chain []*x509.Certificate, key crypto.Signer) ([]byte, error) {
	if len(chain) == 0 {
		return nil, errors.New("sign receipt: no certificate of the signer")
	}
	algorithm, err := algorithmFor(chain[0])
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	if _, err := signedAt(payload); err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	var x5c [][]byte
	for _, c := range chain {
		x5c = append(x5c, c.Raw)
	}
	options := (&jose.SignerOptions{}).WithType(mediaType).WithHeader("x5c", x5c)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: cryptosigner.Opaque(key)}, options)
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	if len(text) >= MaxSize {
		return nil, fmt.Errorf("sign receipt: it has %d bytes, at most %d are read", len(text), MaxSize)
	}
	return append([]byte(text), '\n'), nil
}

// Open verifies a receipt and returns its payload and who signed it: a hub of this
// fleet, whose certificate leads to one of roots and was valid when the receipt says
// that it was signed. What else is among roots, such as the issuing CA in a trust bundle,
// is passed over. It is good for longer than the signer's certificate is; whoever
// has a hub's old key can therefore make receipts of its time.
func Open(data []byte, roots []*x509.Certificate) (payload []byte, signer *x509.Certificate, err error) {
	signed, err := parse(data)
	if err != nil {
		return nil, nil, err
	}
	header := signed.Signatures[0].Protected
	claimed := signed.UnsafePayloadWithoutVerification()
	at, err := signedAt(claimed)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if signer, err = verifySigner(header, roots, at); err != nil {
		return nil, nil, err
	}
	if want, err := algorithmFor(signer); err != nil || header.Algorithm != string(want) {
		return nil, nil, fmt.Errorf("%w: its signature algorithm %s does not fit the signer's key", ErrInvalid, header.Algorithm)
	}
	if payload, err = signed.Verify(signer.PublicKey); err != nil {
		return nil, nil, fmt.Errorf("%w: the signature is not by %q; it was changed after signing", ErrInvalid, signer.Subject.CommonName)
	}
	return payload, signer, nil
}

// Payload returns what a receipt says without looking at its signature: for whoever
// made it.
func Payload(data []byte) ([]byte, error) {
	signed, err := parse(data)
	if err != nil {
		return nil, err
	}
	return signed.UnsafePayloadWithoutVerification(), nil
}

func parse(data []byte) (*jose.JSONWebSignature, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrInvalid, len(data), MaxSize)
	}
	signed, err := jose.ParseSignedCompact(string(bytes.TrimSpace(data)), []jose.SignatureAlgorithm{jose.ES256, jose.ES384})
	if err != nil {
		return nil, fmt.Errorf("%w: it is not a signed receipt, or is cut short (%.160w)", ErrInvalid, err)
	}
	if typ, _ := signed.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string); typ != mediaType {
		return nil, fmt.Errorf("%w: it is a signed %.40q, not a receipt", ErrInvalid, typ)
	}
	return signed, nil
}

func signedAt(payload []byte) (time.Time, error) {
	var head struct {
		SignedAt time.Time `json:"signed_at"`
	}
	if err := json.Unmarshal(payload, &head); err != nil {
		return time.Time{}, fmt.Errorf("its contents are malformed: %.160w", err)
	}
	if head.SignedAt.IsZero() {
		return time.Time{}, errors.New("it doesn't say when it was signed")
	}
	return head.SignedAt, nil
}

// verifySigner leads the signer's certificate to a root, by way of what else the
// receipt brings, and holds it to be a hub's.
func verifySigner(header jose.Header, roots []*x509.Certificate, at time.Time) (*x509.Certificate, error) {
	pool := x509.NewCertPool()
	for _, r := range roots {
		if kind, err := identity.KindOf(r); err == nil && kind == identity.KindRoot {
			pool.AddCert(r)
		}
	}
	chains, err := header.Certificates(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("%w: its signer is not of this fleet, or was not when it says it signed: %w", ErrInvalid, err)
	}
	for _, chain := range chains {
		if hubChain(chain) {
			return chain[0], nil
		}
	}
	return nil, fmt.Errorf("%w: %q signed it, which is no hub and no issuing CA of one", ErrInvalid, chains[0][0].Subject.CommonName)
}

// hubChain reports whether a chain is a hub's operational issuing CA under a root, or a
// hub's certificate under such a CA.
func hubChain(chain []*x509.Certificate) bool {
	if !chain[0].IsCA {
		id, err := identity.FromCertificate(chain[0])
		if err != nil || id.Role != identity.RoleHub {
			return false
		}
		chain = chain[1:]
	}
	if len(chain) != 2 {
		return false
	}
	kind, err := identity.KindOf(chain[0])
	if err != nil || kind != identity.KindOperational {
		return false
	}
	kind, err = identity.KindOf(chain[1])
	return err == nil && kind == identity.KindRoot
}

func algorithmFor(signer *x509.Certificate) (jose.SignatureAlgorithm, error) {
	if key, ok := signer.PublicKey.(*ecdsa.PublicKey); ok {
		switch key.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		}
	}
	return "", fmt.Errorf("the key of %q is not ECDSA on P-256 or P-384", signer.Subject.CommonName)
}
