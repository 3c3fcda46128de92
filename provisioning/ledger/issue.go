package ledger

import (
	"crypto/x509"
	"encoding/hex"
	"time"

	"go.etcd.io/bbolt"
)

// Issue stores the certificates of reserved devices, in that order, all or none. Each
// certificate must have the serial number and key that were reserved for its common
// name; another is ErrRefused. Only after Issue returned may a certificate leave the
// station.
func (l *Ledger) Issue(now time.Time, certs ...*x509.Certificate) error {
	defer func() {
		for _, c := range certs {
			l.held.release(c.Subject.CommonName)
		}
	}()
	return l.update(func(tx *bbolt.Tx) error {
		for i, c := range certs {
			record, err := issuable(tx, c)
			if err != nil && i == 0 {
				return refused(err)
			}
			if err == nil {
				err = issue(tx, c, record, now)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func issuable(tx *bbolt.Tx, cert *x509.Certificate) (Record, error) {
	id := cert.Subject.CommonName
	var record Record
	known, err := load(tx.Bucket(devicesBucket), []byte(id), &record)
	if err != nil {
		return record, err
	}
	serial := hex.EncodeToString(cert.SerialNumber.Bytes())
	if !known || record.State != Reserved || record.Serial != serial || record.KeyHash != HashKey(cert.RawSubjectPublicKeyInfo) {
		return record, denied("issue %s: serial number %s and its key were not reserved for it", id, serial)
	}
	return record, nil
}

func issue(tx *bbolt.Tx, cert *x509.Certificate, record Record, now time.Time) error {
	id := []byte(record.ID)
	sequences := tx.Bucket(issuedBucket)
	var err error
	if record.Sequence, err = sequences.NextSequence(); err != nil {
		return err
	}
	record.State, record.IssuedAt = Issued, now.UTC()
	if err := appended(sequences).Put(number(record.Sequence), id); err != nil {
		return err
	}
	if err := appended(tx.Bucket(certificatesBucket)).Put(number(record.Sequence), cert.Raw); err != nil {
		return err
	}
	if err := tx.Bucket(plannedBucket).Delete(id); err != nil {
		return err
	}
	if err := store(tx.Bucket(devicesBucket), id, record); err != nil {
		return err
	}
	o, err := loadOrder(tx, record.Order)
	if err != nil {
		return err
	}
	o.Issued++
	return storeOrder(tx, o)
}

// appended has a bucket whose keys only grow fill its pages.
func appended(b *bbolt.Bucket) *bbolt.Bucket {
	b.FillPercent = 1
	return b
}

// Deliver records that certificates were handed over, and closes an order whose last
// one that was. What was delivered before, or isn't issued, is passed over.
func (l *Ledger) Deliver(now time.Time, ids ...string) error {
	return l.update(func(tx *bbolt.Tx) error {
		for _, id := range ids {
			record, changed, err := handOver(tx, now, id)
			if err != nil {
				return err
			}
			if !changed || record.Order == 0 {
				continue
			}
			o, err := loadOrder(tx, record.Order)
			if err != nil {
				return err
			}
			if o.Kind == Run { // counted by AdvanceRun
				continue
			}
			if o.Delivered++; o.Delivered == o.Count && !o.Closed() {
				err = closeOrder(tx, now, &o)
			} else {
				err = storeOrder(tx, o)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// handOver marks an issued device as delivered.
func handOver(tx *bbolt.Tx, now time.Time, id string) (record Record, changed bool, err error) {
	known, err := load(tx.Bucket(devicesBucket), []byte(id), &record)
	if err != nil || !known || record.State != Issued {
		return record, false, err
	}
	record.State, record.DeliveredAt = Delivered, now.UTC()
	return record, true, store(tx.Bucket(devicesBucket), []byte(id), record)
}
