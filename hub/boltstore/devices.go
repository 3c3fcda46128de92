package boltstore

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// encodedDevice is a record as it goes to disk.
type encodedDevice struct {
	device       *registry.Device
	record       []byte
	facts        []byte
	certificates []encodedCertificate
}

type encodedCertificate struct {
	key, der []byte // der is nil if the record came without, and what is stored stays
	serial   []byte // key in bucket serials
	owner    []byte
}

// encodeDevices turns records into octets, on all processors: a large manifest's would
// keep the writer busy for as long as its transaction otherwise.
func encodeDevices(devices []registry.Device) ([]encodedDevice, error) {
	encoded := make([]encodedDevice, len(devices))
	const chunk = 256
	if len(devices) <= chunk {
		for i := range devices {
			if err := encoded[i].encode(&devices[i]); err != nil {
				return nil, err
			}
		}
		return encoded, nil
	}
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for start := 0; start < len(devices); start += chunk {
		workers.Go(func() error {
			for i := start; i < min(start+chunk, len(devices)); i++ {
				if err := encoded[i].encode(&devices[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return encoded, workers.Wait()
}

func (e *encodedDevice) encode(d *registry.Device) error {
	if d.ID == "" || !d.State.Valid() {
		return fmt.Errorf("device record %q has the state %q", d.ID, d.State)
	}
	e.device = d
	e.facts = encodeFacts(d)
	bare := *d
	bare.FirstSeen, bare.LastSeen = time.Time{}, time.Time{} // bucket seen owns them
	bare.Certificates = make([]registry.Certificate, len(d.Certificates))
	e.certificates = make([]encodedCertificate, len(d.Certificates))
	for i, c := range d.Certificates {
		e.certificates[i] = encodedCertificate{
			key: certificateKey(d.ID, c.Fingerprint), der: c.DER,
			serial: serialKey(c.Issuer, c.Serial), owner: encodeOwner(d.ID, c),
		}
		c.DER, c.Standing = nil, ""
		bare.Certificates[i] = c
	}
	var err error
	if e.record, err = json.Marshal(bare); err != nil {
		return fmt.Errorf("encode record of device %s: %w", d.ID, err)
	}
	return nil
}

// certificateKey is the key of a certificate's DER. An ID has no zero octet.
func certificateKey(id, fingerprint string) []byte {
	key := append(append(make([]byte, 0, len(id)+33), id...), 0)
	if sum, err := hex.DecodeString(fingerprint); err == nil {
		return append(key, sum...)
	}
	return append(key, fingerprint...)
}

// putDevices writes records and what goes with them, each bucket in the order of its
// keys: a bucket that is filled in another order moves what it has for each key.
func (s *Store) putDevices(tx *bbolt.Tx, encoded []encodedDevice) error {
	if err := s.putSerials(tx, encoded); err != nil {
		return err
	}
	devices, facts, certificates := tx.Bucket(bucketDevices), tx.Bucket(bucketFacts), tx.Bucket(bucketCertificates)
	if len(encoded) > 1 {
		// Later records of one ID win.
		slices.SortStableFunc(encoded, func(a, b encodedDevice) int { return strings.Compare(a.device.ID, b.device.ID) })
		// A manifest's records come in order of ID and fill their pages.
		devices.FillPercent, facts.FillPercent, certificates.FillPercent = 0.9, 0.9, 0.9
	}
	for i := range encoded {
		e := &encoded[i]
		if err := devices.Put([]byte(e.device.ID), e.record); err != nil {
			return err
		}
		if err := facts.Put([]byte(e.device.ID), e.facts); err != nil {
			return err
		}
		for _, c := range e.certificates {
			if c.der == nil {
				continue
			}
			if err := certificates.Put(c.key, c.der); err != nil {
				return err
			}
		}
	}
	return nil
}

// putSerials writes whose each certificate is, unless it is another device's.
func (s *Store) putSerials(tx *bbolt.Tx, encoded []encodedDevice) error {
	type claim struct {
		*encodedCertificate
		device      *registry.Device
		certificate *registry.Certificate
	}
	var claims []claim
	for i := range encoded {
		e := &encoded[i]
		for j := range e.certificates {
			claims = append(claims, claim{&e.certificates[j], e.device, &e.device.Certificates[j]})
		}
	}
	slices.SortStableFunc(claims, func(a, b claim) int { return bytes.Compare(a.serial, b.serial) })
	serials := tx.Bucket(bucketSerials)
	for _, c := range claims {
		if value := serials.Get(c.serial); value != nil {
			owner, err := decodeOwner(value)
			if err != nil {
				return s.damaged(fmt.Errorf("owner of serial number %s: %w", c.certificate.Key(), err))
			}
			if owner.Device != c.device.ID {
				return &registry.ConflictError{ID: c.device.ID, Owner: owner.Device, Serial: c.certificate.Serial}
			}
		}
		if err := serials.Put(c.serial, c.owner); err != nil {
			return err
		}
	}
	return nil
}
