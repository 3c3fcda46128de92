package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Key is an ECDSA P-256 key that was made in a TPM and can't leave it, a
// [crypto.Signer] for crypto/tls and crypto/x509. It is safe for concurrent use; its
// signatures take turns with all other calls of its TPM, and like those leave nothing
// loaded. The TPM may be restarted in between.
type Key struct {
	tpm    *TPM
	file   keyFile
	public *ecdsa.PublicKey
	pin    []byte // nil: none
}

// maxPIN is the longest authorization value of an object named by SHA-256, in bytes.
const maxPIN = 32

// CreateKey makes a key below the TPM's storage key, which it makes persistent at
// 0x81000001 if there is none (0x81000002 where another key has that place). A PIN of 1
// to 32 bytes without NUL is then needed for each signature and travels hidden from the
// bus; too many wrong ones lock the TPM's PINs for a while. A nil PIN is none.
func (t *TPM) CreateKey(pin []byte) (*Key, error) {
	if err := checkPIN(pin); err != nil {
		return nil, err
	}
	k := &Key{tpm: t, pin: bytes.Clone(pin)}
	err := t.use("make a key in", func(c *conn) error {
		parent, err := c.storage()
		if err != nil {
			return err
		}
		created, err := parent.create(keyTemplate(pin != nil), pin)
		if err != nil {
			return err
		}
		k.file = keyFile{parent: parent.handle, parentName: parent.name.Buffer, public: created.OutPublic.Bytes(), private: created.OutPrivate.Buffer, hasPIN: pin != nil}
		k.file.ek = c.ekHash()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if k.public, err = k.file.publicKey(); err != nil {
		return nil, fmt.Errorf("make a key in the TPM at %s: %w", t.address, err)
	}
	return k, nil
}

// LoadKey returns the key of a TSS2 PEM file's contents, once the TPM has loaded it.
// Whether the PIN is right, only a signature tells; a key without one ignores it. The error is ErrSwapped, ErrCleared
// or, of files that other programs wrote, ErrOtherTPM if this TPM doesn't have the key.
func (t *TPM) LoadKey(pemFile, pin []byte) (*Key, error) {
	if err := checkPIN(pin); err != nil {
		return nil, err
	}
	f, err := parseKeyFile(pemFile)
	if err != nil {
		return nil, err
	}
	if f.hasPIN && pin == nil {
		return nil, fmt.Errorf("load a key into the TPM at %s: %w; this key has one", t.address, ErrPIN)
	}
	k := &Key{tpm: t, file: f, pin: bytes.Clone(pin)}
	if !f.hasPIN {
		k.pin = nil
	}
	if k.public, err = f.publicKey(); err != nil {
		return nil, err
	}
	if err := k.with("load a key into", func(*conn, *loadedKey) error { return nil }); err != nil {
		return nil, err
	}
	return k, nil
}

// Public returns the public key, an *ecdsa.PublicKey on P-256.
func (k *Key) Public() crypto.PublicKey { return k.public }

// TPM returns the TPM that the key is in.
func (k *Key) TPM() *TPM { return k.tpm }

// Sign returns an ECDSA signature (ASN.1, RFC 3279 §2.2.3) of a digest of at least 256
// bits. The randomness is the TPM's own; the first argument is ignored.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if hash := opts.HashFunc(); hash == 0 || hash.Size() != len(digest) || len(digest) < 32 {
		return nil, fmt.Errorf("sign with the TPM: a digest of %d bytes isn't one of %v with at least 32", len(digest), hash)
	}
	// ECDSA takes the leftmost bits of a longer digest (FIPS 186-5, 6.4.1), which spares
	// us what the TPM may not know: SHA-384 and SHA-512.
	digest = digest[:32]
	var signature []byte
	err := k.with("sign with", func(c *conn, l *loadedKey) error {
		reply, err := tpm2.Sign{
			KeyHandle: l.as(),
			Digest:    tpm2.TPM2BDigest{Buffer: digest},
			InScheme:  ecdsaSHA256(),
			Validation: tpm2.TPMTTKHashCheck{
				Tag:       tpm2.TPMSTHashCheck,
				Hierarchy: tpm2.TPMRHNull, // not from the TPM: the key is unrestricted
			},
		}.Execute(c)
		if err != nil {
			return err
		}
		rs, err := reply.Signature.Signature.ECDSA()
		if err != nil {
			return err
		}
		signature, err = asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(rs.SignatureR.Buffer),
			new(big.Int).SetBytes(rs.SignatureS.Buffer),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(k.public, digest, signature) { // a broken chip or bus, told here and not by the peer
		return nil, fmt.Errorf("sign with the TPM at %s: it gave a wrong signature", k.tpm.address)
	}
	return signature, nil
}

// loadedKey is a key in the TPM's memory.
type loadedKey struct {
	key    *Key
	parent *primary
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
}

// as returns the key for one command. A PIN becomes the key of an HMAC in a session
// salted to the storage key, so that not even a guess can be tried on what the bus tells.
func (l *loadedKey) as() tpm2.AuthHandle {
	auth := tpm2.PasswordAuth(nil)
	if l.key.pin != nil {
		auth = tpm2.HMAC(tpm2.TPMAlgSHA256, 32, tpm2.Salted(l.parent.handle, l.parent.public), tpm2.Auth(l.key.pin))
	}
	return tpm2.AuthHandle{Handle: l.handle, Name: l.name, Auth: auth}
}

// with loads the key, lets f use it, and flushes it.
func (k *Key) with(attempt string, f func(*conn, *loadedKey) error) error {
	return k.tpm.use(attempt, func(c *conn) error {
		parent, err := k.parent(c)
		if err != nil {
			return err
		}
		defer parent.flush()
		loaded, err := parent.load(k.file.public, k.file.private)
		if errors.Is(err, ErrDamaged) && k.file.parentName == nil {
			return fmt.Errorf("%w; or the file is damaged", ErrOtherTPM)
		}
		if err != nil {
			return err
		}
		defer c.flush(loaded.ObjectHandle)
		err = f(c, &loadedKey{key: k, parent: parent, handle: loaded.ObjectHandle, name: loaded.Name})
		if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
			return ErrPIN
		}
		return err
	})
}

// parent returns the storage key that the key was made under, or says why this TPM
// doesn't have it.
func (k *Key) parent(c *conn) (*primary, error) {
	parent, err := c.primary(k.file.parentName)
	if !errors.Is(err, ErrOtherTPM) || k.file.ek == nil {
		return parent, err
	}
	// A clear replaces the seed of the storage hierarchy, not that of the endorsement
	// hierarchy (Library Part 3, 24.6).
	switch ek := c.ekHash(); {
	case ek == nil:
		return nil, ErrOtherTPM
	case bytes.Equal(ek, k.file.ek):
		return nil, ErrCleared
	default:
		return nil, ErrSwapped
	}
}

// create makes a key below p. Its authorization value goes in hidden from the bus.
func (p *primary) create(template tpm2.TPMTPublic, auth []byte) (*tpm2.CreateResponse, error) {
	return tpm2.Create{
		ParentHandle: p.as(p.hidden(tpm2.AESEncryption(128, tpm2.EncryptIn))),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}}},
		InPublic:     tpm2.New2B(template),
	}.Execute(p.c)
}

// load loads a key or sealed data of p's, which the caller flushes. The error is
// ErrDamaged if it isn't p's.
func (p *primary) load(public, private []byte) (*tpm2.LoadResponse, error) {
	loaded, err := tpm2.Load{
		ParentHandle: p.as(tpm2.PasswordAuth(nil)), // what goes in is encrypted already
		InPrivate:    tpm2.TPM2BPrivate{Buffer: private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](public),
	}.Execute(p.c)
	if err != nil {
		if aboutParameter(err) { // its parent is here, so what is wrong is the blob
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return nil, err
	}
	if !bytes.Equal(loaded.Name.Buffer, nameOf(public)) {
		p.c.flush(loaded.ObjectHandle)
		return nil, fmt.Errorf("%w: the TPM loaded another object", ErrDamaged)
	}
	return loaded, nil
}

// keyTemplate is an unrestricted signing key that is born in its TPM and stays there.
// Without a PIN it is exempt from the lockout that others' wrong PINs bring about.
func keyTemplate(hasPIN bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                !hasPIN,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	}
}

func ecdsaSHA256() tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
	}
}

func checkPIN(pin []byte) error {
	if pin != nil && (len(pin) == 0 || len(pin) > maxPIN || bytes.IndexByte(pin, 0) >= 0) {
		return fmt.Errorf("a PIN must have 1 to %d bytes, none of them NUL", maxPIN)
	}
	return nil
}
