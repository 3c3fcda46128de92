package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
)

// maxAllowList bounds a list of endorsement keys in bytes: half a million boards.
const maxAllowList = 32 << 20

// loadAttestation returns what decides about boards' TPMs, or nil if neither files of
// manufacturers' CA certificates nor a list of endorsement keys are given.
func loadAttestation(cas []string, allow string) (*attestation.Verifier, error) {
	if len(cas) == 0 && allow == "" {
		return nil, nil
	}
	var config attestation.Config
	for _, path := range cas {
		certs, err := readCAs(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, command.WithCode(command.NotFound, err)
		}
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			if bytes.Equal(c.RawSubject, c.RawIssuer) {
				config.Roots = append(config.Roots, c)
			} else {
				config.Intermediates = append(config.Intermediates, c)
			}
		}
	}
	if allow != "" {
		keys, err := readAllowList(allow)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, command.WithCode(command.NotFound, err)
		}
		if err != nil {
			return nil, err
		}
		config.Allowed = func(ek [sha256.Size]byte) bool { return keys[ek] }
	}
	return attestation.NewVerifier(config)
}

// readCAs reads a PEM file, or every *.pem and *.crt of a folder.
func readCAs(path string) ([]*x509.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return pemfile.ReadCertificates(path)
	}
	var all []*x509.Certificate
	for _, pattern := range []string{"*.pem", "*.crt"} {
		files, err := filepath.Glob(filepath.Join(path, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			certs, err := pemfile.ReadCertificates(f)
			if err != nil {
				return nil, err
			}
			all = append(all, certs...)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no *.pem or *.crt in it", path)
	}
	return all, nil
}

// readAllowList reads one SHA-256 of an endorsement key a line, in hex. What follows a
// blank or # is for the reader.
func readAllowList(path string) (map[[sha256.Size]byte]bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	keys := make(map[[sha256.Size]byte]bool)
	lines := bufio.NewScanner(io.LimitReader(f, maxAllowList))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		hash, err := hex.DecodeString(fields[0])
		if err != nil || len(hash) != sha256.Size {
			return nil, fmt.Errorf("%s, line %d: it doesn't begin with the SHA-256 of an endorsement key, 64 hexadecimal digits", path, n)
		}
		keys[[sha256.Size]byte(hash)] = true
	}
	return keys, lines.Err()
}
