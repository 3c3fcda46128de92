package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// replayed opens a journal and returns it with all that it replayed.
func replayed(t testing.TB, c Config) (*Journal, []string) {
	t.Helper()
	var records []string
	j, err := Open(c, func(_ Position, record []byte) error {
		records = append(records, string(record))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return j, records
}

func created(t testing.TB, c Config) *Journal {
	t.Helper()
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	j, records := replayed(t, c)
	if len(records) != 0 {
		t.Fatalf("a new journal replayed %q", records)
	}
	return j
}

func appended(t testing.TB, j *Journal, records ...string) (last Position) {
	t.Helper()
	for _, r := range records {
		p, err := j.Append([]byte(r), nil)
		if err != nil {
			t.Fatal(err)
		}
		last = p
	}
	if err := j.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	return last
}

func closed(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsAppendedIsReplayedInOrder(t *testing.T) {
	c := Config{Dir: filepath.Join(t.TempDir(), "j"), SegmentSize: 8 << 10}
	j := created(t, c)
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprintf("%d %s", i, bytes.Repeat([]byte{'x'}, i)))
	}
	appended(t, j, want...)
	for range 3 {
		closed(t, j)
		var got []string
		if j, got = replayed(t, c); !slices.Equal(got, want) {
			t.Fatalf("replayed %d records, want %d", len(got), len(want))
		}
		appended(t, j, "more")
		want = append(want, "more")
	}
	r := j.Read(0)
	defer r.Close()
	for i, w := range want {
		p, record, err := r.Next(t.Context())
		if err != nil || string(record) != w || p != Position(i+1) {
			t.Fatal(p, err)
		}
	}
	copied := t.TempDir()
	if err := j.Backup(t.Context(), 0, func(name string, size int64, content io.Reader) error {
		return PutFile(copied, name, size, content)
	}); err != nil {
		t.Fatal(err)
	}
	closed(t, j)
	for _, dir := range []string{c.Dir, copied} {
		report, err := Check(dir, nil)
		if err != nil || report.Records != uint64(len(want)) || !report.Clean {
			t.Fatal(report, err)
		}
	}
	c.Dir = copied
	j, got := replayed(t, c)
	if !slices.Equal(got, want) {
		t.Fatal("the backup replays something else")
	}
	appended(t, j, "after the restore")
	closed(t, j)
	if _, err := os.Stat(filepath.Join(copied, controlFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Append(nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}
