package ledger

import (
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Kind is how an order came to be.
type Kind string

// The kinds.
const (
	Imported    Kind = "import"  // from a file
	Single      Kind = "issue"   // one device's, by its own command or token
	Run         Kind = "batch"   // a run of devices, each with its folder
	Replacement Kind = "replace" // further certificates for devices that have one
)

// Order is what the station may issue: so many devices, as its lines say. While it is
// open its IDs are its own.
type Order struct {
	Number    uint64 `json:"number"`
	Kind      Kind   `json:"kind"`
	Name      string `json:"name,omitempty"`   // no two orders have the same
	Digest    string `json:"digest,omitempty"` // of the file it was imported from
	First     string `json:"first"`            // the IDs of its first slot and its last
	Last      string `json:"last"`
	Count     int    `json:"count"`
	Prefix    string `json:"prefix,omitempty"` // of a run
	Out       string `json:"out,omitempty"`    // the folder above the devices' folders, of a run
	Reason    string `json:"reason,omitempty"` // of a replacement
	Next      int    `json:"next"`             // the first slot that may be free
	Reserved  int    `json:"reserved"`         // so many devices were at least reserved,
	Issued    int    `json:"issued"`           // so many of them issued,
	Delivered int    `json:"delivered"`        // and so many of those delivered; of a run: the first so many

	OpenedAt time.Time `json:"opened_at"`
	ClosedAt time.Time `json:"closed_at,omitzero"` // zero: open
}

// Closed reports whether nothing more is issued against the order.
func (o Order) Closed() bool { return !o.ClosedAt.IsZero() }

// String returns the order as messages name it.
func (o Order) String() string {
	ids := o.First
	if o.Count > 1 {
		ids += " to " + o.Last
	}
	switch {
	case o.Name != "":
		return o.Name
	case o.Out != "":
		return ids + " in " + o.Out
	}
	return ids
}

// Line is a part of an order whose devices are alike. Its IDs are listed or, with a
// Pattern, count on from First.
type Line struct {
	Start   int      `json:"start"` // slot of its first ID
	Count   int      `json:"count"`
	Pattern Pattern  `json:"pattern,omitzero"`
	First   int      `json:"first,omitempty"` // counter of its first ID; 0 on opening: after the highest of the prefix
	IDs     []string `json:"-"`               // on opening only
	Attributes
}

// patterned reports whether the line's IDs are made, not listed.
func (l Line) patterned() bool { return l.Pattern != Pattern{} }

// OpenOrder opens an order of those lines, all of it or nothing. It refuses IDs that
// have a certificate (or, of a replacement, have none), that another open order has, or
// that are in it twice, and a name that is taken. Of o it takes Kind, Name, Digest,
// Prefix, Out and Reason.
func (l *Ledger) OpenOrder(now time.Time, o Order, lines ...Line) (Order, error) {
	var opened Order
	err := l.update(func(tx *bbolt.Tx) error {
		var err error
		opened, err = openOrder(tx, now, o, lines)
		return err
	})
	return opened, err
}

func openOrder(tx *bbolt.Tx, now time.Time, o Order, lines []Line) (Order, error) {
	orders := tx.Bucket(ordersBucket)
	o = Order{Kind: o.Kind, Name: o.Name, Digest: o.Digest, Prefix: o.Prefix, Out: o.Out, Reason: o.Reason, OpenedAt: now.UTC()}
	if o.Name != "" && tx.Bucket(namesBucket).Get([]byte(o.Name)) != nil {
		return Order{}, refused(fmt.Errorf("there is an order named %.80q already: give another --name, or close that one if it was wrong", o.Name))
	}
	var err error
	if o.Number, err = orders.NextSequence(); err != nil {
		return Order{}, err
	}
	for _, line := range lines {
		line.Start = o.Count
		if line.patterned() {
			err = plan(tx, o, &line)
		} else {
			err = list(tx, o, &line)
		}
		if err != nil {
			return Order{}, err
		}
		if err := store(tx.Bucket(linesBucket), pair(o.Number, uint64(line.Start)), line); err != nil {
			return Order{}, err
		}
		first, last := line.ends()
		if o.Count == 0 {
			o.First = first
		}
		o.Last = last
		o.Count += line.Count
	}
	if o.Count == 0 {
		return Order{}, fmt.Errorf("the order has no devices")
	}
	if o.Name != "" {
		if err := tx.Bucket(namesBucket).Put([]byte(o.Name), number(o.Number)); err != nil {
			return Order{}, err
		}
	}
	if o.Kind == Run {
		if err := tx.Bucket(runsBucket).Put(append(runKey(o.Prefix, o.Count, o.Out), number(o.Number)...), nil); err != nil {
			return Order{}, err
		}
	}
	if err := tx.Bucket(openBucket).Put(number(o.Number), []byte{}); err != nil {
		return Order{}, err
	}
	return o, storeOrder(tx, o)
}

func (l Line) ends() (first, last string) {
	if l.patterned() {
		return l.Pattern.ID(l.First), l.Pattern.ID(l.First + l.Count - 1)
	}
	return l.IDs[0], l.IDs[len(l.IDs)-1]
}

// plan fixes the run of counters that a line's pattern makes IDs of.
func plan(tx *bbolt.Tx, o Order, line *Line) error {
	if o.Kind == Replacement {
		return fmt.Errorf("an order to replace certificates lists their IDs")
	}
	highest := int(decode(tx.Bucket(countersBucket).Get([]byte(line.Pattern.Prefix))))
	switch {
	case line.First == 0:
		line.First = highest + 1
	case line.First <= highest:
		return fmt.Errorf("%s can't begin at %d: IDs up to %s are taken or planned; leave the first number out to count on from there", line.Pattern, line.First, line.Pattern.ID(highest))
	}
	if line.Count < 1 || line.Count > MaxCounter-line.First+1 {
		return fmt.Errorf("%d devices after %s do not fit the counter: use another prefix", line.Count, line.Pattern.ID(line.First-1))
	}
	value := append(pair(uint64(line.First), uint64(line.Count)), number(uint64(line.Pattern.Width))...)
	if err := tx.Bucket(rangesBucket).Put(rangeKey(line.Pattern.Prefix, o.Number, line.Start), value); err != nil {
		return err
	}
	return tx.Bucket(countersBucket).Put([]byte(line.Pattern.Prefix), number(uint64(line.First+line.Count-1)))
}

// list gives each listed ID its slot.
func list(tx *bbolt.Tx, o Order, line *Line) error {
	slots, planned := tx.Bucket(slotsBucket), tx.Bucket(plannedBucket)
	for i, id := range line.IDs {
		if err := listable(tx, o, id); err != nil {
			return err
		}
		slot := uint64(line.Start + i)
		if err := slots.Put(pair(o.Number, slot), []byte(id)); err != nil {
			return err
		}
		if err := planned.Put([]byte(id), pair(o.Number, slot)); err != nil {
			return err
		}
		if err := count(tx, id); err != nil {
			return err
		}
	}
	line.Count = len(line.IDs)
	return nil
}

func listable(tx *bbolt.Tx, o Order, id string) error {
	other, _, found, err := orderOf(tx, id)
	if err != nil {
		return err
	}
	if found && other == o.Number {
		return fmt.Errorf("%s is in the order twice", id)
	}
	if found && o.Kind == Replacement { // what made the device may have others to make
		by, err := loadOrder(tx, other)
		if err != nil {
			return err
		}
		found = by.Kind == Replacement
	}
	if found {
		return taken(tx, id, other)
	}
	var record Record
	known, err := load(tx.Bucket(devicesBucket), []byte(id), &record)
	if err != nil {
		return err
	}
	switch {
	case o.Kind == Replacement && (!known || record.State == Reserved):
		return fmt.Errorf("%s has no certificate of this station that could be replaced", id)
	case o.Kind != Replacement && known && record.State != Reserved:
		return hasCertificate(record)
	}
	return nil
}

func hasCertificate(r Record) error {
	return conflict("%s has a certificate already, serial number %s: `provisioning replace` gives it another", r.ID, r.Serial)
}

// taken is the error about an ID of an open order that another wants.
func taken(tx *bbolt.Tx, id string, number uint64) error {
	o, err := loadOrder(tx, number)
	if err != nil {
		return err
	}
	if o.Kind == Run {
		return conflict("%s belongs to the unfinished batch %s: repeat that batch's command to finish it", id, o)
	}
	return conflict("%s belongs to the open order %d (%s)", id, o.Number, o)
}

// count keeps the counter of an ID's prefix above it, so that no pattern makes it again.
func count(tx *bbolt.Tx, id string) error {
	prefix, n, ok := split(id)
	if !ok || uint64(n) <= decode(tx.Bucket(countersBucket).Get([]byte(prefix))) {
		return nil
	}
	return tx.Bucket(countersBucket).Put([]byte(prefix), number(uint64(n)))
}

// runKey begins the keys of the batches of that prefix, count and folder.
func runKey(prefix string, count int, out string) []byte {
	return fmt.Appendf(nil, "%s\x00%d\x00%s\x00", prefix, count, out)
}

func rangeKey(prefix string, order uint64, start int) []byte {
	return append(append([]byte(prefix), 0), pair(order, uint64(start))...)
}

func loadOrder(tx *bbolt.Tx, n uint64) (Order, error) {
	var o Order
	known, err := load(tx.Bucket(ordersBucket), number(n), &o)
	if err == nil && !known {
		err = fmt.Errorf("order %d is %w", n, ErrNotFound)
	}
	return o, err
}

func storeOrder(tx *bbolt.Tx, o Order) error {
	return store(tx.Bucket(ordersBucket), number(o.Number), o)
}

// Order returns the order of that number, or ErrNotFound.
func (l *Ledger) Order(n uint64) (Order, error) {
	var o Order
	err := l.view(func(tx *bbolt.Tx) (err error) {
		o, err = loadOrder(tx, n)
		return err
	})
	return o, err
}

// OrderNamed returns the order of that name, or ErrNotFound.
func (l *Ledger) OrderNamed(name string) (Order, error) {
	var o Order
	err := l.view(func(tx *bbolt.Tx) (err error) {
		n := tx.Bucket(namesBucket).Get([]byte(name))
		if n == nil {
			return fmt.Errorf("order %.80q is %w", name, ErrNotFound)
		}
		o, err = loadOrder(tx, decode(n))
		return err
	})
	return o, err
}

// Orders calls visit for every order, oldest first, until it returns an error, and
// returns that error.
func (l *Ledger) Orders(visit func(Order) error) error {
	return l.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(ordersBucket).ForEach(func(n, data []byte) error {
			var o Order
			if err := json.Unmarshal(data, &o); err != nil {
				return damaged(n, err)
			}
			return visit(o)
		})
	})
}

// OpenOrders returns the open orders, oldest first.
func (l *Ledger) OpenOrders() ([]Order, error) {
	var open []Order
	err := l.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(openBucket).ForEach(func(n, _ []byte) error {
			o, err := loadOrder(tx, decode(n))
			open = append(open, o)
			return err
		})
	})
	return open, err
}

// Lines returns the lines of an order, without the IDs they list.
func (l *Ledger) Lines(n uint64) ([]Line, error) {
	var lines []Line
	err := l.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(linesBucket).Cursor()
		for key, data := c.Seek(pair(n, 0)); len(key) == 16 && decode(key[:8]) == n; key, data = c.Next() {
			var line Line
			if err := json.Unmarshal(data, &line); err != nil {
				return damaged(key, err)
			}
			lines = append(lines, line)
		}
		return nil
	})
	return lines, err
}
