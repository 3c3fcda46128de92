package cakey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/youmark/pkcs8"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// Keep says where a new key is to be kept. It is what the commands' flag --key takes: one
// of the words, or the PKCS #11 URI of a key pair that is there.
type Keep string

// The words.
const (
	KeepInFile    Keep = "file"
	KeepEncrypted Keep = "passphrase" // in an encrypted file
	KeepInTPM     Keep = "tpm"
)

// KeepUsage describes the flag --key.
const KeepUsage = "file, passphrase (an encrypted file), tpm, or pkcs11:URI of a key pair that was made in an HSM"

// Check returns an error if k is neither a word nor a URI.
func (k Keep) Check() error {
	switch k {
	case KeepInFile, KeepEncrypted, KeepInTPM:
		return nil
	}
	if k.isToken() {
		return nil
	}
	return fmt.Errorf("a key can't be kept in %.40q: say file, passphrase, tpm or pkcs11:URI", string(k))
}

func (k Keep) isToken() bool { return strings.HasPrefix(string(k), tokenScheme) }

// Make makes a key on P-256 to be kept like that, or finds it in its token, and returns it
// with its file's contents. path is where those will be: newPassphrase (see Source.New) is
// asked for that file's, and for an encrypted one only.
func (o Opener) Make(path string, keep Keep, newPassphrase func(path string) ([]byte, error)) (crypto.Signer, []byte, error) {
	if err := keep.Check(); err != nil {
		return nil, nil, err
	}
	if keep.isToken() {
		return o.Token(path, string(keep))
	}
	if keep == KeepInTPM {
		return o.Create()
	}
	var passphrase []byte
	if keep == KeepEncrypted {
		var err error
		if passphrase, err = newPassphrase(path); err != nil {
			return nil, nil, err
		}
		defer clear(passphrase)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if keep == KeepEncrypted {
		file, err := Encrypt(key, passphrase)
		return key, file, err
	}
	file, err := pemfile.EncodeKey(key)
	return key, file, err
}

// SetPassphrase encrypts the key whose file is at path with a passphrase or, if that is
// empty, takes it into a plain file again. The file is replaced at once by one that was
// seen to open, or stays as it is. What a plain file held may stay on the disk's free
// blocks. A key in a TPM or token has no passphrase to be set.
func (o Opener) SetPassphrase(path string, passphrase []byte) error {
	kind, err := KindOf(path)
	if err != nil {
		return err
	}
	if kind == TPM || kind == HSM {
		return fmt.Errorf("the key of %s is in a %s, which never lets it out: it needs no passphrase", path, kind)
	}
	key, err := o.Open(path)
	if err != nil {
		return err
	}
	if len(passphrase) == 0 {
		file, err := pemfile.EncodeKey(key)
		if err != nil {
			return err
		}
		return pemfile.Write(path, file, 0o600)
	}
	file, err := Encrypt(key, passphrase)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(file)
	if again, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, bytes.Clone(passphrase)); err != nil || !samePublicKey(again, key.Public()) {
		return fmt.Errorf("%s was not changed: what was encrypted doesn't open again", path)
	}
	return pemfile.Write(path, file, 0o600)
}

func samePublicKey(private any, pub crypto.PublicKey) bool {
	key, ok := private.(*ecdsa.PrivateKey)
	return ok && key.PublicKey.Equal(pub)
}
