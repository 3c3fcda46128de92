package station

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/manifest"
)

func TestHubGetsEveryManifestOnceWhateverWasLost(t *testing.T) {
	s, fleet := bench(t)
	out := t.TempDir()
	issue := func(id string) {
		t.Helper()
		if _, err := s.Issue(DeviceOrder{ID: id, Out: filepath.Join(out, id)}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string // what reached the hub, numbers and first devices
	fail := errors.New("the line went dead")
	send := func(before, after bool) func(context.Context, []byte) error {
		return func(_ context.Context, data []byte) error {
			if before {
				return fail
			}
			m, _, err := manifest.Open(data, []*x509.Certificate{fleet.Root.Certificate()}, time.Now())
			if err != nil {
				t.Error(err)
				return err
			}
			leaf, err := x509.ParseCertificate(m.Devices[0].Certificate)
			if err != nil {
				t.Error(err)
				return err
			}
			got = append(got, fmt.Sprint(m.Number, leaf.Subject.CommonName))
			if after {
				return fail
			}
			return nil
		}
	}
	issue("a")
	if _, err := s.Export(filepath.Join(out, "1.jws")); err != nil { // it went by stick
		t.Fatal(err)
	}
	issue("b")
	if _, err := s.Sync(t.Context(), send(true, false)); !errors.Is(err, fail) {
		t.Fatal(err)
	}
	issue("c")
	if _, err := s.Sync(t.Context(), send(false, true)); !errors.Is(err, fail) { // it arrived, and we weren't told
		t.Fatal(err)
	}
	done, err := s.Sync(t.Context(), send(false, false))
	if err != nil || done.Manifests != 2 || done.Last != 2 {
		t.Errorf("%+v %v", done, err)
	}
	if done, err := s.Sync(t.Context(), send(true, false)); err != nil || done.Manifests != 0 {
		t.Errorf("nothing new: %+v %v", done, err)
	}
	if want := []string{"1a", "1a", "2b"}; !slices.Equal(got, want) {
		t.Errorf("the hub got %v, want %v", got, want)
	}
	issue("d")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sync(ctx, send(false, false)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// What was committed for the hub is the next file, too.
	if e, err := s.Export(filepath.Join(out, "3.jws")); err != nil || e.Number != 3 || e.Devices != 1 {
		t.Errorf("%+v %v", e, err)
	}
}
