package revocation

import (
	"bytes"
	"crypto"
	"crypto/sha1" // a name and no protection: RFC 6960 §4.3 has every responder know it
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// Bounds of an OCSP request.
const (
	MaxRequestSize = 4 << 10 // bytes
	MaxQuestions   = 16      // certificates asked for
	maxNonce       = 128     // RFC 9654 §2.1
)

// Question asks for the status of one certificate.
type Question struct {
	Serial *big.Int

	raw      []byte // CertID, which the answer repeats
	hash     crypto.Hash
	nameHash []byte
	keyHash  []byte
}

// Asks reports whether the question is about a certificate of that issuer.
func (q Question) Asks(i *IssuerName) bool {
	switch q.hash {
	case crypto.SHA1:
		return bytes.Equal(q.nameHash, i.name1[:]) && bytes.Equal(q.keyHash, i.key1[:])
	case crypto.SHA256:
		return bytes.Equal(q.nameHash, i.name256[:]) && bytes.Equal(q.keyHash, i.key256[:])
	}
	return false
}

// IssuerName is what questions call an issuer by.
type IssuerName struct {
	name1, key1     [sha1.Size]byte
	name256, key256 [sha256.Size]byte
}

// NameOf returns what questions call the issuer by.
func NameOf(issuer *x509.Certificate) (*IssuerName, error) {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, fmt.Errorf("public key of %q: %w", issuer.Subject.CommonName, err)
	}
	key := spki.Key.RightAlign()
	return &IssuerName{
		name1: sha1.Sum(issuer.RawSubject), key1: sha1.Sum(key),
		name256: sha256.Sum256(issuer.RawSubject), key256: sha256.Sum256(key),
	}, nil
}

// Inquiry is an OCSP request, RFC 6960 §4.1.
type Inquiry struct {
	Questions []Question // at least one
	nonce     []byte     // the value of the extension; nil: none
}

// Nonced reports whether the answer must have the request's nonce, and so is for nobody
// else.
func (i Inquiry) Nonced() bool { return i.nonce != nil }

// errInquiry is in every error of ReadInquiry.
var errInquiry = errors.New("malformed OCSP request")

var (
	oidNonce  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidBasic  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidSHA1   = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// ReadInquiry parses a request in DER from anybody. A signature of the requester, which
// RFC 6960 §4.1.2 leaves to the responder, is not looked at.
func ReadInquiry(der []byte) (Inquiry, error) {
	var in Inquiry
	if len(der) > MaxRequestSize {
		return in, fmt.Errorf("%w: it has %d bytes, at most %d are taken", errInquiry, len(der), MaxRequestSize)
	}
	input := cryptobyte.String(der)
	var request, tbs, list cryptobyte.String
	if !input.ReadASN1(&request, tags.SEQUENCE) || !input.Empty() || !request.ReadASN1(&tbs, tags.SEQUENCE) {
		return in, fmt.Errorf("%w: it is no sequence", errInquiry)
	}
	// version and requestor name
	if !tbs.SkipOptionalASN1(tags.Tag(0).Constructed().ContextSpecific()) || !tbs.SkipOptionalASN1(tags.Tag(1).Constructed().ContextSpecific()) ||
		!tbs.ReadASN1(&list, tags.SEQUENCE) || list.Empty() {
		return in, fmt.Errorf("%w: it asks for nothing", errInquiry)
	}
	for !list.Empty() {
		if len(in.Questions) == MaxQuestions {
			return in, fmt.Errorf("%w: it asks for more than %d certificates", errInquiry, MaxQuestions)
		}
		q, ok := readQuestion(&list)
		if !ok {
			return in, fmt.Errorf("%w: question %d can't be read", errInquiry, len(in.Questions)+1)
		}
		in.Questions = append(in.Questions, q)
	}
	var wrapped, extensions cryptobyte.String
	var present bool
	if !tbs.ReadOptionalASN1(&wrapped, &present, tags.Tag(2).Constructed().ContextSpecific()) || !tbs.Empty() ||
		present && (!wrapped.ReadASN1(&extensions, tags.SEQUENCE) || !wrapped.Empty()) {
		return in, fmt.Errorf("%w: its extensions can't be read", errInquiry)
	}
	for !extensions.Empty() {
		var extension, value cryptobyte.String
		var id asn1.ObjectIdentifier
		var critical bool
		if !extensions.ReadASN1(&extension, tags.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&id) ||
			!extension.ReadOptionalASN1Boolean(&critical, tags.BOOLEAN, false) || !extension.ReadASN1(&value, tags.OCTET_STRING) || !extension.Empty() {
			return in, fmt.Errorf("%w: its extensions can't be read", errInquiry)
		}
		switch {
		case id.Equal(oidNonce):
			if len(value) == 0 || len(value) > maxNonce+4 || in.nonce != nil {
				return in, fmt.Errorf("%w: its nonce has %d bytes, or there are two", errInquiry, len(value))
			}
			in.nonce = bytes.Clone(value)
		case critical:
			return in, fmt.Errorf("%w: it has the critical extension %s, which isn't known here", errInquiry, id)
		}
	}
	return in, nil
}

func readQuestion(list *cryptobyte.String) (q Question, ok bool) {
	var request, element, id, algorithm, nameHash, keyHash cryptobyte.String
	var hash asn1.ObjectIdentifier
	if !list.ReadASN1(&request, tags.SEQUENCE) || !request.ReadASN1Element(&element, tags.SEQUENCE) ||
		!request.SkipOptionalASN1(tags.Tag(0).Constructed().ContextSpecific()) || !request.Empty() {
		return q, false
	}
	q.raw = bytes.Clone(element)
	q.Serial = new(big.Int)
	if !element.ReadASN1(&id, tags.SEQUENCE) || !id.ReadASN1(&algorithm, tags.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&hash) ||
		!id.ReadASN1(&nameHash, tags.OCTET_STRING) || !id.ReadASN1(&keyHash, tags.OCTET_STRING) || !id.ReadASN1Integer(q.Serial) || !id.Empty() {
		return q, false
	}
	switch {
	case hash.Equal(oidSHA1):
		q.hash = crypto.SHA1
	case hash.Equal(oidSHA256):
		q.hash = crypto.SHA256
	}
	q.nameHash, q.keyHash = bytes.Clone(nameHash), bytes.Clone(keyHash)
	return q, true
}
