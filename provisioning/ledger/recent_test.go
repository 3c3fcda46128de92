package ledger

import (
	"errors"
	"slices"
	"testing"
)

func TestRecentIsTheNewestFirstAndRemembersWhatWasReplaced(t *testing.T) {
	l, _ := fresh(t)
	old := mustIssue(t, l, "a")
	mustIssue(t, l, "b")
	o := mustOpen(t, l, Order{Kind: Replacement}, Line{IDs: []string{"a"}})
	next := newDevice(t)
	r := mustReserve(t, l, Reservation{Order: o.Number, ID: "a", Serial: "77", KeyHash: next.hash})
	if err := l.Issue(noon, next.cert("a", r.Serial)); err != nil {
		t.Fatal(err)
	}
	read := func(limit int) (ids, keys []string) {
		err := l.Recent(func(r Record, der []byte) (bool, error) {
			if len(der) == 0 {
				t.Errorf("%s has no certificate", r.ID)
			}
			ids, keys = append(ids, r.ID), append(keys, r.KeyHash)
			return len(ids) < limit, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return ids, keys
	}
	ids, keys := read(10)
	if !slices.Equal(ids, []string{"a", "b", "a"}) || keys[0] != next.hash || keys[2] != old.hash {
		t.Errorf("%v %v", ids, keys)
	}
	if ids, _ := read(2); !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("%v", ids)
	}
	stop := errors.New("stop")
	if err := l.Recent(func(Record, []byte) (bool, error) { return true, stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	empty, _ := fresh(t)
	if err := empty.Recent(func(Record, []byte) (bool, error) { return true, stop }); err != nil {
		t.Error(err)
	}
}
