// Package pemfile reads and writes keys, certificates and requests as PEM files
// (RFC 7468), durably: a write is a temporary file, an fsync, a rename and an fsync
// of the folder, so a power cut leaves the old file or the new one, never half of
// one. Keys are 0600 from their first byte and refused when others may read them.
package pemfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxFileSize bounds what is read: a chain of a hundred certificates has 100 kB.
const maxFileSize = 1 << 20

const (
	typeKey         = "PRIVATE KEY"
	typeECKey       = "EC PRIVATE KEY"
	typeCertificate = "CERTIFICATE"
	typeRequest     = "CERTIFICATE REQUEST"
)

// Write puts data at path with that mode, replacing what is there. On an error the
// old file is as it was.
func Write(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) // fails once renamed, as it should
	if err := fill(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return SyncDir(dir)
}

func fill(f *os.File, data []byte, mode fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = restrict(f, mode)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// restrict gives a file its mode. A file system without modes, which sticks often have,
// refuses: that does no harm where the mode that it shows is no wider.
func restrict(f *os.File, mode fs.FileMode) error {
	err := f.Chmod(mode)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	info, statErr := f.Stat()
	if statErr == nil && !wider(info.Mode().Perm(), mode) {
		return nil
	}
	return fmt.Errorf("%w; its file system shows everybody's files to all: mount it with umask=077", err)
}

// wider reports whether a mode lets group or others read or write who the other doesn't.
func wider(mode, than fs.FileMode) bool { return mode&^than&0o066 != 0 }

// SyncDir makes renames and creations in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// EncodeKey returns the key as PKCS #8 PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

// EncodeCertificates returns the certificates as PEM, in that order.
func EncodeCertificates(certs ...*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, c := range certs {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: c.Raw}))
	}
	return b.Bytes()
}

// EncodeCSR returns a PKCS #10 request as PEM.
func EncodeCSR(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: der})
}

// WriteKey writes the key with mode 0600.
func WriteKey(path string, key crypto.Signer) error {
	data, err := EncodeKey(key)
	if err != nil {
		return err
	}
	return Write(path, data, 0o600)
}

// WriteCertificates writes the certificates, in that order, with mode 0644.
func WriteCertificates(path string, certs ...*x509.Certificate) error {
	return Write(path, EncodeCertificates(certs...), 0o644)
}

// WriteCSR writes the request with mode 0644.
func WriteCSR(path string, der []byte) error {
	return Write(path, EncodeCSR(der), 0o644)
}

// ReadKey reads an ECDSA key (PKCS #8 or SEC 1). A file that group or others may
// read or write is refused: its key must be taken as known to them.
func ReadKey(path string) (crypto.Signer, error) {
	blocks, mode, err := read(path)
	if err != nil {
		return nil, err
	}
	if mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 on it, or replace the key if others had access", path, mode)
	}
	return key(path, blocks)
}

// ParseKey is ReadKey of what was read from path already.
func ParseKey(path string, data []byte) (crypto.Signer, error) {
	blocks, err := decode(path, data)
	if err != nil {
		return nil, err
	}
	return key(path, blocks)
}

// key returns the first key of a file.
func key(path string, blocks []*pem.Block) (crypto.Signer, error) {
	for _, b := range blocks {
		switch b.Type {
		case typeKey:
			key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s holds no usable private key: %w", path, err)
			}
			ec, ok := key.(*ecdsa.PrivateKey)
			if !ok {
				return nil, fmt.Errorf("%s holds a key of type %T, an ECDSA key on P-256 or P-384 is required", path, key)
			}
			return ec, nil
		case typeECKey:
			key, err := x509.ParseECPrivateKey(b.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s holds no usable private key: %w", path, err)
			}
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s holds no PEM block %q", path, typeKey)
}

// ReadCertificates reads every certificate of a file, in order; at least one.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	blocks, _, err := read(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		if b.Type != typeCertificate {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in %s is malformed: %w", len(certs)+1, path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no PEM block %q", path, typeCertificate)
	}
	return certs, nil
}

// ReadCSR reads the DER of the first certificate request of a file. Its contents are
// unverified: see issuance.ParseCSR.
func ReadCSR(path string) ([]byte, error) {
	blocks, _, err := read(path)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		if b.Type == typeRequest {
			return b.Bytes, nil
		}
	}
	return nil, fmt.Errorf("%s holds no PEM block %q", path, typeRequest)
}

func read(path string) ([]*pem.Block, fs.FileMode, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe with no writer would hold us up
	if err != nil {
		return nil, 0, err // os.PathError names the file and what was tried
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, 0, err
	}
	if len(data) > maxFileSize {
		return nil, 0, fmt.Errorf("%s is larger than %d bytes, which no key, certificate or request is", path, maxFileSize)
	}
	blocks, err := decode(path, data)
	return blocks, info.Mode().Perm(), err
}

// decode returns the PEM blocks of a file's contents, at least one.
func decode(path string, data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		blocks = append(blocks, b)
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("%s is not a PEM file", path)
	}
	if begun := bytes.Count(data, []byte("-----BEGIN ")); begun != len(blocks) { // pem.Decode skips what it can't read
		return nil, fmt.Errorf("%s is damaged: of its %d PEM blocks only %d can be read", path, begun, len(blocks))
	}
	return blocks, nil
}
