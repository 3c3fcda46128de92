package ledger

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
)

func put(key string) func(*bbolt.Tx) error {
	return func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put([]byte(key), []byte("x")) }
}

func has(t *testing.T, l *Ledger, key string) bool {
	t.Helper()
	var found bool
	if err := l.view(func(tx *bbolt.Tx) error {
		found = tx.Bucket(metaBucket).Get([]byte(key)) != nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// Of changes that share a transaction those that fail leave nothing, and those that
// don't are there, whether a failure wrote before it failed or not.
func TestChangesThatShareATransactionFailAlone(t *testing.T) {
	l, _ := fresh(t)
	boom := errors.New("boom")
	var wait sync.WaitGroup
	results := make([]error, 90)
	for i := range results {
		wait.Go(func() {
			key := fmt.Sprintf("k%02d", i)
			results[i] = l.update(func(tx *bbolt.Tx) error {
				switch i % 3 {
				case 1:
					return refused(boom)
				case 2:
					if err := put(key)(tx); err != nil {
						return err
					}
					return boom
				}
				return put(key)(tx)
			})
		})
	}
	wait.Wait()
	for i, err := range results {
		if stored := has(t, l, fmt.Sprintf("k%02d", i)); (err == nil) != (i%3 == 0) || stored != (i%3 == 0) || err != nil && err != boom {
			t.Errorf("change %d: %v, stored %t", i, err, stored)
		}
	}
}

func TestPanicOfOneChangeHangsNoOther(t *testing.T) {
	l, _ := fresh(t)
	var wait sync.WaitGroup
	for i := range 20 {
		wait.Go(func() {
			defer func() {
				if r := recover(); r != nil && r != "boom" {
					panic(r)
				}
			}()
			err := l.update(func(tx *bbolt.Tx) error {
				if i == 7 {
					panic("boom")
				}
				return put(fmt.Sprint("p", i))(tx)
			})
			if stored := has(t, l, fmt.Sprint("p", i)); i != 7 && stored != (err == nil) {
				t.Errorf("change %d: %v, stored %t", i, err, stored)
			}
		})
	}
	wait.Wait()
	if err := l.update(put("after")); err != nil || !has(t, l, "after") {
		t.Errorf("after the panic: %v", err)
	}
}

func TestClosedLedgerSaysSo(t *testing.T) {
	l, _ := fresh(t)
	l.Close()
	if err := l.update(put("x")); err == nil || !strings.Contains(err.Error(), "write ledger") {
		t.Error(err)
	}
	if _, _, err := l.Device("a"); err == nil || errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}
