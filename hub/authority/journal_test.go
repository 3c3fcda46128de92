package authority_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/authority"
)

// On a stick that others write to, the journal's name may lead anywhere, or to nobody who
// ever answers.
func TestJournalIsAFileOrNothingIsRecorded(t *testing.T) {
	cert := certtest.New(t).Operational.Certificate()
	for name, plant := range map[string]func(path string) error{
		"symbolic link":      func(path string) error { return os.Symlink(filepath.Join(filepath.Dir(path), "other"), path) },
		"not a file (mode p": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"directory":          func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir := t.TempDir()
		other := filepath.Join(dir, "other")
		must(t, os.WriteFile(other, []byte("mine"), 0o600))
		must(t, plant(filepath.Join(dir, authority.JournalFile)))
		if err := authority.Record(dir, cert); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: recorded with %v", name, err)
		}
		if all, unreadable, err := authority.Journal(dir); err == nil || len(all)+unreadable > 0 {
			t.Errorf("%s: it is read as %d and %d lines", name, len(all), unreadable)
		}
		if has, err := authority.HasJournal(dir); !has || err != nil {
			t.Errorf("%s: it is missing, %v", name, err)
		}
		if data, err := os.ReadFile(other); err != nil || string(data) != "mine" {
			t.Errorf("%s: another file has become %q (%v)", name, data, err)
		}
	}
	dir := t.TempDir()
	if has, err := authority.HasJournal(dir); has || err != nil {
		t.Errorf("without one: %t, %v", has, err)
	}
	must(t, authority.Record(dir, cert))
	if all, _, err := authority.Journal(dir); err != nil || len(all) != 1 {
		t.Errorf("a file: %d lines, %v", len(all), err)
	}
}
