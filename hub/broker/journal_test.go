package broker

import (
	"path/filepath"
	"testing"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
)

// openJournal opens a real journal, made if it isn't there, and returns what it has.
func openJournal(t *testing.T, dir string) (*journal.Journal, *ingest.State) {
	t.Helper()
	return open(t, journal.Config{Dir: filepath.Join(dir, "journal"), SegmentSize: 1 << 20})
}

// openBigJournal is openJournal with files of the usual size.
func openBigJournal(t testing.TB, dir string) (*journal.Journal, *ingest.State) {
	t.Helper()
	return open(t, journal.Config{Dir: filepath.Join(dir, "journal")})
}

func open(t testing.TB, config journal.Config) (*journal.Journal, *ingest.State) {
	t.Helper()
	_ = journal.Create(config) // or it exists
	state := new(ingest.State)
	j, err := journal.Open(config, func(_ journal.Position, record []byte) error { return state.Apply(record) })
	must(t, err)
	return j, state
}
