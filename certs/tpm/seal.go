package tpm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Seal encrypts data, up to 1 MiB, so that only this TPM can open it, until the TPM
// is cleared. The data is encrypted with AES-256-GCM under a random key, and that key,
// which fits into any TPM, is sealed in it. Sealing writes nothing to the TPM's own
// memory, which would wear.
func (t *TPM) Seal(data []byte) ([]byte, error) {
	if len(data) > maxData {
		return nil, fmt.Errorf("seal: %d bytes are more than the %d that can be", len(data), maxData)
	}
	key := make([]byte, keySize)
	rand.Read(key)
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	var b blob
	err = t.use("seal with", func(c *conn) error {
		parent, err := c.primary(nil)
		if err != nil {
			return err
		}
		defer parent.flush()
		created, err := tpm2.Create{
			ParentHandle: parent.as(parent.hidden(tpm2.AESEncryption(128, tpm2.EncryptIn))),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
			}},
			InPublic: tpm2.New2B(sealedTemplate),
		}.Execute(c)
		if err != nil {
			return err
		}
		b = blob{parent: parent.name.Buffer, public: created.OutPublic.Bytes(), private: created.OutPrivate.Buffer}
		return nil
	})
	if err != nil {
		return nil, err
	}
	header := b.header()
	return aead.Seal(header, nil, data, header), nil
}

// Unseal returns what Seal was given. The error is ErrOtherTPM if this TPM never can,
// and ErrDamaged if no TPM can.
func (t *TPM) Unseal(sealed []byte) ([]byte, error) {
	b, err := parseBlob(sealed)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	var key []byte
	err = t.use("unseal with", func(c *conn) error {
		key, err = c.unsealKey(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w: %w", ErrDamaged, err)
	}
	data, err := aead.Open(nil, nil, b.sealed, b.header())
	if err != nil {
		return nil, fmt.Errorf("unseal: %w: its contents were altered", ErrDamaged)
	}
	return data, nil
}

func (c *conn) unsealKey(b blob) ([]byte, error) {
	parent, err := c.primary(b.parent)
	if err != nil {
		return nil, err
	}
	defer parent.flush()
	loaded, err := parent.load(b.public, b.private)
	if err != nil {
		return nil, err
	}
	defer c.flush(loaded.ObjectHandle)
	reply, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
		Handle: loaded.ObjectHandle,
		Name:   loaded.Name,
		Auth:   parent.hidden(tpm2.AESEncryption(128, tpm2.EncryptOut)),
	}}.Execute(c)
	if err != nil {
		return nil, err
	}
	return reply.OutData.Buffer, nil
}

// sealedTemplate is a secret that its TPM doesn't let go (fixedTPM, fixedParent) and
// that no password guards: whoever may use the TPM may open it. noDA, so that other
// programs' wrong passwords don't lock it.
var sealedTemplate = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgKeyedHash,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM:     true,
		FixedParent:  true,
		UserWithAuth: true,
		NoDA:         true,
	},
}

const keySize = 32

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("a key of %d bytes, not %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
