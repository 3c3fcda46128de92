package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// A key's file is TSS2 PEM (ASN.1 Specification for TPM 2.0 Key Files), as OpenSSL's
// tpm2 provider and tpm2-tools read it. The two lines of text before it (RFC 7468 §2)
// serve for one thing: to say which of the two has happened when the TPM doesn't know
// the key, or has another storage key than the one our secrets are hidden with.
const (
	keyType    = "TSS2 PRIVATE KEY"
	parentLine = "Storage-Key-Name: "
	ekLine     = "Endorsement-Key-SHA256: "

	maxKeyFile = 16 << 10 // ours have about 700 bytes
)

// keyFile is a key file, taken apart.
type keyFile struct {
	parent     tpm2.TPMHandle
	parentName []byte // nil in others' files
	ek         []byte // SHA-256 of the P-256 EK's SubjectPublicKeyInfo, or nil if unknown
	public     []byte // TPMT_PUBLIC
	private    []byte // TPM2B_PRIVATE's buffer
	hasPIN     bool
}

// IsKeyFile reports whether that is a TPM key's PEM file rather than one of a key that
// is in the file itself.
func IsKeyFile(data []byte) bool {
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == keyType {
			return true
		}
	}
	return false
}

// PEM returns the key as a TSS2 PEM file's contents. It is of use in its TPM only, but
// there without a PIN to anyone who may use the TPM.
func (k *Key) PEM() []byte { return k.file.encode() }

// Write puts the key's file at path, durably, with mode 0600.
func (k *Key) Write(path string) error { return pemfile.Write(path, k.PEM(), 0o600) }

// ReadKey is LoadKey of the file at path, which is refused if others may read it.
func (t *TPM) ReadKey(path string, pin []byte) (*Key, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	k, err := t.LoadKey(data, pin)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func readPrivate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe with no writer would hold us up
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrInvalid}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 on it, or replace the key if others had access to the TPM, too", path, mode)
	}
	return io.ReadAll(io.LimitReader(f, maxKeyFile+1))
}

func (f *keyFile) encode() []byte {
	var b bytes.Buffer
	if f.parentName != nil {
		fmt.Fprintf(&b, "%s%x\n", parentLine, f.parentName)
	}
	if f.ek != nil {
		fmt.Fprintf(&b, "%s%x\n", ekLine, f.ek)
	}
	der, err := asn1.Marshal(tpmKey{
		Type:      keyfile.OIDLoadableKey,
		EmptyAuth: !f.hasPIN,
		Parent:    int64(f.parent),
		Public:    tpm2.Marshal(tpm2.BytesAs2B[tpm2.TPMTPublic](f.public)),
		Private:   tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: f.private}),
	})
	if err != nil {
		panic(err) // of nothing but the types above
	}
	b.Write(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}))
	return b.Bytes()
}

// tpmKey is TPMKey of the specification as we write it. go-tpm-keyfiles, which reads it,
// leaves emptyAuth out where it is FALSE; tpm2-openssl 1.1 takes that for TRUE.
type tpmKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"explicit,tag:0"`
	Parent    int64
	Public    []byte
	Private   []byte
}

// parseKeyFile takes a key file apart, or returns an error that is ErrDamaged.
func parseKeyFile(data []byte) (keyFile, error) {
	damaged := func(format string, args ...any) (keyFile, error) {
		return keyFile{}, fmt.Errorf("the TPM key file: %w: %w", ErrDamaged, fmt.Errorf(format, args...))
	}
	if len(data) > maxKeyFile {
		return damaged("it is larger than %d bytes", maxKeyFile)
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil || block.Type != keyType:
		return damaged("it has no PEM block %q", keyType)
	case bytes.Contains(rest, []byte("-----BEGIN ")):
		return damaged("it has more than one PEM block")
	}
	var whole asn1.RawValue
	if rest, err := asn1.Unmarshal(block.Bytes, &whole); err != nil || len(rest) > 0 {
		return damaged("it isn't one ASN.1 value")
	}
	key, err := keyfile.Parse(block.Bytes)
	if err != nil {
		return damaged("%w", err)
	}
	if !key.Keytype.Equal(keyfile.OIDLoadableKey) || len(key.Policy) > 0 || len(key.AuthPolicy) > 0 || len(key.Secret.Buffer) > 0 {
		return damaged("only keys that are loaded without a policy are supported")
	}
	f := keyFile{parent: key.Parent, public: key.Pubkey.Bytes(), private: key.Privkey.Buffer, hasPIN: !key.EmptyAuth}
	switch f.parent {
	case srkHandle, secondHandle, tpm2.TPMRHOwner:
	default:
		return damaged("its parent %#x isn't the storage key at %#x or %#x", uint32(f.parent), uint32(srkHandle), uint32(secondHandle))
	}
	text, _, _ := bytes.Cut(data, []byte("-----BEGIN "))
	for line := range strings.Lines(string(text)) {
		for prefix, into := range map[string]*[]byte{parentLine: &f.parentName, ekLine: &f.ek} {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
				if *into, err = hex.DecodeString(value); err != nil || len(*into) < 32 || len(*into) > 34 {
					return damaged("the line %q", strings.TrimSpace(line))
				}
			}
		}
	}
	return f, nil
}

// publicKey returns the key that the public area describes, if it is one of keyTemplate.
func (f *keyFile) publicKey() (*ecdsa.PublicKey, error) {
	wrong := func(err error) (*ecdsa.PublicKey, error) {
		return nil, fmt.Errorf("the TPM key file: %w: it isn't of a P-256 signing key: %w", ErrDamaged, err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](f.public)
	if err != nil {
		return wrong(err)
	}
	parameters, err := public.Parameters.ECCDetail()
	if err != nil {
		return wrong(err)
	}
	if a := public.ObjectAttributes; public.NameAlg != tpm2.TPMAlgSHA256 || parameters.CurveID != tpm2.TPMECCNistP256 || !a.SignEncrypt || a.Restricted {
		return wrong(fmt.Errorf("curve %#x, attributes %+v", uint16(parameters.CurveID), a))
	}
	key, err := eccKey(public)
	if err != nil {
		return wrong(err)
	}
	return key, nil
}

// eccKey returns the key of a P-256 public area.
func eccKey(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T", key)
	}
	if _, err := ec.ECDH(); err != nil { // off the curve
		return nil, err
	}
	return ec, nil
}
