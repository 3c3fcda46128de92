package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// A value in bucket facts decides who is admitted, and bbolt keeps no checksum:
//
//	state (1)  created, changed, not after (8 each, Unix nanoseconds, 0: none)
//	count (1)  that many SHA-256 of usable certificates  attributes  CRC-32C of key and value (4)
//
// encodeFacts and decodeFacts are its only writer and reader.
const (
	factsHead     = 1 + 3*8 + 1
	factsChecksum = 4
)

// stateCodes gives each state its octet. A new state goes to the end.
var stateCodes = []registry.State{
	"", registry.StateRegistered, registry.StateActive, registry.StateSuspended,
	registry.StateRevoked, registry.StateRetired, registry.StateReplaced, registry.StateQuarantined,
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeFacts(d *registry.Device) []byte {
	f := d.Facts()
	f.Usable = f.Usable[max(0, len(f.Usable)-255):]
	value := make([]byte, 0, factsHead+len(f.Usable)*32+128)
	value = append(value, byte(slices.Index(stateCodes, f.State)))
	for _, t := range []time.Time{f.Created, f.Changed, f.NotAfter} {
		value = binary.BigEndian.AppendUint64(value, nanoseconds(t))
	}
	value = append(value, byte(len(f.Usable)))
	for _, sum := range f.Usable {
		value = append(value, sum[:]...)
	}
	value = f.Attributes.Append(value)
	return binary.BigEndian.AppendUint32(value, factsSum([]byte(d.ID), value))
}

func factsSum(id, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(id, castagnoli), castagnoli, value)
}

func nanoseconds(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

func fromNanoseconds(b []byte) time.Time {
	n := binary.BigEndian.Uint64(b)
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

var errFacts = errors.New("its facts are malformed")

// factsReader decodes facts and lets devices with equal attributes share them.
type factsReader struct {
	known map[string]*registry.Attributes
}

// maxShared bounds how many different attributes one walk remembers.
const maxShared = 1 << 16

func (r *factsReader) attributes(encoded []byte) (*registry.Attributes, error) {
	if a, ok := r.known[string(encoded)]; ok {
		return a, nil
	}
	a, err := registry.ParseAttributes(encoded)
	if err != nil {
		return nil, err
	}
	if r.known != nil && len(r.known) < maxShared {
		r.known[string(encoded)] = &a
	}
	return &a, nil
}

// decode reads one value into f, whose Usable is used again.
func (r *factsReader) decode(id, value []byte, f *registry.Facts) error {
	if len(value) < factsHead+factsChecksum {
		return errFacts
	}
	body, sum := value[:len(value)-factsChecksum], value[len(value)-factsChecksum:]
	if factsSum(id, body) != binary.BigEndian.Uint32(sum) {
		return errors.New("the checksum of its facts is wrong")
	}
	if int(body[0]) >= len(stateCodes) || body[0] == 0 {
		return errFacts
	}
	count := int(body[factsHead-1])
	if len(body) < factsHead+32*count {
		return errFacts
	}
	f.ID, f.State = string(id), stateCodes[body[0]]
	f.Created, f.Changed, f.NotAfter = fromNanoseconds(body[1:]), fromNanoseconds(body[9:]), fromNanoseconds(body[17:])
	f.Usable = f.Usable[:0]
	for i := range count {
		f.Usable = append(f.Usable, registry.Fingerprint(body[factsHead+32*i:]))
	}
	var err error
	f.Attributes, err = r.attributes(body[factsHead+32*count:])
	return err
}

// Attributes returns the attributes of a device, in a microsecond or two, or an error
// that matches registry.ErrUnknown.
func (s *Store) Attributes(ctx context.Context, id string) (a registry.Attributes, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketFacts).Get([]byte(id))
		if value == nil {
			return registry.ErrUnknown
		}
		var reader factsReader
		var f registry.Facts
		if err := reader.decode([]byte(id), value, &f); err != nil {
			return s.damaged(fmt.Errorf("device %q: %w", id, err))
		}
		a = *f.Attributes
		return nil
	})
	return a, err
}

// Facts calls visit with the facts of every device after that ID, in order of ID, until
// it returns false or an error comes in the way. What it is called with is good until
// it returns, but for the ID and the attributes. It holds one read transaction, so
// visit must be quick.
func (s *Store) Facts(ctx context.Context, after string, visit func(*registry.Facts) bool) error {
	return s.view(ctx, func(tx *bbolt.Tx) error {
		reader := factsReader{known: make(map[string]*registry.Attributes)}
		var f registry.Facts
		c, seen := tx.Bucket(bucketFacts).Cursor(), tx.Bucket(bucketSeen).Cursor()
		sk, sv := seekAfter(seen, after)
		n := 0
		for k, v := seekAfter(c, after); k != nil; k, v = c.Next() {
			if n++; n%4096 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := reader.decode(k, v, &f); err != nil {
				return s.damaged(fmt.Errorf("device %q: %w", k, err))
			}
			for sk != nil && bytes.Compare(sk, k) < 0 {
				sk, sv = seen.Next()
			}
			f.FirstSeen, f.LastSeen = time.Time{}, time.Time{}
			if bytes.Equal(sk, k) {
				f.FirstSeen, f.LastSeen, _ = sighting(sv)
			}
			if !visit(&f) {
				return nil
			}
		}
		return nil
	})
}
