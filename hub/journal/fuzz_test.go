package journal

import (
	"errors"
	"slices"
	"testing"
)

// usable opens a journal that may be damaged. If it opens it must work, and be whole afterwards.
func usable(t *testing.T, m *memory) {
	t.Helper()
	j, _, err := opened(inMemory(m))
	if err != nil {
		return
	}
	last := j.Last()
	if p, err := j.Append([]byte("after"), nil); err != nil || p <= last {
		t.Fatalf("record %d follows %d: %v", p, last, err)
	}
	closed(t, j)
	if r, err := check(m, "j", nil); err != nil || !r.Clean {
		t.Fatalf("%+v, %v", r, err)
	}
}

func FuzzOpenOfFilesWithForeignBytes(f *testing.F) {
	clean, _ := sample(f, true)
	crashed, _ := sample(f, false)
	var names []string
	for name := range clean.names {
		names = append(names, name)
	}
	slices.Sort(names)
	f.Add(uint8(0), uint32(0), []byte("FLTSEG\r\n"), false)
	f.Add(uint8(1), uint32(4096), make([]byte, batchHeader), true)
	f.Add(uint8(3), uint32(8), []byte{2, 0, 0, 0}, true)
	f.Add(uint8(9), uint32(28), []byte{255, 255, 255, 255, 255, 255, 255, 255}, true)
	f.Fuzz(func(t *testing.T, file uint8, offset uint32, content []byte, sums bool) {
		m := clean.clone()
		if file >= 128 {
			m = crashed.clone()
		}
		name := names[int(file%128)%len(names)]
		data := m.names[name].data
		if len(data) == 0 {
			return
		}
		copy(data[int(offset)%len(data):], content)
		if sums { // make the checksums of the pages fit, so that what is in them is looked at
			switch {
			case name == "j/"+controlFile:
				for _, slot := range [][]byte{data[:slotSize], data[slotSize:]} {
					order.PutUint32(slot[slotFields:], checksum(slot[:slotFields]))
				}
			default:
				order.PutUint32(data[headerFields:], checksum(data[:headerFields]))
			}
		}
		usable(t, m)
	})
}

func FuzzOpenOfASealedBatch(f *testing.F) {
	m, want := sample(f, false)
	newest := m.newest()
	h, err := decodeHeader(m.names[newest].data)
	if err != nil {
		f.Fatal(err)
	}
	sequence := h.firstSequence
	f.Add(sequence, uint64(h.firstPosition), uint32(kindRecords), uint32(1), []byte{1, 0, 0, 0, 'x'})
	f.Add(sequence, uint64(h.firstPosition), uint32(kindRecords), uint32(2), []byte{1, 0, 0, 0, 'x'})
	f.Add(sequence, uint64(h.firstPosition), uint32(kindEnd), uint32(0), []byte{})
	f.Add(sequence+1, uint64(h.firstPosition), uint32(kindRecords), uint32(1), []byte{255, 255, 255, 255, 'x'})
	f.Fuzz(func(t *testing.T, sequence, first uint64, kind, count uint32, body []byte) {
		if len(body) > pageSize-batchHeader {
			return
		}
		m := m.clone()
		data := m.names[newest].data[segmentHeader:]
		clear(data)
		batch := append(make([]byte, batchHeader), body...)
		b := frame{sequence: sequence, first: Position(first), kind: batchKind(kind), count: count}
		b.seal(h.nonce, batch)
		copy(data, batch)
		j, found, err := opened(inMemory(m))
		if errors.Is(err, ErrCorrupt) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		older := int(h.firstPosition) - int(want[0].position)
		if !slices.Equal(found[:older], want[:older]) || len(found) > older+int(count) {
			t.Fatalf("%d records before the batch and %d in it were replayed as %d", older, count, len(found))
		}
		m.kill()
		_ = j.Close()
		usable(t, m.survivor())
	})
}
