package ledger

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// State is how far a device has come.
type State string

// The states, in order. None is ever left for an earlier one.
const (
	Reserved State = "reserved" // serial number and key are fixed, nothing was signed
	Issued   State = "issued"   // the certificate is stored and may have been delivered
	Exported State = "exported" // a numbered manifest names the certificate
)

// Record is what the ledger knows of one device.
type Record struct {
	ID         string    `json:"id"`
	State      State     `json:"state"`
	Serial     string    `json:"serial"` // lower-case hex, as identity.SerialString
	KeyHash    string    `json:"key"`    // HashKey of its public key
	Model      string    `json:"model,omitempty"`
	OU         []string  `json:"ou,omitempty"`
	Out        string    `json:"out"`                // the folder it was or is to be delivered to
	Batch      uint64    `json:"batch,omitempty"`    // 0: issued on its own
	Sequence   uint64    `json:"sequence,omitempty"` // order of issue, from 1; 0 while reserved
	Manifest   uint64    `json:"manifest,omitempty"` // set on reading, from the manifests; 0: in none yet
	ReservedAt time.Time `json:"reserved_at"`
	IssuedAt   time.Time `json:"issued_at,omitzero"`
}

// HashKey returns the name the ledger has for a public key: the SHA-256 of its
// SubjectPublicKeyInfo in DER, in lower-case hex.
func HashKey(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Reservation asks for an ID to be bound to a serial number and a key.
type Reservation struct {
	ID      string
	Serial  string // used only if the ID has none yet
	KeyHash string
	Model   string
	OU      []string
	Out     string
	Batch   uint64
}

// Reserve binds each ID to a serial number and a key, all of them or, on an error,
// none, and returns their records in the same order. An ID that was reserved before
// keeps its serial number and takes the new key, model, OU and folder: nothing has been
// signed for it that left the station. An ID that has a certificate, that an unfinished
// batch keeps for itself, or whose key another ID has, is refused.
func (l *Ledger) Reserve(now time.Time, reservations ...Reservation) ([]Record, error) {
	records := make([]Record, 0, len(reservations))
	err := l.update(func(tx *bbolt.Tx) error {
		open, err := openBatches(tx)
		if err != nil {
			return err
		}
		for _, r := range reservations {
			record, err := reserve(tx, open, r, now)
			if err != nil {
				return err
			}
			records = append(records, record)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return records, nil
}

// Check returns the error that Reserve would return, and changes nothing. A reservation
// without a key is checked for its ID alone.
func (l *Ledger) Check(reservations ...Reservation) error {
	return l.view(func(tx *bbolt.Tx) error {
		open, err := openBatches(tx)
		if err != nil {
			return err
		}
		for _, r := range reservations {
			if _, err := reservable(tx, open, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// reservable applies the rules and returns the reservation an ID has already, if any.
func reservable(tx *bbolt.Tx, open []Batch, r Reservation) (Record, error) {
	if owner := tx.Bucket(keysBucket).Get([]byte(r.KeyHash)); owner != nil && string(owner) != r.ID {
		return Record{}, fmt.Errorf("the key for %s is the key of %s: every device needs a key of its own", r.ID, owner)
	}
	for _, b := range open {
		if b.Number != r.Batch && b.Contains(r.ID) {
			return Record{}, fmt.Errorf("%s belongs to the unfinished batch %s: repeat that batch's command to finish it", r.ID, b)
		}
	}
	var record Record
	known, err := load(tx.Bucket(devicesBucket), []byte(r.ID), &record)
	if err != nil {
		return Record{}, err
	}
	if known && record.State != Reserved {
		return Record{}, fmt.Errorf("%s has a certificate already, serial number %s", r.ID, record.Serial)
	}
	return record, nil
}

func reserve(tx *bbolt.Tx, open []Batch, r Reservation, now time.Time) (Record, error) {
	devices, keys := tx.Bucket(devicesBucket), tx.Bucket(keysBucket)
	record, err := reservable(tx, open, r)
	if err != nil {
		return Record{}, err
	}
	if record.KeyHash != "" && record.KeyHash != r.KeyHash {
		if err := keys.Delete([]byte(record.KeyHash)); err != nil {
			return Record{}, err
		}
	}
	if record.Serial == "" {
		record = Record{ID: r.ID, State: Reserved, Serial: r.Serial, ReservedAt: now.UTC()}
	}
	record.KeyHash, record.Model, record.OU, record.Out, record.Batch = r.KeyHash, r.Model, r.OU, r.Out, r.Batch
	if err := keys.Put([]byte(r.KeyHash), []byte(r.ID)); err != nil {
		return Record{}, err
	}
	return record, store(devices, []byte(r.ID), record)
}

// Issue stores the certificates of reserved devices, in that order, all or none. Each
// certificate must have the serial number and key that were reserved for its common
// name. Only after Issue returned may a certificate leave the station.
func (l *Ledger) Issue(now time.Time, certs ...*x509.Certificate) error {
	return l.update(func(tx *bbolt.Tx) error {
		for _, c := range certs {
			if err := issue(tx, c, now); err != nil {
				return fmt.Errorf("issue %s: %w", c.Subject.CommonName, err)
			}
		}
		return nil
	})
}

func issue(tx *bbolt.Tx, cert *x509.Certificate, now time.Time) error {
	id := []byte(cert.Subject.CommonName)
	devices, sequences := tx.Bucket(devicesBucket), tx.Bucket(issuedBucket)
	var record Record
	known, err := load(devices, id, &record)
	if err != nil {
		return err
	}
	serial := hex.EncodeToString(cert.SerialNumber.Bytes())
	if !known || record.State != Reserved || record.Serial != serial || record.KeyHash != HashKey(cert.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("serial number %s and its key were not reserved for it", serial)
	}
	if record.Sequence, err = sequences.NextSequence(); err != nil {
		return err
	}
	record.State, record.IssuedAt = Issued, now.UTC()
	if err := sequences.Put(number(record.Sequence), id); err != nil {
		return err
	}
	if err := tx.Bucket(certificatesBucket).Put(id, cert.Raw); err != nil {
		return err
	}
	return store(devices, id, record)
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
		der = append(der, tx.Bucket(certificatesBucket).Get([]byte(id))...)
		return exported(tx, &record)
	})
	return record, der, err
}

// KeyOwner returns the ID that has that key, or "" if none has.
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
				return fmt.Errorf("record %q is damaged (%w): restore the ledger from a backup", id, err)
			}
			if err := exported(tx, &record); err != nil {
				return err
			}
			return visit(record)
		})
	})
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
