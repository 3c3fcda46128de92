package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/registry"
)

var ann = Actor{Name: "spiffe://fleet.example/operator/ann", Address: "192.0.2.1:4711"}

// sessions remembers who was disconnected and looks, at that moment, whether the
// index already refuses them: a disconnect before that would let them come back.
type sessions struct {
	many atomic.Pointer[chan struct{}] // closed to let those go who are cut off with others; nil: they go at once

	mu       sync.Mutex // guards what follows
	fleet    *Fleet
	live     map[string]int
	packet   time.Time // the last one of anybody
	calls    []string
	tooEarly []string
}

func (s *sessions) DisconnectMany(_ context.Context, ids []string, reason string) (closed []Closed) {
	if held := s.many.Load(); held != nil && len(ids) > 1 {
		<-*held
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.calls = append(s.calls, id+" "+reason)
		if status, _ := s.fleet.Status(id); reason != "superseded" && status.State.MayConnect() {
			s.tooEarly = append(s.tooEarly, id)
		}
		if n := s.live[id]; n > 0 {
			closed = append(closed, Closed{ID: id, Sessions: n, At: time.Now(), LastPacket: s.packet})
		}
		delete(s.live, id)
	}
	return closed
}

// faulty is a store whose commits fail while broken is set, and from the one on that
// after counts down to.
type faulty struct {
	Store
	broken atomic.Bool
	after  atomic.Int64 // commits that go well yet; negative: all
}

func (f *faulty) Commit(ctx context.Context, change registry.Change) error {
	if f.broken.Load() || f.after.Load() == 0 {
		return errors.New("no space left on device")
	}
	f.after.Add(-1)
	return f.Store.Commit(ctx, change)
}

// rig is a fleet over a real store and a throwaway PKI.
type rig struct {
	*Fleet
	t        *testing.T
	pki      *certtest.Fleet
	store    *faulty
	bolt     *boltstore.Store
	path     string
	sessions *sessions
	number   uint64
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, pki: certtest.New(t), path: filepath.Join(t.TempDir(), "hub.db")}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	bolt, err := boltstore.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.bolt, r.store, r.sessions = bolt, &faulty{Store: bolt}, &sessions{live: make(map[string]int)}
	r.store.after.Store(-1)
	r.Fleet, err = Open(Config{
		Store: r.store, Sessions: r.sessions, TrustDomain: certtest.TrustDomain,
		Roots:         func() []*x509.Certificate { return r.pki.Trust().Roots },
		Issuers:       func() []*x509.Certificate { return r.pki.Trust().Issuers },
		FlushInterval: time.Millisecond,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.sessions.fleet = r.Fleet
}

func (r *rig) close() {
	r.t.Helper()
	if err := errors.Join(r.Fleet.Close(), r.bolt.Close()); err != nil {
		r.t.Error(err)
	}
	if len(r.sessions.tooEarly) > 0 {
		r.t.Errorf("disconnected before the index refused them: %v", r.sessions.tooEarly)
	}
}

// restart is what a hub's restart does to the fleet.
func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.open()
}

func entryOf(c certtest.Credential) manifest.Entry {
	return manifest.Entry{Certificate: c.Leaf.Raw, Model: "pi4", Labels: map[string]string{"line": "a"}, Protection: "software"}
}

// sign returns the station's next manifest.
func (r *rig) sign(entries ...manifest.Entry) []byte {
	r.t.Helper()
	r.number++
	return r.signAs(manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: r.number, CreatedAt: time.Now(), Devices: entries})
}

func (r *rig) signAs(m manifest.Manifest) []byte {
	r.t.Helper()
	data, err := manifest.Sign(m, []*x509.Certificate{r.pki.Factory.Certificate()}, r.pki.FactoryKey)
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// register makes devices known and returns their credentials.
func (r *rig) register(ids ...string) []certtest.Credential {
	r.t.Helper()
	var entries []manifest.Entry
	var credentials []certtest.Credential
	for _, id := range ids {
		c := r.pki.Device(id)
		credentials, entries = append(credentials, c), append(entries, entryOf(c))
	}
	if _, err := r.Import(r.t.Context(), r.sign(entries...), ann); err != nil {
		r.t.Fatal(err)
	}
	return credentials
}

func (r *rig) state(id string) registry.State {
	r.t.Helper()
	status, _ := r.Status(id)
	d, err := r.record(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	if d.State != status.State {
		r.t.Fatalf("%s is %s in the store and %s in the index", id, d.State, status.State)
	}
	return d.State
}

// log returns the whole audit log.
func (r *rig) log() []registry.AuditRecord {
	r.t.Helper()
	page, err := r.Audit(r.t.Context(), registry.AuditQuery{Limit: maxPage})
	if err != nil {
		r.t.Fatal(err)
	}
	return page.Records
}

// devices returns every record, to show that nothing changed.
func (r *rig) devices() []registry.Device {
	r.t.Helper()
	page, err := r.Devices(r.t.Context(), registry.Selector{}, "", maxPage)
	if err != nil {
		r.t.Fatal(err)
	}
	return page.Devices
}
