package issuance

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
)

// ErrKey is in the chain when a key isn't one we certify.
var ErrKey = errors.New("key not accepted")

// ErrRequest is in the chain when a certificate signing request isn't acceptable.
var ErrRequest = errors.New("certificate request not accepted")

// maxCSRSize bounds a request in bytes; ours have about 300.
const maxCSRSize = 16 << 10

// NewKey returns a fresh P-256 key.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewSerial returns a random positive serial number of 128 bits, the topmost bit
// clear and the next set: 126 bits of entropy, 16 octets always (RFC 5280 §4.1.2.2
// allows 20; CA/Browser Forum baseline §7.1 asks for 64 bits of entropy).
func NewSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("random serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// CheckKey returns nil if pub may be certified: ECDSA on P-256 or P-384, a valid
// point, and not a key that the world knows. All others are refused with ErrKey.
func CheckKey(pub crypto.PublicKey) error {
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: its type is %T, ECDSA on P-256 or P-384 is required", ErrKey, pub)
	}
	switch key.Curve {
	case elliptic.P256(), elliptic.P384():
	case nil:
		return fmt.Errorf("%w: it names no curve", ErrKey)
	default:
		return fmt.Errorf("%w: its curve is %s, P-256 or P-384 is required", ErrKey, key.Curve.Params().Name)
	}
	point, err := key.Bytes() // fails for a point off the curve or at infinity
	if err != nil {
		return fmt.Errorf("%w: its point is not on %s", ErrKey, key.Curve.Params().Name)
	}
	if knownBad(key.Curve, point) {
		return fmt.Errorf("%w: its private key is publicly known; make a new one", ErrKey)
	}
	return nil
}

// knownBad reports whether the private key of that uncompressed point is one of the
// trivial ones a broken generator returns (1 to 256, and the negatives of those) or
// printed in a specification (RFC 6979 A.2.5, A.2.6). A point and its negative share
// the X coordinate, which is what is compared.
func knownBad(curve elliptic.Curve, point []byte) bool {
	x := point[1 : 1+(len(point)-1)/2]
	for _, bad := range badCoordinates()[curve.Params().Name] {
		if bytes.Equal(x, bad) {
			return true
		}
	}
	return false
}

// badCoordinates is computed at the first use, for it takes longer than most commands,
// and never written again.
var badCoordinates = sync.OnceValue(func() map[string][][]byte {
	return map[string][][]byte{
		"P-256": coordinates(elliptic.P256(), "C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"),
		"P-384": coordinates(elliptic.P384(), "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5"),
	}
})

func coordinates(curve elliptic.Curve, published ...string) [][]byte {
	size := (curve.Params().BitSize + 7) / 8
	var scalars []*big.Int
	for n := range int64(256) {
		scalars = append(scalars, big.NewInt(n+1))
	}
	for _, p := range published {
		d, _ := new(big.Int).SetString(p, 16)
		scalars = append(scalars, d)
	}
	var xs [][]byte
	for _, d := range scalars {
		key, err := ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, size)))
		if err != nil {
			continue
		}
		point, err := key.PublicKey.Bytes()
		if err != nil {
			continue
		}
		xs = append(xs, point[1:1+size])
	}
	return xs
}

// NewCSR returns a PKCS #10 request for that key and common name, in DER. Whoever
// signs it takes the key and nothing else: the name is for the reader.
func NewCSR(key crypto.Signer, commonName string) ([]byte, error) {
	if err := CheckKey(key.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: commonName}}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request for %s: %w", commonName, err)
	}
	return der, nil
}

// ParseCSR decodes a PKCS #10 request and verifies that its sender holds the key
// (proof of possession) and that the key is one we certify. Names, extensions and
// attributes in it are claims: nothing here or in Issue believes them.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxCSRSize {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are read", ErrRequest, len(der), maxCSRSize)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("%w: it is malformed: %w", ErrRequest, err)
	}
	if err := CheckKey(csr.PublicKey); err != nil {
		return nil, err
	}
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return nil, fmt.Errorf("%w: it is signed with %s, ECDSA with SHA-256, 384 or 512 is required", ErrRequest, csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: its signature is not by the key it names, so the sender may not hold that key", ErrRequest)
	}
	return csr, nil
}
