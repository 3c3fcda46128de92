package fleet

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
	"pgregory.net/rapid"
)

func sumOf(text string) registry.Fingerprint { return sha256.Sum256([]byte(text)) }

// TestIndexBehavesAsAMap compares random changes with a plain model: states, usable
// certificates, attributes, and who is found by the beginning of a fingerprint.
func TestIndexBehavesAsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		x.init()
		model := make(map[string]registry.Facts)
		// Few first octets, so that names meet.
		some := func(n int) registry.Fingerprint {
			f := sumOf(fmt.Sprint(n))
			if n%3 == 0 {
				copy(f[:ticket.ShortName], "same")
			}
			return f
		}
		ids := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("pi-", rapid.IntRange(0, 400).Draw(t, "n")) })
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				f := registry.Facts{
					ID: ids.Draw(t, "id"), State: rapid.SampledFrom(registry.States()).Draw(t, "state"),
					Attributes: &registry.Attributes{Model: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "model")},
				}
				for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 50), 0, 3, rapid.ID[int]).Draw(t, "usable") {
					f.Usable = append(f.Usable, some(n))
				}
				x.put(&f)
				model[f.ID] = f
			},
			"set state": func(t *rapid.T) {
				id, state := ids.Draw(t, "id"), rapid.SampledFrom(registry.States()).Draw(t, "state")
				x.setState(id, state)
				if f, ok := model[id]; ok {
					f.State = state
					model[id] = f
				}
			},
			"": func(t *rapid.T) {
				if x.len() != len(model) {
					t.Fatalf("%d devices, want %d", x.len(), len(model))
				}
				id := ids.Draw(t, "looked up")
				got, ok := x.lookup(id)
				want, known := model[id]
				if ok != known || known && (got.state != want.State || !slices.Equal(got.usable, want.Usable) || got.attributes.Model != want.Attributes.Model) {
					t.Fatalf("%s is %+v, %v; want %+v, %v", id, got, ok, want, known)
				}
				sum := some(rapid.IntRange(0, 50).Draw(t, "name"))
				found := make(map[string]bool)
				for _, r := range x.names[sum[0]].find(sum[:ticket.ShortName]) {
					id, _ := x.entry(r)
					found[id] = true
				}
				owners := make(map[string]bool)
				for id, f := range model {
					if slices.ContainsFunc(f.Usable, func(has registry.Fingerprint) bool { return string(has[:4]) == string(sum[:4]) }) {
						owners[id] = true
					}
				}
				if !maps.Equal(found, owners) {
					t.Fatalf("%x leads to %v, want %v", sum[:4], found, owners)
				}
			},
		})
	})
}

func TestCountsFollowStates(t *testing.T) {
	r := newRig(t)
	r.populate(100)
	want := map[registry.State]int{registry.StateActive: 90, registry.StateRevoked: 10, registry.StateRegistered: 0, registry.StateSuspended: 0, registry.StateRetired: 0, registry.StateReplaced: 0, registry.StateQuarantined: 0}
	if got := r.Count(); !maps.Equal(got, want) || r.Len() != 100 {
		t.Errorf("counts %v of %d", got, r.Len())
	}
	if _, err := r.Suspend(t.Context(), plain(0, nil).ID, "", ann); err != nil {
		t.Fatal(err)
	}
	if got := r.Count(); got[registry.StateActive] != 89 || got[registry.StateSuspended] != 1 {
		t.Errorf("counts %v", got)
	}
}

// A device takes at most 100 bytes of memory.
func TestIndexKeepsADeviceInAHundredBytes(t *testing.T) {
	const devices = 150_000
	var x index
	x.init()
	var before, after runtime.MemStats
	settle()
	runtime.ReadMemStats(&before)
	for i := range devices {
		d := plain(i, nil)
		facts := d.Facts()
		x.put(&facts)
	}
	settle()
	runtime.ReadMemStats(&after)
	each := (float64(after.HeapAlloc) - float64(before.HeapAlloc)) / devices
	t.Logf("%.1f bytes a device", each)
	if each > 100 {
		t.Errorf("a device takes %.1f bytes", each)
	}
	runtime.KeepAlive(&x)
}

func TestAttributesBeyondTheTableAreReadFromTheStore(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	// Others take every place there is.
	for i := range maxSets {
		r.index.attributes.acquire(&registry.Attributes{Model: fmt.Sprint(i)})
	}
	model := "of its own"
	if _, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Model: &model}, ann); err != nil {
		t.Fatal(err)
	}
	c, _ := r.index.lookup("pi-1")
	status, ok := r.Status("pi-1")
	if c.attributes != nil || !ok || status.Model != model || status.Labels["line"] != "a" || len(status.Fingerprints) != 1 {
		t.Fatalf("status = %+v, %v", status, ok)
	}
	if err := r.Fleet.Close(); err != nil {
		t.Fatal(err)
	}
	r.bolt.Close()
	if status, ok := r.Status("pi-1"); !ok || status.State.MayConnect() || status.Labels != nil {
		t.Fatalf("status of a device whose labels can't be read = %+v, %v", status, ok)
	}
	r.open()
}

func TestPlacesInTheAttributeTableAreUsedAgain(t *testing.T) {
	var table attributeTable
	first := table.acquire(&registry.Attributes{Model: "a"})
	if again := table.acquire(&registry.Attributes{Model: "a"}); again != first {
		t.Errorf("equal attributes are at %d and %d", first, again)
	}
	for i := range 3 * maxSets {
		n := table.acquire(&registry.Attributes{Model: fmt.Sprint("model ", i)})
		if n == onDisk || n == first {
			t.Fatalf("set %d is at %d", i, n)
		}
		table.release(n)
	}
	table.release(first)
	if table.at(first) == nil {
		t.Error("a set that is still used is gone")
	}
	table.release(first)
	if table.at(first) != nil || table.at(onDisk) != nil {
		t.Error("a set that nobody uses is still there")
	}
	table.release(onDisk)
}

// TestReadersOfTheIndexSeeOneDeviceAtATime is for the race detector: what is read is one
// of the states that were written, never a mixture of two.
func TestReadersOfTheIndexSeeOneDeviceAtATime(t *testing.T) {
	var x index
	x.init()
	facts := func(i int) *registry.Facts {
		state := registry.StateActive
		if i%2 == 1 {
			state = registry.StateRevoked
		}
		return &registry.Facts{ID: "pi-1", State: state, Attributes: &registry.Attributes{Model: fmt.Sprint(i)}, Usable: []registry.Fingerprint{sumOf(fmt.Sprint(i))}}
	}
	x.put(facts(0))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, ok := x.lookup("pi-1")
				if !ok || c.usable[0] != sumOf(c.attributes.Model) {
					t.Error("a mixture of two states was read")
					return
				}
			}
		})
	}
	for i := range 2000 {
		x.put(facts(i % 100))
		other := registry.Facts{ID: fmt.Sprint("pi-", i+2), State: registry.StateActive, Attributes: &registry.Attributes{}}
		x.put(&other)
	}
	close(stop)
	readers.Wait()
}
