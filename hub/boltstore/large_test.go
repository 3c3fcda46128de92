package boltstore

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
)

// A manifest's records are encoded on several processors and in parts: they must come out
// whole and in their order, after what was there before.
func TestLargeChangeIsStoredWholeAndInOrder(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	const most = 1500
	number := 0
	for _, size := range []int{1, most, 3, 257, 256} {
		var change registry.Change
		for range size {
			id := fmt.Sprintf("pi-%04d", most-number%most) // backwards, and from the second round on known ones
			d := device(id, id)
			d.Model = fmt.Sprint(number)
			change.Devices = append(change.Devices, d)
			change.Audit = append(change.Audit, audit("import", fmt.Sprint(number)))
			number++
		}
		commit(t, s, change)
	}
	var head registry.AuditHead
	if err := s.AuditLines(t.Context(), 0, func(line registry.AuditLine) bool {
		if want := head.Hash.Link(line.Number, line.Record); line.Number != head.Number+1 || line.Hash != want {
			t.Errorf("record %d after %d is linked by %s, want %s", line.Number, head.Number, line.Hash, want)
		}
		var r registry.AuditRecord
		if err := json.Unmarshal(line.Record, &r); err != nil || r.Number != line.Number || r.Device != fmt.Sprint(line.Number-1) {
			t.Errorf("record %d is %s, %v", line.Number, line.Record, err)
		}
		head = registry.AuditHead{Number: line.Number, Hash: line.Hash}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if end, err := s.AuditHead(t.Context()); err != nil || end != head || head.Number != uint64(number) {
		t.Errorf("%d records, read to %v, and the log ends at %v, %v", number, head, end, err)
	}
	for i := max(0, number-most); i < number; i++ {
		id := fmt.Sprintf("pi-%04d", most-i%most)
		d, err := s.Device(t.Context(), id)
		if err != nil || d.Model != fmt.Sprint(i) {
			t.Errorf("%s is of model %s, %v; want %d", id, d.Model, err, i)
		}
		if o, err := s.Owner(t.Context(), d.Certificates[0].Issuer, d.Certificates[0].Serial); err != nil || o.Device != id {
			t.Errorf("%s's certificate is %s's, %v", id, o.Device, err)
		}
	}
}
