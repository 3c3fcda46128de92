package revocation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // names the responder, RFC 6960 §4.2.1
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// Status is what an OCSP answer says of a certificate.
type Status int

// The three statuses of RFC 6960 §2.2.
const (
	Unknown Status = iota // the zero value: it vouches for nothing
	Good
	Revoked
)

// Answer is the status of one certificate.
type Answer struct {
	Question Question
	Status   Status
	At       time.Time // when it was revoked
	Reason   Reason    // of a revocation
}

// Responder signs answers. Golang.org/x/crypto/ocsp answers one question a response and
// can't repeat a nonce, so this is an encoder of our own; that package and openssl read
// it in the tests. It is immutable and safe for concurrent use if its key is.
type Responder struct {
	key         crypto.Signer
	certificate []byte
	keyHash     [sha1.Size]byte
}

// NewResponder returns a responder by a delegated signer's certificate (RFC 6960
// §4.2.2.2), which every response has in it, and its key, ECDSA on P-256.
func NewResponder(cert *x509.Certificate, key crypto.Signer) (*Responder, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key of the OCSP signer %q is not the P-256 key of its certificate", cert.Subject.CommonName)
	}
	point, err := pub.Bytes()
	if err != nil {
		return nil, err
	}
	return &Responder{key: key, certificate: cert.Raw, keyHash: sha1.Sum(point)}, nil
}

// Window is the time that a response is about, in whole seconds: the status is known to
// hold at This, and a newer answer is there by Next.
type Window struct{ This, Next time.Time }

// Respond returns a signed response to the inquiry in DER.
func (r *Responder) Respond(in Inquiry, answers []Answer, w Window) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tags.Tag(2).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(r.keyHash[:]) })
		b.AddASN1GeneralizedTime(w.This.UTC())
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, a := range answers {
				a.add(b, w)
			}
		})
		if in.nonce != nil {
			b.AddASN1(tags.Tag(1).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
				b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidNonce)
						b.AddASN1OctetString(in.nonce)
					})
				})
			})
		}
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode OCSP response: %w", err)
	}
	digest := sha256.Sum256(tbs)
	signature, err := r.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign OCSP response: %w", err)
	}
	return r.wrap(tbs, signature)
}

// add writes a SingleResponse.
func (a Answer) add(b *cryptobyte.Builder, w Window) {
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(a.Question.raw)
		switch a.Status {
		case Good:
			b.AddASN1(tags.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		case Revoked:
			b.AddASN1(tags.Tag(1).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
				b.AddASN1GeneralizedTime(a.At.UTC())
				if a.Reason != Unspecified {
					b.AddASN1(tags.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(a.Reason)) })
				}
			})
		default:
			b.AddASN1(tags.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		}
		b.AddASN1GeneralizedTime(w.This.UTC())
		b.AddASN1(tags.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1GeneralizedTime(w.Next.UTC()) })
	})
}

var oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}

// wrap puts what was signed into a response of status successful.
func (r *Responder) wrap(tbs, signature []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0)
		b.AddASN1(tags.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidBasic)
				b.AddASN1(tags.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(tbs)
						b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidECDSAWithSHA256) })
						b.AddASN1BitString(signature)
						b.AddASN1(tags.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
							b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(r.certificate) })
						})
					})
				})
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode OCSP response: %w", err)
	}
	return der, nil
}

// Failure is an unsigned OCSP response that says why there is none, RFC 6960 §2.3.
type Failure byte

// The failures that our responder tells of.
const (
	MalformedRequest Failure = 1
	InternalError    Failure = 2
	TryLater         Failure = 3
	Unauthorized     Failure = 6 // it may not speak for that issuer, RFC 5019 §2.2.3
)

// DER returns the response.
func (f Failure) DER() []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(f)} }
