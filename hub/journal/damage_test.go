package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sample returns a journal of a few segments and all it holds, a record in each batch. It was closed or, if not cleanly,
// killed.
func sample(t testing.TB, cleanly bool) (m *memory, want []record) {
	t.Helper()
	m = newMemory()
	l := &ledger{}
	c := inMemory(m)
	c.SegmentSize = 2 * segmentHeader
	j := created(t, c)
	for i := range 19 {
		// A batch each.
		if err := l.append(j, 50+60*i); err != nil || synced(t, j) != nil {
			t.Fatal(err)
		}
	}
	if j.Stats().Segments < 3 {
		t.Fatalf("the sample has %d segments", j.Stats().Segments)
	}
	if !cleanly {
		m.kill()
	}
	if err := j.Close(); (err == nil) != cleanly {
		t.Fatal(err)
	}
	for _, e := range l.entries {
		want = append(want, record{e.position, e.text})
	}
	return m.survivor().clone(), want
}

// newest returns the path of the last segment.
func (m *memory) newest() string {
	var last string
	for name := range m.names {
		if strings.HasSuffix(name, segmentSuffix) {
			last = max(last, name)
		}
	}
	return last
}

// contents returns what is in the files.
func (m *memory) contents() map[string]string {
	all := map[string]string{}
	for name, n := range m.names {
		all[name] = string(n.data)
	}
	return all
}

// same reports whether both hold the same bytes in the same files.
func (m *memory) same(other *memory) bool {
	return maps.EqualFunc(m.names, other.names, func(a, b *inode) bool { return bytes.Equal(a.data, b.data) })
}

// refusedOrWhole opens a damaged journal. It must be refused as damaged, or replay all of want, or, where that is
// allowed, all but its last batch.
func refusedOrWhole(t *testing.T, m *memory, want []record, mayLack int) (refused bool, lacking int) {
	t.Helper()
	j, found, err := opened(inMemory(m))
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("refused, but not as damaged: %v", err)
		}
		return true, 0
	}
	m.kill()
	_ = j.Close()
	lacking = len(want) - len(found)
	if lacking < 0 || lacking > mayLack || !slices.Equal(found, want[:len(found)]) {
		t.Fatalf("opened with %d of %d records", len(found), len(want))
	}
	return false, lacking
}

func TestAFlippedByteIsRefusedUnlessItIsInTheLastBatchOfACrashedJournal(t *testing.T) {
	for _, cleanly := range []bool{true, false} {
		t.Run(fmt.Sprintf("cleanly=%t", cleanly), func(t *testing.T) {
			t.Parallel()
			lastBatch := 1
			intact, want := sample(t, cleanly)
			if cleanly {
				lastBatch = 0 // its last batch is the end mark, and that is demanded
			}
			newest := intact.newest()
			lastAt := len(bytes.TrimRight(intact.names[newest].data, "\x00")) - batchHeader - recordHeader - len(want[len(want)-1].text)
			refusals, lacks := 0, 0
			m := intact.clone()
			for name, n := range intact.names {
				for off, b := range n.data {
					if !cleanly && b == 0 && off%16 != 0 {
						continue // the other journal has had each of its zeros flipped
					}
					flip := byte(1) << (off % 8)
					m.names[name].data[off] ^= flip
					refused, lacking := refusedOrWhole(t, m, want, lastBatch)
					if lacking > 0 {
						lacks++
						if name != newest || off < lastAt {
							t.Fatalf("a flip at %d of %s cost %d records", off, name, lacking)
						}
					}
					if !refused {
						m = intact.clone()
						continue
					}
					refusals++
					m.names[name].data[off] ^= flip
					if !m.same(intact) {
						t.Fatalf("with a flip at %d of %s it was refused, and changed", off, name)
					}
				}
			}
			if refusals < 1000 || (lacks > 0) == cleanly {
				t.Fatalf("%d refusals, %d with less", refusals, lacks)
			}
		})
	}
}

func TestATruncatedOrGrownFileIsRefused(t *testing.T) {
	for _, cleanly := range []bool{true, false} {
		m, want := sample(t, cleanly)
		for name, n := range m.names {
			if filepath.Base(name) == lockFile {
				continue
			}
			whole := n.data
			step := 1
			if !cleanly {
				step = 61
			}
			for size := 0; size < len(whole); size += step {
				n.data = whole[:size]
				if refused, _ := refusedOrWhole(t, m, want, 0); !refused {
					t.Fatalf("%s was opened with %d of %d bytes", name, size, len(whole))
				}
			}
			n.data = append(slices.Clone(whole), 0)
			if refused, _ := refusedOrWhole(t, m, want, 0); !refused {
				t.Fatalf("%s was opened with a byte too many", name)
			}
			n.data = whole
		}
	}
}

func TestAJournalThatIsNotWholeIsRefusedWithWords(t *testing.T) {
	segment := func(n uint64) string { return "j/" + segmentName(n) }
	other, _ := sample(t, true)
	cases := []struct {
		name   string
		damage func(m *memory)
		words  string
	}{
		{"no folder", func(m *memory) { m.names, m.dirs = nil, map[string]bool{} }, "holds no journal"},
		{"an empty folder", func(m *memory) { clear(m.names) }, "holds no journal"},
		{"no control file", func(m *memory) { delete(m.names, "j/control") }, "there is no file control; restore a backup"},
		{"no first segment", func(m *memory) { delete(m.names, segment(1)) }, "0000000001.journal is damaged at byte 0: the file is missing"},
		{"no segment in the middle", func(m *memory) { delete(m.names, segment(2)) }, "0000000002.journal is damaged at byte 0: the file is missing"},
		{"no last segment", func(m *memory) { delete(m.names, m.newest()) }, ".journal is damaged at byte 0: the file is missing"},
		{"no segment at all", func(m *memory) {
			maps.DeleteFunc(m.names, func(name string, _ *inode) bool { return strings.HasSuffix(name, segmentSuffix) })
		}, "the file is missing"},
		{"a segment too many", func(m *memory) { m.names[segment(9)] = m.names[segment(3)] }, "is not of it"},
		{"a segment under another's name", func(m *memory) { m.names[segment(2)] = m.names[segment(1)] }, "under another's name"},
		{"another journal's segment", func(m *memory) { m.names[segment(2)] = other.names[segment(2)] }, "belongs to another journal"},
		{"another journal's control file", func(m *memory) { m.names["j/control"] = other.names["j/control"] }, "belongs to another journal"},
		{"a control file made of two", func(m *memory) { copy(m.names["j/control"].data[slotSize:], other.names["j/control"].data) }, "belong to two journals"},
		{"both halves of the control file", func(m *memory) { m.names["j/control"].data[50] ^= 1; m.names["j/control"].data[slotSize+50] ^= 1 }, "control is damaged at byte 0"},
		{"not a segment", func(m *memory) { copy(m.names[segment(1)].data, "something else") }, "it is not a journal segment"},
		{"a segment of a later format", func(m *memory) {
			page := m.names[segment(1)].data
			order.PutUint32(page[8:], 9)
			order.PutUint32(page[headerFields:], checksum(page[:headerFields]))
		}, "it has format version 9 and this program reads version 1"},
		{"a control file of a later format", func(m *memory) {
			relabel(m.names["j/control"].data, 9)
			relabel(m.names["j/control"].data[slotSize:], 9)
		}, "has format version 9 and this program reads version"},
		{"a page of zeros in the middle", func(m *memory) { clear(m.names[segment(1)].data[slotSize : 2*slotSize]) }, "no batch begins here"},
		{"the end mark wiped", func(m *memory) {
			data := bytes.TrimRight(m.names[m.newest()].data, "\x00")
			clear(data[len(data)-batchHeader:])
		}, "the journal was closed with record"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m, _ := sample(t, true)
			c.damage(m)
			before := m.contents()
			for range 2 {
				j, _, err := opened(inMemory(m))
				if err == nil {
					j.Close()
					t.Fatal("it was opened")
				}
				if !strings.Contains(err.Error(), c.words) {
					t.Fatalf("the words are %q, want %q in them", err, c.words)
				}
				if _, checked := check(m, "j", nil); checked == nil || !strings.Contains(checked.Error(), c.words) {
					t.Fatalf("Check says %v, want %q in it", checked, c.words)
				}
			}
			if after := m.contents(); len(after) != len(before)+1 && !maps.Equal(after, before) {
				t.Fatal("it was changed")
			}
		})
	}
}

// relabel gives half a control file a format version.
func relabel(slot []byte, version uint32) {
	order.PutUint32(slot[8:], version)
	order.PutUint32(slot[slotFields:], checksum(slot[:slotFields]))
}

func TestHalfAControlFileIsEnoughAndIsRepaired(t *testing.T) {
	for half := range 2 {
		m, want := sample(t, true)
		intact := m.clone()
		m.names["j/control"].data[half*slotSize+100] ^= 1
		if _, lacking := refusedOrWhole(t, m, want, 0); lacking != 0 {
			t.Fatal("records are missing")
		}
		repaired := m.survivor()
		repaired.names["j/control"].data[(1-half)*slotSize+100] ^= 1
		if refused, lacking := refusedOrWhole(t, repaired, want, 0); refused || lacking != 0 {
			t.Fatal("the damaged half was not written again")
		}
		delete(intact.names, "j/lock")
		if refused, _ := refusedOrWhole(t, intact, want, 0); refused {
			t.Fatal("a journal without its lock file, such as a restored backup, must open")
		}
	}
}

func TestWhatRecordsHoldCannotPassForABatch(t *testing.T) {
	m := newMemory()
	j := created(t, inMemory(m))
	// A whole sealed batch, as a device could send one; it doesn't know the nonce.
	forged := append(make([]byte, batchHeader), 4, 0, 0, 0, 'e', 'v', 'i', 'l')
	f := frame{sequence: 2, first: 2, kind: kindRecords, count: 1}
	f.seal(0x0102030405060708, forged)
	appended(t, j, "first")
	appended(t, j, string(bytes.Repeat(forged, 20)))
	m.kill()
	_ = j.Close()
	// The header of the batch with the forged ones is torn.
	left := m.survivor()
	at := bytes.Index(left.names["j/"+segmentName(1)].data, forged[:8])
	left.names["j/"+segmentName(1)].data[at-batchHeader-recordHeader+8] ^= 1
	j, found, err := opened(inMemory(left))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	closed(t, j)
}

func TestATornEndIsCutOffAndWiped(t *testing.T) {
	m, want := sample(t, false)
	data := m.names[m.newest()].data
	end := len(bytes.TrimRight(data, "\x00"))
	for i := end; i < end+1000; i += 7 {
		data[i] = 'x'
	}
	if r, err := check(m, "j", nil); err != nil || r.Torn < 990 || r.Records != uint64(len(want)) || r.Clean {
		t.Fatalf("%+v, %v", r, err)
	}
	j, found, err := opened(inMemory(m))
	if err != nil || !slices.Equal(found, want) {
		t.Fatal(len(found), err)
	}
	m.kill()
	_ = j.Close()
	if r, err := check(m.powerCut(func() bool { return false }), "j", nil); err != nil || r.Torn != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestABatchIsFoundWhereverItBegins(t *testing.T) {
	const size = 2<<20 + 5000
	m := newMemory()
	f, err := m.Open("file", os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Allocate(size); err != nil {
		t.Fatal(err)
	}
	nonce := uint64(0xff << 56) // its first seven bytes on the disk are zeros
	head := make([]byte, batchHeader)
	(&frame{sequence: 1, first: 1, kind: kindEnd}).seal(nonce, head)
	// Around the places where one read ends and the next one begins.
	for _, from := range []int64{0, 1000} {
		for _, around := range []int64{from + 1<<20, from + 2<<20, size - batchHeader - 2} {
			for at := around - batchHeader - 2; at <= around+2; at++ {
				data := m.names["file"].data
				copy(data[at:], head)
				if found, _, err := remains(f, nonce, from, size); found != at || err != nil {
					t.Fatalf("the batch at %d was found at %d: %v", at, found, err)
				}
				if found, last, err := remains(f, nonce+1, from, size); found != 0 || last <= at || last > at+batchHeader || err != nil {
					t.Fatalf("another segment's batch at %d was found at %d, and the last byte at %d: %v", at, found, last, err)
				}
				clear(data[at : at+batchHeader])
			}
		}
	}
	if found, last, err := remains(f, nonce, 1000, size); found != 0 || last != 1000 || err != nil {
		t.Fatal(found, last, err)
	}
}

func TestABatchInAnothersPlaceIsRefused(t *testing.T) {
	m := newMemory()
	j := created(t, inMemory(m))
	for range 3 {
		appended(t, j, "of one size")
	}
	m.kill()
	_ = j.Close()
	left := m.survivor()
	data := left.names["j/"+segmentName(1)].data[segmentHeader:]
	size := batchHeader + recordHeader + len("of one size")
	copy(data[2*size:3*size], data[size:])
	if _, _, err := opened(inMemory(left)); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "is where") {
		t.Fatal(err)
	}
}

func TestOnlyOneProcessHasAJournalOpen(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "j"), SegmentSize: 16 << 10}
	j := created(t, c)
	if _, _, err := opened(c); err == nil || !strings.Contains(err.Error(), "another process has it open") {
		t.Fatalf("opened twice: %v", err)
	}
	if _, err := Check(c.Dir, nil); err == nil || !strings.Contains(err.Error(), "another process has it open") {
		t.Fatalf("checked while open: %v", err)
	}
	if err := Create(c); err == nil {
		t.Fatal("created twice")
	}
	closed(t, j)
	if err := os.WriteFile(filepath.Join(c.Dir, "note"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ = replayed(t, c)
	closed(t, j)
}
