package revocation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// Sign returns the list in DER, signed by the issuer of its certificates. The issuer's
// certificate needs the key usage for it. Times lose their fractions of a second.
//
// Crypto/x509 encodes each entry by reflection, 3 µs and 30 allocations of it. So of a list
// with entries, to be signed by an ECDSA key, it makes the frame, which has all but the
// entries, and they are put into it: a test holds the result to what crypto/x509 makes.
func (l List) Sign(issuer *x509.Certificate, key crypto.Signer) ([]byte, error) {
	der, err := l.sign(issuer, key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list of %q: %w", issuer.Subject.CommonName, err)
	}
	return der, nil
}

func (l List) sign(issuer *x509.Certificate, key crypto.Signer) ([]byte, error) {
	template := &x509.RevocationList{Number: l.Number, ThisUpdate: l.ThisUpdate.UTC(), NextUpdate: l.NextUpdate.UTC()}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || len(l.Entries) == 0 {
		for _, e := range l.Entries {
			// Unspecified is not written (RFC 5280 §5.3.1), and crypto/x509 leaves out 0.
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: e.Serial, RevocationTime: e.At.UTC(), ReasonCode: int(e.Reason)})
		}
		return x509.CreateRevocationList(rand.Reader, template, issuer, key)
	}
	// The frame is signed by a key that is forgotten: the issuer's signs once, and only
	// what is published.
	throwaway, err := ecdsa.GenerateKey(public.Curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	frame, err := x509.CreateRevocationList(rand.Reader, template, issuer, throwaway)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseRevocationList(frame)
	if err != nil {
		return nil, err
	}
	entries, err := l.entries()
	if err != nil {
		return nil, err
	}
	return filled(parsed, entries, key, public)
}

// filled returns the list of a frame with entries, signed by key, whose public half is
// given.
func filled(frame *x509.RevocationList, entries []byte, key crypto.Signer, public *ecdsa.PublicKey) ([]byte, error) {
	whole, tbs := cryptobyte.String(frame.Raw), cryptobyte.String(frame.RawTBSRevocationList)
	var algorithm cryptobyte.String
	if !whole.ReadASN1(&whole, tags.SEQUENCE) || !whole.SkipASN1(tags.SEQUENCE) || !whole.ReadASN1Element(&algorithm, tags.SEQUENCE) || !tbs.ReadASN1(&tbs, tags.SEQUENCE) {
		return nil, errFrame
	}
	rest := tbs
	for range 5 { // version, signature, issuer, thisUpdate, nextUpdate (RFC 5280 §5.1)
		var field cryptobyte.String
		var tag tags.Tag
		if !rest.ReadAnyASN1Element(&field, &tag) {
			return nil, errFrame
		}
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(entries)+32))
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs[:len(tbs)-len(rest)])
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(entries) })
		b.AddBytes(rest)
	})
	signed, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	hash, ok := hashes[frame.SignatureAlgorithm]
	if !ok {
		return nil, fmt.Errorf("lists signed with %v are not made here", frame.SignatureAlgorithm)
	}
	h := hash.New()
	h.Write(signed)
	sum := h.Sum(nil)
	signature, err := key.Sign(rand.Reader, sum, hash)
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(public, sum, signature) {
		return nil, errors.New("the signature that the key has made is not one of its own")
	}
	b = cryptobyte.NewBuilder(make([]byte, 0, len(signed)+256))
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		b.AddBytes(algorithm)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

var errFrame = errors.New("crypto/x509's revocation list doesn't have its fields in the order of RFC 5280 §5.1")

// hashes are those of the signature algorithms that crypto/x509 takes for ECDSA keys.
var hashes = map[x509.SignatureAlgorithm]crypto.Hash{
	x509.ECDSAWithSHA256: crypto.SHA256, x509.ECDSAWithSHA384: crypto.SHA384, x509.ECDSAWithSHA512: crypto.SHA512,
}

// entries returns the entries one after the other.
func (l List) entries() ([]byte, error) {
	const each = 56 // with a serial number of 20 octets and a reason
	all := make([]byte, 0, each*len(l.Entries))
	reasons := make(map[Reason][]byte)
	for i, e := range l.Entries {
		if e.Serial == nil || e.At.IsZero() {
			return nil, fmt.Errorf("entry %d has no serial number or no time", i)
		}
		reason, known := reasons[e.Reason]
		if !known {
			var err error
			if reason, err = reasonExtension(e.Reason); err != nil {
				return nil, err
			}
			reasons[e.Reason] = reason
		}
		b := cryptobyte.NewBuilder(all)
		at := e.At.UTC()
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(e.Serial)
			if year := at.Year(); year >= 1950 && year < 2050 { // RFC 5280 §5.1.2.6
				b.AddASN1UTCTime(at)
			} else {
				b.AddASN1GeneralizedTime(at)
			}
			b.AddBytes(reason)
		})
		var err error
		if all, err = b.Bytes(); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return all, nil
}

// reasonExtension returns the extensions of an entry: a reason code, RFC 5280 §5.3.1, or
// nothing where it is unspecified.
func reasonExtension(r Reason) ([]byte, error) {
	if r == 0 {
		return nil, nil
	}
	code, err := asn1.Marshal(asn1.Enumerated(r))
	if err != nil {
		return nil, err
	}
	return asn1.Marshal([]pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 21}, Value: code}})
}
