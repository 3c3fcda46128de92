package keystore

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// maxChainFile bounds what is read of the file of a Chain.
const maxChainFile = 1024

// Chain remembers in a file that a hub needs of this device's chain its leaf alone.
// It holds for one hub and one certificate, and there is nothing in it to keep secret:
// without it the device presents its whole chain, which always works, and a device
// that presents too little is refused once and presents the whole chain again.
//
// A file that can't be read or written is no error: what the hub says is then
// remembered until the process ends. It is not safe for concurrent use.
type Chain struct {
	path, hub string
	log       *slog.Logger
	known     string // fingerprint of the certificate whose leaf suffices, or empty
}

// chainFile is what the file holds, as JSON.
type chainFile struct {
	Hub  string `json:"hub"`  // HOST:PORT as dialled
	Leaf string `json:"leaf"` // fingerprint of the certificate that needs no issuer's beside it
}

// OpenChain reads the file at path for the hub that is dialled as HOST:PORT. Log gets
// a line when the file is damaged or can't be written.
func OpenChain(path, hub string, log *slog.Logger) *Chain {
	c := &Chain{path: path, hub: hub, log: log}
	f, err := readChain(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		log.Warn("the whole certificate chain is presented until the hub says again that the leaf will do", "file", path, "err", err)
	case f.Hub == hub:
		c.known = f.Leaf
	}
	return c
}

// LeafSuffices reports whether the hub has said so of this certificate.
func (c *Chain) LeafSuffices(leaf *x509.Certificate) bool {
	return c.known != "" && c.known == identity.Fingerprint(leaf)
}

// Learn keeps that the hub has said so of this certificate.
func (c *Chain) Learn(leaf *x509.Certificate) {
	c.known = identity.Fingerprint(leaf)
	data, err := json.Marshal(chainFile{Hub: c.hub, Leaf: c.known})
	if err == nil {
		err = pemfile.Write(c.path, append(data, '\n'), 0o644)
	}
	if err != nil {
		c.log.Warn("that the hub needs the leaf certificate alone is remembered only until the agent stops", "file", c.path, "err", err)
	}
}

// Forget drops what was learnt. A file that stays, because it can't be removed, costs
// one refused handshake after the next start.
func (c *Chain) Forget() {
	c.known = ""
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("the file with what the hub needs of the certificate chain can't be removed", "file", c.path, "err", err)
	}
}

func readChain(path string) (chainFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return chainFile{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxChainFile+1))
	if err != nil {
		return chainFile{}, err
	}
	return parseChain(data)
}

func parseChain(data []byte) (chainFile, error) {
	if len(data) > maxChainFile {
		return chainFile{}, fmt.Errorf("more than %d bytes", maxChainFile)
	}
	var f chainFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return chainFile{}, fmt.Errorf("the file is damaged: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || f.Hub == "" || f.Leaf == "" {
		return chainFile{}, errors.New("the file is damaged")
	}
	return f, nil
}
