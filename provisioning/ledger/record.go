package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// State is how far a device has come.
type State string

// The states, in order. None is ever left for an earlier one, but that an order to
// replace a certificate begins again with Reserved.
const (
	Reserved  State = "reserved"  // serial number and key are fixed, nothing was signed
	Issued    State = "issued"    // the certificate is stored and may have been delivered
	Delivered State = "delivered" // the certificate has been handed over
	Exported  State = "exported"  // a numbered manifest names the certificate
)

// Protection is how a device's private key is kept. As an order's demand, "" and
// AnyProtection are the same.
type Protection string

// The protections.
const (
	TPM           Protection = "tpm"      // in a TPM that was made to prove it
	Software      Protection = "software" // in a file
	AnyProtection Protection = "any"      // an order's demand only
)

// Valid reports whether p is one of the three words, or "".
func (p Protection) Valid() bool {
	switch p {
	case TPM, Software, AnyProtection, "":
		return true
	}
	return false
}

// admits reports whether a key kept as has will do for the demand.
func (p Protection) admits(has Protection) bool { return p == "" || p == AnyProtection || p == has }

// Attributes are what an order says of its devices beyond their IDs.
type Attributes struct {
	Model      string            `json:"model,omitempty"`      // for the manifest
	OU         []string          `json:"ou,omitempty"`         // into the certificate
	Labels     map[string]string `json:"labels,omitempty"`     // for the manifest
	Protection Protection        `json:"protection,omitempty"` // demanded of the key
	NotAfter   time.Time         `json:"not_after,omitzero"`   // the certificates' last moment; zero: the profile's
}

// Record is what the ledger knows of one device: of its newest certificate, or the one
// under way.
type Record struct {
	ID         string            `json:"id"`
	State      State             `json:"state"`
	Serial     string            `json:"serial"` // lower-case hex, as identity.SerialString
	KeyHash    string            `json:"key"`    // HashKey of its public key
	Model      string            `json:"model,omitempty"`
	OU         []string          `json:"ou,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Protection Protection        `json:"protection,omitempty"` // that the key has
	EK         string            `json:"ek,omitempty"`         // SHA-256 of the TPM's endorsement key, lower-case hex
	NotAfter   time.Time         `json:"not_after,omitzero"`   // that its order demands
	Out        string            `json:"out,omitempty"`        // the folder it was or is to be delivered to; "": over the network
	Order      uint64            `json:"order,omitempty"`      // 0: issued before there were orders
	Claim      string            `json:"claim,omitempty"`      // fingerprint of the claim certificate it came with
	Sequence   uint64            `json:"sequence,omitempty"`   // order of issue, from 1; 0 while reserved
	Manifest   uint64            `json:"manifest,omitempty"`   // set on reading, from the manifests; 0: in none yet
	Supersedes string            `json:"supersedes,omitempty"` // serial number of the certificate this one replaces
	Replaced   uint64            `json:"replaced,omitempty"`   // and that one's sequence
	Reason     string            `json:"reason,omitempty"`     // why it is replaced

	ReservedAt  time.Time `json:"reserved_at"`
	IssuedAt    time.Time `json:"issued_at,omitzero"`
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
}

// Attributes returns what the record has of its order.
func (r Record) Attributes() Attributes {
	return Attributes{Model: r.Model, OU: r.OU, Labels: r.Labels, Protection: r.Protection, NotAfter: r.NotAfter}
}

// HashKey returns the name the ledger has for a public key: the SHA-256 of its
// SubjectPublicKeyInfo in DER, in lower-case hex.
func HashKey(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Device returns the record of that ID and, once it is issued, its certificate in DER.
// An unknown ID is ErrNotFound.
func (l *Ledger) Device(id string) (Record, []byte, error) {
	var record Record
	var der []byte
	err := l.view(func(tx *bbolt.Tx) error {
		known, err := load(tx.Bucket(devicesBucket), []byte(id), &record)
		if err != nil {
			return err
		}
		if !known {
			return fmt.Errorf("device %s is %w", id, ErrNotFound)
		}
		if record.Sequence > 0 {
			der = append(der, tx.Bucket(certificatesBucket).Get(number(record.Sequence))...)
		}
		return exported(tx, &record)
	})
	return record, der, err
}

// KeyOwner returns the ID that has, or had, that key, or "" if none has.
func (l *Ledger) KeyOwner(keyHash string) (string, error) {
	var owner string
	err := l.view(func(tx *bbolt.Tx) error {
		owner = string(tx.Bucket(keysBucket).Get([]byte(keyHash)))
		return nil
	})
	return owner, err
}

// Devices calls visit for every record in the order of the IDs, until it returns an
// error, and returns that error.
func (l *Ledger) Devices(visit func(Record) error) error {
	return l.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(devicesBucket).ForEach(func(id, data []byte) error {
			var record Record
			if err := json.Unmarshal(data, &record); err != nil {
				return damaged(id, err)
			}
			if err := exported(tx, &record); err != nil {
				return err
			}
			return visit(record)
		})
	})
}

// Count returns how many IDs were ever reserved: what the authority's budget counts.
func (l *Ledger) Count() (int, error) {
	var n int
	err := l.view(func(tx *bbolt.Tx) error {
		n = int(decode(tx.Bucket(metaBucket).Get(countKey)))
		return nil
	})
	return n, err
}

// exported sets the manifest number of a record: that of the first manifest that ends
// at or after its sequence.
func exported(tx *bbolt.Tx, record *Record) error {
	if record.Sequence == 0 {
		return nil
	}
	last, n := tx.Bucket(exportsBucket).Cursor().Seek(number(record.Sequence))
	if last == nil {
		return nil
	}
	if len(n) != 8 {
		return fmt.Errorf("manifest entry %x is damaged: restore the ledger from a backup", last)
	}
	record.State, record.Manifest = Exported, decode(n)
	return nil
}

// Certificate returns the certificate of that sequence in DER, nil if there is none.
func (l *Ledger) Certificate(sequence uint64) ([]byte, error) {
	var der []byte
	err := l.view(func(tx *bbolt.Tx) error {
		if data := tx.Bucket(certificatesBucket).Get(number(sequence)); data != nil {
			der = append(der, data...)
		}
		return nil
	})
	return der, err
}
