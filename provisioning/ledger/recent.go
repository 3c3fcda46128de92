package ledger

import (
	"fmt"

	"go.etcd.io/bbolt"
)

// Recent calls visit with record and certificate of what was issued, the newest first,
// until it returns false or an error. The record is as of that certificate, though it
// was replaced since. The certificate is visit's to keep. visit must be quick: while it
// runs the file can't give back its free pages.
func (l *Ledger) Recent(visit func(r Record, der []byte) (more bool, err error)) error {
	return l.view(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(issuedBucket).Cursor()
		for key, id := cursor.Last(); key != nil; key, id = cursor.Prev() {
			record, der, err := issuedAs(tx, decode(key), id)
			if err != nil {
				return err
			}
			if more, err := visit(record, der); err != nil || !more {
				return err
			}
		}
		return nil
	})
}

// issuedAs returns what the ledger has of the certificate of that sequence, which was
// issued to that ID.
func issuedAs(tx *bbolt.Tx, sequence uint64, id []byte) (Record, []byte, error) {
	var record Record
	known, err := load(tx.Bucket(devicesBucket), id, &record)
	if err == nil && record.Sequence != sequence { // replaced since, or about to be
		record = Record{}
		known, err = load(tx.Bucket(historyBucket), number(sequence), &record)
	}
	if err != nil {
		return record, nil, err
	}
	der := tx.Bucket(certificatesBucket).Get(number(sequence))
	if !known || der == nil {
		return record, nil, fmt.Errorf("certificate %d is missing: restore the ledger from a backup", sequence)
	}
	return record, append([]byte(nil), der...), exported(tx, &record)
}
