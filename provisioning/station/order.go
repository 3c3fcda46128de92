package station

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// ImportOrder opens the order in a file of CSV or JSON under that name or, if it is "",
// the one in the file, else the file's. The same file again is the same order: nothing
// happens, and repeated says so.
func (s *Station) ImportOrder(file, name string) (o ledger.Order, repeated bool, err error) {
	data, err := readOrder(file)
	if err != nil {
		return o, false, err
	}
	own, lines, err := parseOrder(data)
	if err != nil {
		return o, false, fmt.Errorf("%s: %w", file, err)
	}
	if name == "" {
		name = own
	}
	if name == "" {
		name = strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
	}
	if err := identity.ValidID(name); err != nil {
		return o, false, errorf(ErrInvalid, "an order can't have the name %.80q, give another with --name: %w", name, err)
	}
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	o, err = s.ledger.OrderNamed(name)
	if err == nil && o.Digest == digest {
		return o, true, nil
	}
	if err == nil {
		return o, false, fmt.Errorf("there is an order %s already, with other devices: give this one another --name", name)
	}
	if !errors.Is(err, ledger.ErrNotFound) {
		return o, false, err
	}
	a, err := s.valid()
	if err != nil {
		return o, false, err
	}
	if err := s.affordable(a, lines); err != nil {
		return o, false, err
	}
	o, err = s.ledger.OpenOrder(s.now(), ledger.Order{Kind: ledger.Imported, Name: name, Digest: digest}, lines...)
	return o, false, err
}

// affordable refuses an order that the station could never fulfil: beyond its budget,
// or of certificates that end before they begin.
func (s *Station) affordable(a *authority, lines []ledger.Line) error {
	made, err := s.ledger.Count()
	if err != nil {
		return err
	}
	for _, line := range lines {
		if made += line.Count; made > a.maxDevices {
			return errorf(ErrDenied, "%w by this order: the station's authority is for %d devices, with this order it would make %d; have it renewed with a greater `hub station authorize --max-devices`", ledger.ErrBudget, a.maxDevices, made)
		}
		if !line.NotAfter.IsZero() && !line.NotAfter.After(s.now()) {
			return errorf(ErrInvalid, "the order's certificates would have ended on %s, and this machine's clock says %s", stamp(line.NotAfter), stamp(s.now()))
		}
	}
	return nil
}

func readOrder(file string) ([]byte, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(ErrNotFound, "there is no file %s", file)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxOrderFile+1))
}

// FindOrder returns the order of that name or number.
func (s *Station) FindOrder(ref string) (ledger.Order, error) {
	o, err := s.ledger.OrderNamed(ref)
	if errors.Is(err, ledger.ErrNotFound) {
		if n, bad := strconv.ParseUint(ref, 10, 64); bad == nil {
			o, err = s.ledger.Order(n)
		}
	}
	if errors.Is(err, ledger.ErrNotFound) {
		return o, errorf(ErrNotFound, "the station has no order %.80q: `provisioning order list` shows them", ref)
	}
	return o, err
}

// CloseOrder ends an order, by name or number. Devices of it that were not issued won't
// be, and their IDs are free for other orders.
func (s *Station) CloseOrder(ref string) (ledger.Order, error) {
	o, err := s.FindOrder(ref)
	if err != nil {
		return o, err
	}
	return s.ledger.CloseOrder(s.now(), o.Number)
}
