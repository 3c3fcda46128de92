package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// orderOf returns the open order that has the ID for its own, and the ID's slot in it.
// A listed ID is an order's until its certificate is issued.
func orderOf(tx *bbolt.Tx, id string) (order uint64, slot int, found bool, err error) {
	if at := tx.Bucket(plannedBucket).Get([]byte(id)); len(at) == 16 {
		return decode(at[:8]), int(decode(at[8:])), true, nil
	}
	prefix, n, ok := split(id)
	if !ok {
		return 0, 0, false, nil
	}
	begin := append([]byte(prefix), 0)
	c := tx.Bucket(rangesBucket).Cursor()
	for key, value := c.Seek(begin); bytes.HasPrefix(key, begin); key, value = c.Next() {
		if len(key) != len(begin)+16 || len(value) != 24 {
			return 0, 0, false, fmt.Errorf("range %q is damaged: restore the ledger from a backup", key)
		}
		first, count, width := int(decode(value[:8])), int(decode(value[8:16])), int(decode(value[16:]))
		if n >= first && n < first+count && id == (Pattern{Prefix: prefix, Width: width}).ID(n) {
			at := key[len(begin):]
			return decode(at[:8]), int(decode(at[8:])) + n - first, true, nil
		}
	}
	return 0, 0, false, nil
}

// lineOf returns the line of an order that the slot is in.
func lineOf(tx *bbolt.Tx, order uint64, slot int) (Line, error) {
	c := tx.Bucket(linesBucket).Cursor()
	at := pair(order, uint64(slot))
	key, data := c.Seek(at)
	if !bytes.Equal(key, at) {
		key, data = c.Prev()
	}
	var line Line
	if len(key) != 16 || decode(key[:8]) != order {
		return line, fmt.Errorf("slot %d of order %d is missing: restore the ledger from a backup", slot, order)
	}
	if err := json.Unmarshal(data, &line); err != nil {
		return line, damaged(key, err)
	}
	return line, nil
}

// slotID returns the ID of an order's slot, and its line.
func slotID(tx *bbolt.Tx, order uint64, slot int) (string, Line, error) {
	line, err := lineOf(tx, order, slot)
	if err != nil {
		return "", line, err
	}
	if line.patterned() {
		return line.Pattern.ID(line.First + slot - line.Start), line, nil
	}
	id := tx.Bucket(slotsBucket).Get(pair(order, uint64(slot)))
	if id == nil {
		return "", line, fmt.Errorf("slot %d of order %d is missing: restore the ledger from a backup", slot, order)
	}
	return string(id), line, nil
}

// SlotID returns the ID of an order's slot, from 0.
func (l *Ledger) SlotID(order uint64, slot int) (string, Attributes, error) {
	var id string
	var line Line
	err := l.view(func(tx *bbolt.Tx) (err error) {
		id, line, err = slotID(tx, order, slot)
		return err
	})
	return id, line.Attributes, err
}

// OrderOf returns the order against which the ID is or may be issued, and what that
// says of it: the open one that has the ID, or the one its record names. None is
// ErrNotFound.
func (l *Ledger) OrderOf(id string) (Order, Attributes, error) {
	var o Order
	var a Attributes
	err := l.view(func(tx *bbolt.Tx) error {
		n, slot, found, err := orderOf(tx, id)
		if err != nil {
			return err
		}
		if found {
			line, err := lineOf(tx, n, slot)
			if err != nil {
				return err
			}
			a = line.Attributes
		} else {
			var record Record
			if found, err = load(tx.Bucket(devicesBucket), []byte(id), &record); err != nil {
				return err
			}
			n, a = record.Order, record.Attributes()
		}
		if !found || n == 0 {
			return fmt.Errorf("an order for %s is %w", id, ErrNotFound)
		}
		o, err = loadOrder(tx, n)
		return err
	})
	return o, a, err
}

// ReviseOrder changes the attributes of an order for a single device, and its folder,
// as long as nothing was issued against it.
func (l *Ledger) ReviseOrder(n uint64, a Attributes) error {
	return l.update(func(tx *bbolt.Tx) error {
		o, err := loadOrder(tx, n)
		if err != nil {
			return refused(err)
		}
		if o.Kind != Single || o.Closed() || o.Issued > 0 {
			return refused(denied("order %d (%s) can't be changed any more", n, o))
		}
		line, err := lineOf(tx, n, 0)
		if err != nil {
			return err
		}
		line.Attributes = a
		return store(tx.Bucket(linesBucket), pair(n, 0), line)
	})
}

// FindRun returns the batch of that prefix, count and folder that still is open or, if
// none is, the newest. None at all is ErrNotFound.
func (l *Ledger) FindRun(prefix string, count int, out string) (Order, error) {
	var found *Order
	err := l.view(func(tx *bbolt.Tx) error {
		begin := runKey(prefix, count, out)
		c := tx.Bucket(runsBucket).Cursor()
		for key, _ := c.Seek(begin); bytes.HasPrefix(key, begin) && (found == nil || found.Closed()); key, _ = c.Next() {
			o, err := loadOrder(tx, decode(key[len(begin):]))
			if err != nil {
				return err
			}
			found = &o
		}
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("batch of %d %s… in %s is %w", count, prefix, out, ErrNotFound)
	}
	if err != nil {
		return Order{}, err
	}
	return *found, nil
}

// AdvanceRun records that the first so many devices of an open batch need no more work,
// and closes it when these are all. All of them are delivered but those named as lost,
// which have a certificate and whose keys are gone.
func (l *Ledger) AdvanceRun(now time.Time, n uint64, delivered int, lost ...string) (Order, error) {
	var o Order
	err := l.update(func(tx *bbolt.Tx) error {
		var err error
		if o, err = loadOrder(tx, n); err != nil {
			return refused(err)
		}
		if o.Kind != Run || o.Closed() || delivered < o.Delivered || delivered > o.Count {
			return refused(fmt.Errorf("batch %d can't advance to %d devices", n, delivered))
		}
		for slot := o.Delivered; slot < delivered; slot++ {
			id, _, err := slotID(tx, n, slot)
			if err != nil {
				return err
			}
			if slices.Contains(lost, id) {
				continue
			}
			if _, _, err := handOver(tx, now, id); err != nil {
				return err
			}
		}
		if o.Delivered = delivered; delivered == o.Count {
			return closeOrder(tx, now, &o)
		}
		return storeOrder(tx, o)
	})
	return o, err
}

// CloseOrder ends an order: nothing more is reserved against it, and IDs of it that
// were not issued are free for others. Closing it again changes nothing.
func (l *Ledger) CloseOrder(now time.Time, n uint64) (Order, error) {
	var o Order
	err := l.update(func(tx *bbolt.Tx) error {
		var err error
		if o, err = loadOrder(tx, n); err != nil || o.Closed() {
			return refused(err)
		}
		return closeOrder(tx, now, &o)
	})
	return o, err
}

func closeOrder(tx *bbolt.Tx, now time.Time, o *Order) error {
	o.ClosedAt = now.UTC()
	if err := tx.Bucket(openBucket).Delete(number(o.Number)); err != nil {
		return err
	}
	c := tx.Bucket(linesBucket).Cursor()
	for key, data := c.Seek(pair(o.Number, 0)); len(key) == 16 && decode(key[:8]) == o.Number; key, data = c.Next() {
		var line Line
		if err := json.Unmarshal(data, &line); err != nil {
			return damaged(key, err)
		}
		if err := release(tx, *o, line); err != nil {
			return err
		}
	}
	return storeOrder(tx, *o)
}

// release gives a closed order's IDs back that were never issued.
func release(tx *bbolt.Tx, o Order, line Line) error {
	if line.patterned() {
		return tx.Bucket(rangesBucket).Delete(rangeKey(line.Pattern.Prefix, o.Number, line.Start))
	}
	if o.Issued == o.Count {
		return nil
	}
	planned := tx.Bucket(plannedBucket)
	for slot := line.Start; slot < line.Start+line.Count; slot++ {
		id := tx.Bucket(slotsBucket).Get(pair(o.Number, uint64(slot)))
		if bytes.Equal(planned.Get(id), pair(o.Number, uint64(slot))) {
			if err := planned.Delete(id); err != nil {
				return err
			}
		}
	}
	return nil
}
