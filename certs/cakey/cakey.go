// Package cakey opens the private key of a CA wherever it is kept. What the key's file
// holds says where that is:
//
//	PRIVATE KEY            the key itself (PKCS #8, also SEC 1), for a machine whose disk is trusted
//	ENCRYPTED PRIVATE KEY  the key under a passphrase (PKCS #8 with PBES2, RFC 8018), as openssl pkcs8 -topk8 writes it, too
//	TSS2 PRIVATE KEY       a key that was made in this machine's TPM and can't leave it
//	pkcs11:…               a key in an HSM or smart card (RFC 7512), in programs built with the tag pkcs11
//
// A thief of the file has the CA in the first case; in the second if the passphrase can
// be guessed; in the others not at all, as long as TPM or HSM aren't his, too.
package cakey

import (
	"crypto"
	"crypto/ecdsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/youmark/pkcs8"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
)

// maxFile bounds a key's file, in bytes.
const maxFile = 64 << 10

// typeEncrypted is the PEM label of RFC 7468 §11.
const typeEncrypted = "ENCRYPTED PRIVATE KEY"

// MinPassphrase is how many bytes a new passphrase has at least. The cost of a guess
// below is made for that, not for a PIN.
const MinPassphrase = 12

// maxPassphrase bounds one, in bytes.
const maxPassphrase = 1024

// ErrPassphrase is in the chain if a key didn't open with the passphrase given.
var ErrPassphrase = errors.New("the passphrase is wrong, or the file damaged")

// Opener opens keys. The zero value opens those in plain files and in the TPM that this
// machine has.
type Opener struct {
	// Passphrase returns the passphrase of the key in that file, or the PIN of the token
	// that the file names; it is the Opener's to overwrite. Nil: such keys are refused.
	Passphrase func(path string) ([]byte, error)

	// TPM is the address of the TPM, see tpm.Open. "": the one that tpm.Detect finds.
	TPM string
}

// Open returns the key whose file is at path: ECDSA on P-256 or P-384. A file that
// others may read is refused, encrypted or not. A missing one is fs.ErrNotExist.
func (o Opener) Open(path string) (crypto.Signer, error) {
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return o.open(path, data)
}

// open is Open of a file's contents. Libraries panic on some that nobody has written, such as
// an initialization vector of another length.
func (o Opener) open(path string, data []byte) (key crypto.Signer, err error) {
	defer func() {
		if p := recover(); p != nil {
			key, err = nil, fmt.Errorf("%s can't be opened, the file is damaged (%v): restore it from a backup", path, p)
		}
	}()
	return o.decode(path, data)
}

func (o Opener) decode(path string, data []byte) (crypto.Signer, error) {
	if tpm.IsKeyFile(data) {
		return o.openTPM(path, data)
	}
	if isToken(data) {
		return o.openToken(path, data)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != typeEncrypted {
		return pemfile.ParseKey(path, data)
	}
	if o.Passphrase == nil {
		return nil, fmt.Errorf("%s is encrypted, and there is nobody to give its passphrase", path)
	}
	if err := affordable(block.Bytes); err != nil {
		return nil, fmt.Errorf("%s can't be opened (%w): restore it from a backup", path, err)
	}
	passphrase, err := o.Passphrase(path)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
	if err != nil { // what exactly went wrong would help only who guesses
		return nil, fmt.Errorf("%s can't be opened: %w", path, ErrPassphrase)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a key of type %T, an ECDSA key on P-256 or P-384 is required", path, key)
	}
	return ec, nil
}

func (o Opener) openTPM(path string, data []byte) (crypto.Signer, error) {
	t, err := o.openDevice()
	if err != nil {
		return nil, fmt.Errorf("%s is a key in a TPM: %w", path, err)
	}
	key, err := t.LoadKey(data, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (o Opener) openToken(path string, data []byte) (crypto.Signer, error) {
	t, err := parseToken(data)
	if err != nil {
		return nil, fmt.Errorf("%s names a PKCS #11 token wrongly: %w", path, err)
	}
	if o.Passphrase == nil {
		return nil, fmt.Errorf("%s names a key in a token, and there is nobody to give its PIN", path)
	}
	pin, err := o.Passphrase(path)
	if err != nil {
		return nil, err
	}
	defer clear(pin)
	key, err := t.open(pin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func (o Opener) openDevice() (*tpm.TPM, error) {
	address := o.TPM
	if address == "" {
		var found bool
		if address, found = tpm.Detect(); !found {
			return nil, errors.New("this machine has no TPM that this user may use")
		}
	}
	return tpm.Open(address)
}

// Create makes a key in the TPM and returns it with its file's contents.
func (o Opener) Create() (crypto.Signer, []byte, error) {
	t, err := o.openDevice()
	if err != nil {
		return nil, nil, err
	}
	key, err := t.CreateKey(nil)
	if err != nil {
		return nil, nil, err
	}
	return key, key.PEM(), nil
}

// Token opens the key that the PKCS #11 URI names and returns it with its file's
// contents. path is where those will be: the PIN is asked for under that name.
func (o Opener) Token(path, uri string) (crypto.Signer, []byte, error) {
	file := []byte(uri + "\n")
	key, err := o.openToken(path, file)
	return key, file, err
}

// Encrypt returns the contents of the key's file, encrypted with AES-256-CBC under a key
// from the passphrase: scrypt with N = 2^14, r = 8, p = 5, which takes 16 MiB and is as
// much as openssl opens unasked. The passphrase has MinPassphrase bytes or more.
func Encrypt(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) < MinPassphrase || len(passphrase) > maxPassphrase {
		return nil, fmt.Errorf("a passphrase has %d to %d bytes", MinPassphrase, maxPassphrase)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T can't be taken out to be encrypted", key)
	}
	der, err := pkcs8.MarshalPrivateKey(ec, passphrase, &pkcs8.Opts{
		Cipher:  pkcs8.AES256CBC,
		KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 5},
	})
	if err != nil {
		return nil, fmt.Errorf("encrypt the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeEncrypted, Bytes: der}), nil
}

// Kind is where a key is kept.
type Kind string

// The kinds.
const (
	File      Kind = "file"
	Encrypted Kind = "encrypted file"
	TPM       Kind = "TPM"
	HSM       Kind = "PKCS #11 token"
)

// KindOf returns where the key of that file is kept, without opening it.
func KindOf(path string) (Kind, error) {
	data, err := read(path)
	if err != nil {
		return "", err
	}
	if tpm.IsKeyFile(data) {
		return TPM, nil
	}
	if isToken(data) {
		return HSM, nil
	}
	if block, _ := pem.Decode(data); block != nil && block.Type == typeEncrypted {
		return Encrypted, nil
	}
	return File, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 on it, or replace the key if others had access", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes: it is no key's file", path, maxFile)
	}
	return data, err
}
