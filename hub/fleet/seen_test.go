package fleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

func TestFirstSightingActivatesAndIsAudited(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	at := time.Now().UTC()
	r.Seen("pi-1", at)
	r.Seen("pi-1", at.Add(time.Minute))
	r.Seen("nobody", at)
	r.restart() // Close writes what waits
	if r.state("pi-1") != registry.StateActive || r.state("pi-2") != registry.StateRegistered {
		t.Fatal("the sighting did not activate its device alone")
	}
	d, err := r.Device(t.Context(), "pi-1")
	if err != nil || !d.LastSeen.Equal(at.Add(time.Minute)) || d.FirstSeen.IsZero() {
		t.Fatalf("device = %+v, %v", d, err)
	}
	log := r.log()
	if last := log[len(log)-1]; len(log) != 3 || last.Action != "device.activate" || last.Device != "pi-1" || last.Actor != recorderName || last.After != registry.StateActive {
		t.Fatalf("audit record = %+v", last)
	}
	if _, err := r.Suspend(t.Context(), "pi-1", "", ann); err != nil {
		t.Fatal(err)
	}
	if d, err := r.Resume(t.Context(), "pi-1", "", ann); err != nil || d.State != registry.StateActive {
		t.Fatalf("a seen device resumes to %s, %v", d.State, err)
	}
}

func TestSightingNeverUndoesASuspensionOrRevocation(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2")
	if _, err := r.Suspend(t.Context(), "pi-1", "", ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke(t.Context(), "pi-2", 0, ann); err != nil {
		t.Fatal(err)
	}
	r.Seen("pi-1", time.Now())
	r.Seen("pi-2", time.Now())
	r.restart()
	if r.state("pi-1") != registry.StateSuspended || r.state("pi-2") != registry.StateRevoked {
		t.Fatal("a sighting changed a state")
	}
}

// stuck is a store whose commits wait until released.
type stuck struct {
	Store
	release chan struct{}
}

func (s *stuck) Commit(ctx context.Context, change registry.Change) error {
	<-s.release
	return s.Store.Commit(ctx, change)
}

func TestSeenNeverBlocksOnAStuckStore(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	r.Fleet.Close()
	store := &stuck{Store: r.bolt, release: make(chan struct{})}
	config := r.config
	config.Store = store
	f, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	f.Seen("pi-1", time.Now())
	for i := range 2*maxPending + 1 { // returns, or the test times out
		f.Seen(fmt.Sprint("pi-", i+2), time.Unix(int64(i+1), 0))
	}
	if f.DroppedSightings() == 0 {
		t.Error("nothing was dropped, however much waits")
	}
	close(store.release)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Seen("pi-1", time.Now()) // after Close: nothing, and no panic
	if d, err := r.bolt.Device(t.Context(), "pi-1"); err != nil || d.State != registry.StateActive {
		t.Fatalf("device = %+v, %v", d, err)
	}
}

// memory is the least of a store, for a test inside a bubble of fake time. What it hasn't
// is not called.
type memory struct {
	Store
	mu      sync.Mutex // guards changes
	changes []registry.Change
}

func (m *memory) committed() []registry.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.changes)
}

func (m *memory) Facts(_ context.Context, _ string, visit func(*registry.Facts) bool) error {
	visit(&registry.Facts{ID: "pi-1", State: registry.StateActive, Attributes: &registry.Attributes{}})
	return nil
}
func (m *memory) Documents(context.Context, registry.DocumentKind, string, int) ([]registry.Document, error) {
	return nil, nil
}
func (m *memory) Commit(_ context.Context, c registry.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes = append(m.changes, c)
	return nil
}

func TestSightingsAreWrittenInBatches(t *testing.T) {
	r := newRig(t)
	config := r.config
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		config.Store, config.FlushInterval = store, time.Second
		f, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			f.Seen("pi-1", time.Now().Add(time.Duration(i)))
		}
		synctest.Wait()
		if len(store.committed()) != 0 {
			t.Fatalf("%d commits before the interval", len(store.committed()))
		}
		time.Sleep(1500 * time.Millisecond) // fake time
		synctest.Wait()
		if len(store.committed()) != 1 || len(store.committed()[0].Sightings) != 1 {
			t.Fatalf("commits = %+v, want one with one sighting", store.committed())
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(store.committed()) != 1 {
			t.Fatalf("%d commits without a sighting", len(store.committed()))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
