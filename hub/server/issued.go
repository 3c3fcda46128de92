package server

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/fleet"
)

// issued has what the journal of the hub's CAs lists. It reads what was appended since.
type issued struct {
	path string

	mu    sync.Mutex // guards what follows
	read  int64      // octets, whole lines
	known map[issuedKey]struct{}
}

// issuedKey names a certificate. The issuer of one from before there was a second CA is
// not on record, and empty.
type issuedKey struct{ issuer, serial string }

func (i *issued) has(issuer *x509.Certificate, serial string) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.refresh(); err != nil {
		return false, err
	}
	_, ok := i.known[issuedKey{fleet.IssuerID(issuer), serial}]
	if !ok {
		_, ok = i.known[issuedKey{"", serial}]
	}
	return ok, nil
}

func (i *issued) refresh() error {
	f, err := os.Open(i.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() == i.read {
		return err
	}
	if i.known == nil || info.Size() < i.read {
		i.known, i.read = make(map[issuedKey]struct{}), 0
	}
	for lines := bufio.NewReader(io.NewSectionReader(f, i.read, info.Size()-i.read)); ; {
		text, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // a line that is being written is read the next time
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", i.path, err)
		}
		i.read += int64(len(text))
		var line authority.Line
		if json.Unmarshal(text, &line) == nil { // else a killed command left it, and handed nothing out
			i.known[issuedKey{line.Issuer, line.Serial}] = struct{}{}
		}
	}
}
