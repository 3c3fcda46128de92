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
	record       []byte // JSON; there when encodedDevices.records has ended
	facts        []byte
	endorsement  []byte // key in bucket endorsements; nil: no TPM is known for it
	certificates []encodedCertificate
}

type encodedCertificate struct {
	key, der []byte // der is nil if the record came without, and what is stored stays
	serial   []byte // key in bucket serials
	owner    []byte
}

// encodedDevices is records as they go to disk, in order of ID. Whoever has made it waits
// for records.
type encodedDevices struct {
	list    []encodedDevice
	records errgroup.Group // makes the JSON, while what else there is gets written
}

// encodeDevices turns records into octets, on all processors: a large manifest's would
// keep the writer busy for as long as its transaction otherwise.
func encodeDevices(devices []registry.Device) (*encodedDevices, error) {
	encoded := &encodedDevices{list: make([]encodedDevice, len(devices))}
	list := encoded.list
	for i := range devices {
		list[i].device = &devices[i]
	}
	// Later records of one ID win.
	slices.SortStableFunc(list, func(a, b encodedDevice) int { return strings.Compare(a.device.ID, b.device.ID) })
	if err := inChunks(len(list), func(i int) error { return list[i].encode() }); err != nil {
		return nil, err
	}
	encoded.records.Go(func() error { return inChunks(len(list), func(i int) error { return list[i].encodeRecord() }) })
	return encoded, nil
}

// inChunks calls do with 0 to n-1, many of them on all processors, and returns an error
// of one that failed, if one did.
func inChunks(n int, do func(i int) error) error {
	const chunk = 256
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for start := 0; start < n; start += chunk {
		part := func() error {
			for i := start; i < min(start+chunk, n); i++ {
				if err := do(i); err != nil {
					return err
				}
			}
			return nil
		}
		if n <= chunk { // not worth a goroutine
			return part()
		}
		workers.Go(part)
	}
	return workers.Wait()
}

// encode makes everything but the record itself.
func (e *encodedDevice) encode() error {
	d := e.device
	if d.ID == "" || !d.State.Valid() {
		return fmt.Errorf("device record %q has the state %q", d.ID, d.State)
	}
	e.facts = encodeFacts(d)
	var err error
	if e.endorsement, err = endorsementKey(d.EK); err != nil {
		return fmt.Errorf("device record %s: %w", d.ID, err)
	}
	e.certificates = make([]encodedCertificate, len(d.Certificates))
	for i, c := range d.Certificates {
		e.certificates[i] = encodedCertificate{
			key: certificateKey(d.ID, c.Fingerprint), der: c.DER,
			serial: serialKey(c.Issuer, c.Serial), owner: encodeOwner(d.ID, c),
		}
	}
	return nil
}

func (e *encodedDevice) encodeRecord() (err error) {
	bare := *e.device
	bare.FirstSeen, bare.LastSeen = time.Time{}, time.Time{} // bucket seen owns them
	bare.Certificates = slices.Clone(bare.Certificates)
	for i := range bare.Certificates {
		bare.Certificates[i].DER, bare.Certificates[i].Standing = nil, ""
	}
	if e.record, err = json.Marshal(&bare); err != nil {
		return fmt.Errorf("encode record of device %s: %w", bare.ID, err)
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
func (s *Store) putDevices(tx *bbolt.Tx, encoded *encodedDevices) error {
	list := encoded.list
	if err := s.putSerials(tx, list); err != nil {
		return err
	}
	if err := s.putEndorsements(tx, list); err != nil {
		return err
	}
	devices, facts, certificates := tx.Bucket(bucketDevices), tx.Bucket(bucketFacts), tx.Bucket(bucketCertificates)
	if len(list) > 1 {
		// A manifest's records come in order of ID and fill their pages.
		devices.FillPercent, facts.FillPercent, certificates.FillPercent = 0.9, 0.9, 0.9
	}
	for i := range list {
		e := &list[i]
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
	if err := encoded.records.Wait(); err != nil {
		return err
	}
	for i := range list {
		if err := devices.Put([]byte(list[i].device.ID), list[i].record); err != nil {
			return err
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
	claims := make([]claim, 0, len(encoded))
	for i := range encoded {
		e := &encoded[i]
		for j := range e.certificates {
			claims = append(claims, claim{&e.certificates[j], e.device, &e.device.Certificates[j]})
		}
	}
	// One serial number twice is refused, or the same device's: any order of the two will do.
	slices.SortFunc(claims, func(a, b claim) int { return bytes.Compare(a.serial, b.serial) })
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
