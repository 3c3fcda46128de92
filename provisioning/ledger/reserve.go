package ledger

import (
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Reservation asks for an ID to be bound to a serial number and a key.
type Reservation struct {
	Order      uint64 // an open order; of no account with Token or Claim, which name theirs
	ID         string // one of the order's IDs; "": the next that is free
	Serial     string // used only if the ID has none yet
	KeyHash    string
	Protection Protection // that the key has
	EK         string     // SHA-256 of the endorsement key that vouched for it, or ""
	Out        string
	Token      string // HashToken of the token it comes with, or ""
	Claim      string // fingerprint of the claim certificate it comes with, or ""
}

// Reserve binds each ID to a serial number and a key, all of them or, on an error,
// none, and returns their records in the same order. An ID that was reserved before
// keeps its serial number and takes the new key and folder: nothing has been signed for
// it that left the station. Refused are an ID that has a certificate, that its order
// doesn't have or whose key another ID has, an order that is closed or demands another
// key protection, and IDs beyond the budget: max is how many the authority lets the
// station have in its life.
//
// A token or claim that comes with the key it came with before gets the record it got
// then, which may be issued already: the caller delivers that certificate again. What
// Reserve reserved for a token or claim stays held for its key until Issue or Abandon.
func (l *Ledger) Reserve(now time.Time, max int, reservations ...Reservation) ([]Record, error) {
	for _, r := range reservations {
		if r.byDoor() { // what strangers bring is refused without the writer's turn
			if err := l.Check(now, max, r); err != nil {
				return nil, err
			}
		}
	}
	var records []Record
	err := l.update(func(tx *bbolt.Tx) error {
		records = make([]Record, 0, len(reservations))
		for i, r := range reservations {
			a, err := l.admit(tx, r, now, max)
			if err != nil && i == 0 {
				return refused(err)
			}
			if err != nil {
				return err
			}
			if !a.repeated {
				if err := a.reserve(tx, now); err != nil {
					return err
				}
				if r.byDoor() {
					l.held.add(a.record.ID, r.KeyHash)
				}
			}
			records = append(records, a.record)
		}
		return nil
	})
	if err != nil {
		for i, r := range records { // what the last attempt held
			if reservations[i].byDoor() {
				l.held.release(r.ID)
			}
		}
		return nil, err
	}
	return records, nil
}

// Abandon ends the hold of a request on an ID for which it won't call Issue.
func (l *Ledger) Abandon(id string) { l.held.release(id) }

// Check returns the error that Reserve would return, and changes nothing. A reservation
// without a key is checked for its ID alone.
func (l *Ledger) Check(now time.Time, max int, reservations ...Reservation) error {
	return l.view(func(tx *bbolt.Tx) error {
		for _, r := range reservations {
			if _, err := l.admit(tx, r, now, max); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r Reservation) byDoor() bool { return r.Token != "" || r.Claim != "" }

// admission is a reservation that the rules allow, and what is to be written for it.
type admission struct {
	Reservation
	id       string
	order    Order
	line     Line
	record   Record // the ID's, zero if it has none
	known    bool
	repeated bool // the record is the answer: its certificate was issued to this key
	token    *Token
	claim    *Claim
	next     int // order.Next from now on
}

// admit applies the rules. It reads only.
func (l *Ledger) admit(tx *bbolt.Tx, r Reservation, now time.Time, max int) (*admission, error) {
	a := &admission{Reservation: r, id: r.ID}
	if err := l.enter(tx, a, now); err != nil || a.repeated {
		return a, err
	}
	var err error
	if a.order, err = loadOrder(tx, a.Order); err != nil {
		return nil, err
	}
	if a.order.Closed() {
		return nil, denied("order %d (%s) is closed", a.order.Number, a.order)
	}
	a.next = a.order.Next
	if a.id == "" {
		if err := l.nextFree(tx, a, now); err != nil {
			return nil, err
		}
	}
	if a.known, err = load(tx.Bucket(devicesBucket), []byte(a.id), &a.record); err != nil {
		return nil, err
	}
	if err := a.ofOrder(tx); err != nil {
		return nil, err
	}
	if err := a.ownKey(tx); err != nil {
		return nil, err
	}
	switch {
	case !a.line.Protection.admits(a.Protection):
		return nil, denied("the order demands a key in a %s for %s, this one is in %s", a.line.Protection, a.id, a.Protection)
	case !a.line.NotAfter.IsZero() && !now.Before(a.line.NotAfter):
		return nil, denied("the order's certificates were to end on %s, which is past", a.line.NotAfter.UTC().Format(time.DateOnly))
	case !a.known:
		if n := decode(tx.Bucket(metaBucket).Get(countKey)); n >= uint64(max) {
			return nil, fmt.Errorf("%w: the station's authority is for %d devices and it has made %d; have it renewed with a greater `hub station authorize --max-devices`", ErrBudget, max, n)
		}
	}
	return a, nil
}

// ofOrder checks that the ID is the order's to give, and finds its line.
func (a *admission) ofOrder(tx *bbolt.Tx) error {
	if a.known && a.record.State != Reserved && a.order.Kind != Replacement {
		return hasCertificate(a.record)
	}
	n, slot, found, err := orderOf(tx, a.id)
	if err != nil {
		return err
	}
	switch {
	case !found && a.known && a.record.State != Reserved:
		return hasCertificate(a.record)
	case !found:
		return denied("no open order has %s", a.id)
	case n != a.order.Number:
		return taken(tx, a.id, n)
	}
	a.line, err = lineOf(tx, n, slot)
	return err
}

// ownKey checks that key and endorsement key are nobody else's.
func (a *admission) ownKey(tx *bbolt.Tx) error {
	owner := string(tx.Bucket(keysBucket).Get([]byte(a.KeyHash)))
	if owner != "" && owner != a.id {
		return conflict("the key for %s is the key of %s: every device needs a key of its own", a.id, owner)
	}
	if owner != "" && (a.record.State != Reserved || a.record.KeyHash != a.KeyHash) {
		return conflict("%s has had that key: a certificate is replaced with a new key", a.id)
	}
	if a.EK == "" {
		return nil
	}
	if owner := string(tx.Bucket(endorsementBucket).Get([]byte(a.EK))); owner != "" && owner != a.id {
		return denied("the TPM is that of %s, and a TPM belongs to one device for life", owner)
	}
	if has := a.record.EK; has != "" && has != a.EK && (a.record.State != Reserved || a.record.Replaced > 0) {
		return denied("%s has another TPM: a board with this one is another device, so give it an ID of its own", a.id)
	}
	return nil
}

// nextFree finds the order's next ID that nobody has: one that never was reserved or,
// when there is none left, one whose request came to nothing.
func (l *Ledger) nextFree(tx *bbolt.Tx, a *admission, now time.Time) error {
	if a.order.Kind == Replacement {
		return denied("an order to replace certificates gives none to devices that it doesn't name")
	}
	a.next = a.order.Next
	for slot := a.order.Next; slot < a.order.Count; slot++ {
		id, _, err := slotID(tx, a.order.Number, slot)
		if err != nil {
			return err
		}
		promised, err := kept(tx, id, now)
		if err != nil {
			return err
		}
		if promised {
			continue
		}
		if tx.Bucket(devicesBucket).Get([]byte(id)) == nil {
			a.id = id
			if slot == a.next {
				a.next++
			}
			return nil
		}
		if slot == a.next { // nothing before it is free, nor will be
			a.next++
		}
	}
	for slot := 0; slot < a.order.Count && a.order.Issued < a.order.Reserved; slot++ {
		id, _, err := slotID(tx, a.order.Number, slot)
		if err != nil {
			return err
		}
		var record Record
		if _, err := load(tx.Bucket(devicesBucket), []byte(id), &record); err != nil {
			return err
		}
		promised, err := kept(tx, id, now)
		if err != nil {
			return err
		}
		if record.State == Reserved && !promised && !l.held.byOther(id, a.KeyHash) {
			a.id = id
			return nil
		}
	}
	return denied("order %d (%s) has no device left to make of its %d", a.order.Number, a.order, a.order.Count)
}

// reserve writes what was admitted.
func (a *admission) reserve(tx *bbolt.Tx, now time.Time) error {
	replacing := a.known && a.record.State != Reserved
	again := a.known && !replacing && a.record.Order == a.order.Number
	switch {
	case replacing:
		old := a.record
		if err := store(tx.Bucket(historyBucket), number(old.Sequence), old); err != nil {
			return err
		}
		a.record = Record{ID: a.id, EK: old.EK, Supersedes: old.Serial, Replaced: old.Sequence, Reason: a.order.Reason}
	case !a.known:
		a.record = Record{ID: a.id}
		meta := tx.Bucket(metaBucket)
		if err := meta.Put(countKey, number(decode(meta.Get(countKey))+1)); err != nil {
			return err
		}
	case a.record.KeyHash != a.KeyHash:
		if err := tx.Bucket(keysBucket).Delete([]byte(a.record.KeyHash)); err != nil {
			return err
		}
	}
	r := &a.record
	if r.Serial == "" {
		r.State, r.Serial, r.ReservedAt = Reserved, a.Serial, now.UTC()
	}
	if r.EK != "" && r.EK != a.EK && r.Replaced == 0 { // of a board that reserved the ID, and got nothing
		if err := tx.Bucket(endorsementBucket).Delete([]byte(r.EK)); err != nil {
			return err
		}
		r.EK = ""
	}
	r.KeyHash, r.Out, r.Claim, r.Order, r.Protection = a.KeyHash, a.Out, a.Claim, a.order.Number, a.Protection
	r.Model, r.OU, r.Labels, r.NotAfter = a.line.Model, a.line.OU, a.line.Labels, a.line.NotAfter
	if a.EK != "" {
		r.EK = a.EK
		if err := tx.Bucket(endorsementBucket).Put([]byte(a.EK), []byte(a.id)); err != nil {
			return err
		}
	}
	if err := tx.Bucket(keysBucket).Put([]byte(a.KeyHash), []byte(a.id)); err != nil {
		return err
	}
	if err := store(tx.Bucket(devicesBucket), []byte(a.id), r); err != nil {
		return err
	}
	if !again || a.next != a.order.Next {
		if !again {
			a.order.Reserved++
		}
		a.order.Next = a.next
		if err := storeOrder(tx, a.order); err != nil {
			return err
		}
	}
	return a.use(tx, now)
}
