package fleet

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
)

// TestAttributesAreThoseOfTheStatus, whether they are in memory or, beyond the bound of
// different ones, on disk.
func TestAttributesAreThoseOfTheStatus(t *testing.T) {
	r := newRig(t)
	r.register("pi-0", "pi-1")
	for i, label := range []string{"north", "south"} {
		if _, err := r.Relabel(t.Context(), Relabel{Device: fmt.Sprintf("pi-%d", i), Labels: map[string]string{"site": label}}, ann); err != nil {
			t.Fatal(err)
		}
	}
	same := func(when string) {
		t.Helper()
		for _, id := range []string{"pi-0", "pi-1", "pi-2"} {
			status, registered := r.Status(id)
			a, known := r.Attributes(id)
			if known != (registered && status.State != "") {
				t.Errorf("%s, %s: known is %v, and the status %+v, %v", when, id, known, status, registered)
			}
			if !known {
				continue
			}
			want := registry.Attributes{Model: status.Model, Batch: status.Batch, Station: status.Station, Protection: status.Protection, Labels: status.Labels, OU: a.OU, Issuers: a.Issuers}
			if !reflect.DeepEqual(*a, want) {
				t.Errorf("%s, %s: %+v, and the status has %+v", when, id, *a, want)
			}
		}
	}
	same("in memory")
	if n := testing.AllocsPerRun(100, func() { r.Attributes("pi-0") }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
	for i := range maxSets { // until there is no room for another set
		r.index.attributes.acquire(&registry.Attributes{Model: fmt.Sprint(i)})
	}
	if _, err := r.Relabel(t.Context(), Relabel{Device: "pi-1", Labels: map[string]string{"site": "west"}}, ann); err != nil {
		t.Fatal(err)
	}
	if a, known := r.index.attributesOf("pi-1"); a != nil || !known {
		t.Fatal("its attributes are in memory, so nothing is proved")
	}
	same("on disk")
	if a, _ := r.Attributes("pi-1"); a.Labels["site"] != "west" {
		t.Errorf("%+v", a)
	}
}
