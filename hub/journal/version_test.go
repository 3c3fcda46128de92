package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// version1 writes what is in testdata/version1, which was made by the first program that wrote that version: a journal of two
// segments with a checkpoint, closed. Every later program must open it.
func version1(i int) string {
	return fmt.Sprintf("record %d %s", i, strings.Repeat(string(rune('a'+i%26)), i*7%200))
}

func TestAJournalOfVersion1Opens(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "j")}
	if err := os.CopyFS(c.Dir, os.DirFS("testdata/version1")); err != nil {
		t.Fatal(err)
	}
	r, err := Check(c.Dir, nil)
	if err != nil || !r.Clean || r.Segments != 2 || r.Records != 60 || r.Checkpoint != 41 || r.Replayed != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	j, found, err := opened(c)
	if err != nil || len(found) != 20 {
		t.Fatalf("replayed %d records: %v", len(found), err)
	}
	reader := j.Read(1)
	defer reader.Close()
	for i := 1; i <= 60; i++ {
		if p, text := next(t, reader); p != Position(i) || text != version1(i) {
			t.Fatalf("record %d is %q", p, text)
		}
		if i > 40 && found[i-41] != (record{Position(i), version1(i)}) {
			t.Fatalf("record %d was replayed as %v", i, found[i-41])
		}
	}
	if p := appended(t, j, "and on it goes"); p != 61 {
		t.Fatalf("the next record is at %d", p)
	}
	closed(t, j)
}

func TestMigrationsRunInOrderAndAreRunAgainIfInterrupted(t *testing.T) {
	m, _ := sample(t, true)
	for _, at := range []int{0, slotSize} {
		relabel(m.names["j/control"].data[at:], 7)
	}
	var ran []int
	interrupted := errors.New("interrupted")
	fail := true
	steps := make([]migration, 8) // up to version 9
	for i := range steps {
		steps[i] = func(files FS, dir string) error {
			ran = append(ran, i+1)
			data := m.names["j/control"].data
			relabel(data, uint32(i+2))
			if i == 7 && fail {
				fail = false
				return interrupted // between the halves
			}
			relabel(data[slotSize:], uint32(i+2))
			return nil
		}
	}
	if err := migrate(m, "j", steps); !errors.Is(err, interrupted) {
		t.Fatal(err)
	}
	if err := migrate(m, "j", steps); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(ran) != "[7 8 8]" {
		t.Fatalf("the steps that ran are %v", ran)
	}
	if err := migrate(m, "j", steps[:3]); err == nil || !strings.Contains(err.Error(), "run the program that wrote it") {
		t.Fatal(err)
	}
	if err := migrate(m, "j", append(steps, func(FS, string) error { return nil })); err == nil || !strings.Contains(err.Error(), "left version 9") {
		t.Fatal(err)
	}
}
