package boltstore

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// bucketEndorsements is made with the first device that has a TPM: a store that was
// written before there were any is complete without it.
var bucketEndorsements = []byte("endorsements")

// endorsementKey is the key of a TPM in bucket endorsements, nil for none: the 32 octets
// of the SHA-256 of its endorsement key.
func endorsementKey(ek string) ([]byte, error) {
	if ek == "" {
		return nil, nil
	}
	sum, err := hex.DecodeString(ek)
	if err != nil || len(sum) != registry.EKSize || hex.EncodeToString(sum) != ek {
		return nil, fmt.Errorf("its endorsement key %.80q is no SHA-256 in lower-case hex", ek)
	}
	return sum, nil
}

// putEndorsements writes whose TPM is whose, unless it is another device's already. What
// is written stays, whatever becomes of the device: a TPM is one device's for life. The
// error has every claim that is refused, so that a manifest is mended at once.
func (s *Store) putEndorsements(tx *bbolt.Tx, encoded []encodedDevice) error {
	var claims []*encodedDevice
	for i := range encoded {
		if encoded[i].endorsement != nil {
			claims = append(claims, &encoded[i])
		}
	}
	if len(claims) == 0 {
		return nil
	}
	bucket, err := tx.CreateBucketIfNotExists(bucketEndorsements)
	if err != nil {
		return err
	}
	slices.SortStableFunc(claims, func(a, b *encodedDevice) int { return bytes.Compare(a.endorsement, b.endorsement) })
	var refused conflicts
	for _, c := range claims {
		switch owner := bucket.Get(c.endorsement); {
		case owner == nil:
			if err := bucket.Put(c.endorsement, []byte(c.device.ID)); err != nil {
				return err
			}
		case string(owner) != c.device.ID:
			refused = append(refused, &registry.ConflictError{ID: c.device.ID, Owner: string(owner), EK: c.device.EK})
		}
	}
	if len(refused) == 0 {
		return nil
	}
	slices.SortFunc(refused, func(a, b *registry.ConflictError) int { return strings.Compare(a.ID, b.ID) })
	return refused
}

// namedConflicts is how many of them an error has in words.
const namedConflicts = 10

// conflicts are the claims of one commit that were refused, at least one, by ID.
type conflicts []*registry.ConflictError

// Error names the first of them, and says how many more there are.
func (c conflicts) Error() string {
	if len(c) == 1 {
		return c[0].Error()
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%d TPMs are other devices', for life:", len(c))
	for i, e := range c[:min(len(c), namedConflicts)] {
		if i > 0 {
			s.WriteByte(',')
		}
		fmt.Fprintf(&s, " %s's (endorsement key %.16s…) is %s's", e.ID, e.EK, e.Owner)
	}
	if more := len(c) - namedConflicts; more > 0 {
		fmt.Fprintf(&s, ", and %d more", more)
	}
	s.WriteString("; enrol those boards under the IDs that have their TPMs, after `hub device reinstate ID` of those that were cut off for good")
	return s.String()
}

// Unwrap returns them for errors.As.
func (c conflicts) Unwrap() []error {
	list := make([]error, len(c))
	for i, e := range c {
		list[i] = e
	}
	return list
}

// Endorsed returns the ID of the device that has the TPM of that endorsement key, by its
// SHA-256 in lower-case hex, or an error that matches registry.ErrUnknown.
func (s *Store) Endorsed(ctx context.Context, ek string) (id string, err error) {
	key, err := endorsementKey(ek)
	if err != nil || key == nil {
		return "", registry.ErrUnknown
	}
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketEndorsements)
		if bucket == nil {
			return registry.ErrUnknown
		}
		owner := bucket.Get(key)
		if owner == nil {
			return registry.ErrUnknown
		}
		id = string(owner)
		return nil
	})
	return id, err
}
