package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// filled returns the bytes of a store that holds some devices.
func filled(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hub.db")
	s := openStore(t, path)
	for round := range 3 {
		var change registry.Change
		for i := range 40 {
			id := fmt.Sprintf("pi-%d-%d", round, i)
			change.Devices = append(change.Devices, device(id, id))
			change.Audit = append(change.Audit, audit("import", id))
		}
		commit(t, s, change)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpenRefusesWhatIsNoStoreAndChangesNothing(t *testing.T) {
	good := filled(t)
	edit := func(fn func(*bbolt.Tx) error) []byte {
		path := filepath.Join(t.TempDir(), "edit.db")
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(fn), db.Close()); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	format := func(f string) []byte {
		return edit(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyFormat, []byte(f)) })
	}
	torn := slices.Clone(good)
	clear(torn[4096*4 : 4096*8])
	for _, tt := range []struct {
		name string
		data []byte
		want error
		say  string
	}{
		{"newer format", format(strconv.Itoa(Format + 1)), ErrFormat, "run the newer hub"},
		{"older format", format("0"), ErrDamaged, "format version"},
		{"no format", format("one"), ErrDamaged, "format version"},
		{"another program's bbolt file", edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) }), ErrFormat, "not a hub's store"},
		{"a bucket missing", edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketSerials) }), ErrDamaged, "serials"},
		{"empty", nil, ErrDamaged, "empty"},
		{"text", []byte(strings.Repeat("mqtt_addr: :8883\n", 4000)), ErrDamaged, "backup"},
		{"zeros", make([]byte, 64<<10), ErrDamaged, "backup"},
		{"first page only", good[:4096], ErrDamaged, "backup"},
		{"half", good[:len(good)/2/4096*4096], ErrDamaged, "backup"},
		{"pages torn", torn, ErrDamaged, "backup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hub.db")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(path)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.say) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error = %v\nwant %v, naming the file and saying %q", err, tt.want, tt.say)
			}
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, tt.data) {
				t.Fatalf("the refused file was changed (%v)", err)
			}
		})
	}
}

func TestOpenOnAFolderOrInNoFolderSaysSo(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil {
		t.Fatal("opened a folder")
	}
	if _, err := Open(filepath.Join(dir, "none", "hub.db")); err == nil || !strings.Contains(err.Error(), "hub init") {
		t.Fatalf("error = %v", err)
	}
	if names := list(t, dir); len(names) != 0 {
		t.Fatalf("left %v", names)
	}
}

func TestSecondOpenSaysThatAHubIsRunning(t *testing.T) {
	t.Parallel() // it waits for the lock
	path := filepath.Join(t.TempDir(), "hub.db")
	s := openStore(t, path)
	_, err := Open(path)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "another hub is running on "+path) {
		t.Fatalf("error = %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, path)
}

func TestManyOpensOfANewStoreMakeOne(t *testing.T) {
	t.Parallel() // it waits for the lock
	dir := t.TempDir()
	path := filepath.Join(dir, "hub.db")
	var opened sync.WaitGroup
	stores := make(chan *Store, 8)
	for range cap(stores) {
		opened.Go(func() {
			s, err := Open(path)
			if err != nil && !errors.Is(err, ErrLocked) {
				t.Errorf("error = %v", err)
			}
			if err == nil {
				stores <- s
			}
		})
	}
	opened.Wait()
	if len(stores) != 1 {
		t.Fatalf("%d opened it", len(stores))
	}
	(<-stores).Close()
	if names := list(t, dir); !slices.Equal(names, []string{"hub.db"}) {
		t.Fatalf("folder holds %v", names)
	}
}

func TestKilledCreationLeavesNothingBehindTheNextOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hub.db")
	if err := os.WriteFile(filepath.Join(dir, partialPrefix(path)+"123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	openStore(t, path)
	if names := list(t, dir); !slices.Equal(names, []string{"hub.db"}) {
		t.Fatalf("folder holds %v", names)
	}
}

func TestDamagedRecordIsAnErrorAndNoDevice(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	for key, value := range map[string]string{
		"pi-1": `{"id":"pi-1","sta`, "pi-2": `{"id":"pi-3","state":"active"}`, "pi-4": `{"id":"pi-4"}`, "pi-5": `{"id":"pi-5","state":"fine"}`,
	} {
		if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketDevices).Put([]byte(key), []byte(value)) }); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Device(t.Context(), key); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: error = %v", value, err)
		}
	}
	if _, err := s.Devices(t.Context(), "", 10); !errors.Is(err, ErrDamaged) {
		t.Errorf("page: error = %v", err)
	}
}

func TestClosedStoreReturnsErrors(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "hub.db"))
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Device(t.Context(), "pi-1"); !errors.Is(err, berrors.ErrDatabaseNotOpen) {
		t.Fatalf("error = %v", err)
	}
	if err := s.Commit(t.Context(), registry.Change{}); !errors.Is(err, berrors.ErrDatabaseNotOpen) {
		t.Fatalf("error = %v", err)
	}
}

// FuzzOpenDamagedFile flips bytes of a good store and cuts it. Whatever it is then, it
// opens or is refused; reading and writing it returns, too, and never crashes.
func FuzzOpenDamagedFile(f *testing.F) {
	good := filled(f)
	f.Add(uint32(0), byte(0), uint32(len(good)))
	f.Add(uint32(0), byte(0), uint32(len(good)-1))
	f.Add(uint32(0), byte(0), uint32(4096*3+17))
	for offset := uint32(0); offset < uint32(len(good)); offset += 4099 {
		f.Add(offset, byte(0x01), uint32(len(good)))
	}
	dir := f.TempDir()
	runs := 0
	f.Fuzz(func(t *testing.T, offset uint32, flip byte, size uint32) {
		data := slices.Clone(good[:min(int(size), len(good))])
		if int(offset) < len(data) {
			data[offset] ^= flip
		}
		// A name of its own: a refused file may stay locked until the process ends.
		runs++
		path := filepath.Join(dir, fmt.Sprintf("%d-%d.db", os.Getpid(), runs))
		defer os.Remove(path)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			return
		}
		defer s.Close()
		s.db.NoSync = true
		s.Devices(context.Background(), "", 1000)
		s.Audit(context.Background(), query(0, 1000))
		s.Commit(context.Background(), registry.Change{Devices: []registry.Device{device("pi-new", "ff")}})
	})
}
