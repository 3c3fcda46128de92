package tpm

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/tpm/attestation"
)

// endorsementKind is one of the endorsement keys that the TCG's EK Credential Profile
// (2.6, sections 2.2 and B) lets a TPM have a certificate for.
type endorsementKind struct {
	template    tpm2.TPMTPublic
	persistent  tpm2.TPMHandle // where a manufacturer or administrator may have put the key
	certificate tpm2.TPMHandle // NV index
}

// endorsementKinds returns them in the order in which we look for a certificate, which
// must never change: it decides under which EK a board is known. RSA comes last since to
// derive such a key takes a TPM seconds; the first is that of boards without certificate.
func endorsementKinds() []endorsementKind {
	return []endorsementKind{
		{tpm2.ECCEKTemplate, 0x8101000a, 0x01c0000a},
		{attestation.P384EKTemplate(), 0x81010016, 0x01c00016},
		{tpm2.RSAEKTemplate, 0x81010001, 0x01c00002},
	}
}

// The certificates between the EK's and its manufacturer's root, one after another in
// the NV indices from firstChain on, as some manufacturers put them.
const (
	firstChain = tpm2.TPMHandle(0x01c00100)
	lastChain  = tpm2.TPMHandle(0x01c001ff)
	maxNV      = 16 << 10
)

// Endorsement is what tells a TPM from all others, for life.
type Endorsement struct {
	Public        []byte   // the endorsement key's SubjectPublicKeyInfo, DER
	Certificate   []byte   // by the TPM's manufacturer, DER; nil if the TPM has none
	Intermediates [][]byte // certificates towards the manufacturer's root, DER
}

// Hash returns the SHA-256 of the endorsement key in hex, as it stands on a station's
// allow-list and in a manifest.
func (e Endorsement) Hash() string {
	hash := attestation.EKHash(e.Public)
	return hex.EncodeToString(hash[:])
}

// Endorsement returns the TPM's endorsement key: the first with a certificate of those
// on P-256, P-384 and of RSA-2048, else that on P-256, so that it is always the same.
func (t *TPM) Endorsement() (Endorsement, error) {
	var e Endorsement
	err := t.use("read the endorsement key of", func(c *conn) error {
		var err error
		e, _, err = c.endorsement(endorsementKinds())
		return err
	})
	return e, err
}

// endorsement returns what is to be told of the endorsement key, and which it is: the
// first of those with a certificate, or the first.
func (c *conn) endorsement(kinds []endorsementKind) (e Endorsement, kind endorsementKind, err error) {
	for _, kind = range kinds {
		if e.Certificate, err = c.certificate(kind.certificate); e.Certificate != nil || err != nil {
			break
		}
	}
	if err != nil {
		return e, kind, err
	}
	if e.Certificate == nil {
		kind = kinds[0]
	}
	ek, err := c.endorsementKey(kind)
	if err != nil {
		return e, kind, err
	}
	defer ek.flush()
	if e.Public, err = spki(&ek.public); err != nil {
		return e, kind, err
	}
	if e.Certificate == nil {
		return e, kind, nil
	}
	cert, err := x509.ParseCertificate(e.Certificate)
	if err != nil {
		return e, kind, fmt.Errorf("its EK certificate in NV index %#x can't be read: %w", uint32(kind.certificate), err)
	}
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, e.Public) {
		return e, kind, fmt.Errorf("its EK certificate in NV index %#x is for another key than the TCG's template makes; have the station allow the EK %s by its hash, and remove that certificate", uint32(kind.certificate), e.Hash())
	}
	e.Intermediates, err = c.chain()
	return e, kind, err
}

// endorsementKey returns the key of that kind, which the caller flushes.
func (c *conn) endorsementKey(kind endorsementKind) (*primary, error) {
	p, _, err := c.persistent(kind.persistent, kind.template)
	if p != nil || err != nil {
		return p, err
	}
	p, err = c.transient(tpm2.TPMRHEndorsement, kind.template)
	return p, aboutEndorsement(err)
}

// ekHash returns the SHA-256 of the P-256 endorsement key, or nil where the TPM doesn't
// tell: then we know less about a TPM that has lost its keys, and no more.
func (c *conn) ekHash() []byte {
	ek, err := c.endorsementKey(endorsementKinds()[0])
	if err != nil {
		return nil
	}
	defer ek.flush()
	public, err := spki(&ek.public)
	if err != nil {
		return nil
	}
	hash := attestation.EKHash(public)
	return hash[:]
}

// aboutEndorsement explains what a TPM says of its endorsement hierarchy, which explain
// takes for what it says of the owner's.
func aboutEndorsement(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: its endorsement hierarchy has a password; remove it with tpm2_changeauth -c e -p PASSWORD", ErrAccess)
	case errors.Is(err, tpm2.TPMRCHierarchy):
		return fmt.Errorf("%w: its endorsement hierarchy is disabled until the next boot", ErrAccess)
	}
	return err
}

func spki(public *tpm2.TPMTPublic) ([]byte, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}

// chain returns the certificates from firstChain on; mostly there are none.
func (c *conn) chain() ([][]byte, error) {
	var all []byte
	for index := firstChain; index <= lastChain && len(all) < maxNV; index++ {
		data, err := c.nv(index)
		if err != nil {
			return nil, err
		}
		if data == nil {
			break
		}
		all = append(all, data...)
	}
	var certs [][]byte
	for len(certs) < attestation.MaxIntermediates {
		var der []byte
		if der, all = cutDER(all); der == nil {
			break
		}
		certs = append(certs, der)
	}
	return certs, nil
}

// certificate returns the certificate in an NV index, or nil if there is none.
func (c *conn) certificate(index tpm2.TPMHandle) ([]byte, error) {
	data, err := c.nv(index)
	if err != nil || data == nil {
		return nil, err
	}
	der, _ := cutDER(data) // an index is often larger than what is in it
	if der == nil {
		return nil, fmt.Errorf("NV index %#x holds no certificate", uint32(index))
	}
	return der, nil
}

// cutDER takes the first ASN.1 SEQUENCE off data, or returns nil if there is none.
func cutDER(data []byte) (der, rest []byte) {
	var value asn1.RawValue
	rest, err := asn1.Unmarshal(data, &value)
	if err != nil || value.Tag != asn1.TagSequence || value.Class != asn1.ClassUniversal {
		return nil, nil
	}
	return value.FullBytes, rest
}

// nv reads an NV index with its own, empty password, or returns nil if it isn't there
// or was never written.
func (c *conn) nv(index tpm2.TPMHandle) ([]byte, error) {
	reply, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := reply.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxNV {
		return nil, fmt.Errorf("NV index %#x has %d bytes, the most is %d", uint32(index), public.DataSize, maxNV)
	}
	const piece = 512 // TPM_PT_NV_BUFFER_MAX is at least that
	var data []byte
	for uint16(len(data)) < public.DataSize {
		read, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: reply.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: reply.NVName},
			Size:       min(piece, public.DataSize-uint16(len(data))),
			Offset:     uint16(len(data)),
		}.Execute(c)
		if errors.Is(err, tpm2.TPMRCNVUninitialized) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read NV index %#x: %w", uint32(index), err)
		}
		if len(read.Data.Buffer) == 0 {
			return nil, fmt.Errorf("NV index %#x gave nothing at %d of %d", uint32(index), len(data), public.DataSize)
		}
		data = append(data, read.Data.Buffer...)
	}
	return data, nil
}
