package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
)

// serialKey is the key of a certificate in bucket serials: the issuer, with its length
// before it, and the serial number, each as octets where its text is hex.
func serialKey(issuer, serial string) []byte {
	i, s := pack(issuer), pack(serial)
	key := make([]byte, 0, 1+len(i)+len(s))
	key = append(key, byte(len(i)))
	return append(append(key, i...), s...)
}

// pack turns lower-case hex into 0 and its octets, and any other text into 1 and
// itself.
func pack(text string) []byte {
	if octets, err := hex.DecodeString(text); err == nil && hex.EncodeToString(octets) == text {
		return append([]byte{0}, octets...)
	}
	return append([]byte{1}, text...)
}

func unpack(packed []byte) string {
	switch {
	case len(packed) == 0:
		return ""
	case packed[0] == 0:
		return hex.EncodeToString(packed[1:])
	}
	return string(packed[1:])
}

// encodeOwner is the value in bucket serials: flags, then if it is revoked the time (64
// bit Unix nanoseconds) and the reason's number, then the device's ID.
func encodeOwner(device string, c registry.Certificate) []byte {
	value := make([]byte, 0, 10+len(device))
	var flags byte
	if !c.Superseded.IsZero() {
		flags |= ownerSuperseded
	}
	if !c.Revoked.IsZero() {
		flags |= ownerRevoked
	}
	value = append(value, flags)
	if flags&ownerRevoked != 0 {
		reason, err := revocation.ParseReason(c.Reason)
		if err != nil {
			reason = revocation.Unspecified
		}
		value = append(binary.BigEndian.AppendUint64(value, uint64(c.Revoked.UnixNano())), byte(reason))
	}
	return append(value, device...)
}

const (
	ownerRevoked    = 1 << 0
	ownerSuperseded = 1 << 1
)

var errOwner = errors.New("it is malformed")

func decodeOwner(value []byte) (o registry.Ownership, err error) {
	if len(value) < 2 {
		return o, errOwner
	}
	flags, rest := value[0], value[1:]
	o.Superseded = flags&ownerSuperseded != 0
	if flags&ownerRevoked != 0 {
		if len(rest) < 10 {
			return o, errOwner
		}
		o.Revoked = time.Unix(0, int64(binary.BigEndian.Uint64(rest))).UTC()
		o.Reason = revocation.Reason(rest[8]).String()
		rest = rest[9:]
	}
	o.Device = string(rest)
	return o, nil
}

// Owner returns whose a certificate is and whether it is revoked, by its issuer's
// subject key identifier and its serial number in lower-case hex, or an error that
// matches registry.ErrUnknown.
func (s *Store) Owner(ctx context.Context, issuer, serial string) (o registry.Ownership, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		value := tx.Bucket(bucketSerials).Get(serialKey(issuer, serial))
		if value == nil {
			return registry.ErrUnknown
		}
		if o, err = decodeOwner(value); err != nil {
			return s.damaged(err)
		}
		o.Issuer, o.Serial = issuer, serial
		return nil
	})
	return o, err
}

// Owners calls visit for every certificate of an issuer, in order of serial number's
// octets, until it returns false.
func (s *Store) Owners(ctx context.Context, issuer string, visit func(registry.Ownership) bool) error {
	prefix := serialKey(issuer, "")
	prefix = prefix[:len(prefix)-1] // an empty serial number has a mark of its own
	return s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketSerials).Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			o, err := decodeOwner(v)
			if err != nil {
				return s.damaged(err)
			}
			o.Issuer, o.Serial = issuer, unpack(k[len(prefix):])
			if !visit(o) {
				return nil
			}
		}
		return nil
	})
}
