// Package fleet has the operator's verbs over the device registry: import a signed
// manifest, suspend, resume, revoke, look up. It is the only writer of device records.
//
// Every verb first makes its change and the audit record of it durable in one
// transaction, then publishes it to the in-memory index that admission reads, then
// disconnects who must go. A crash between two of these steps leaves the stricter
// outcome: after a restart the index is read from the store and nobody is connected.
package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

// Store keeps device records and the audit log. Commit is all or nothing and durable
// when it returns nil; it refuses a certificate that another device owns with a
// *registry.ConflictError. Device returns registry.ErrUnknown for an ID without record.
type Store interface {
	Device(ctx context.Context, id string) (registry.Device, error)
	Devices(ctx context.Context, after string, limit int) ([]registry.Device, error)
	Audit(ctx context.Context, after uint64, limit int) ([]registry.AuditRecord, error)
	Commit(ctx context.Context, change registry.Change) error
}

// Sessions disconnects what is connected. It returns how many connections it closed
// and when the last of them was closed (zero if none was), and waits for that.
type Sessions interface {
	Disconnect(ctx context.Context, id string, reason string) (closed int, last time.Time)
}

// Config is what Open needs. Store, Sessions, TrustDomain and Roots are required.
type Config struct {
	Store       Store
	Sessions    Sessions
	TrustDomain string // of every device in a manifest

	// Roots returns who may authorize a factory station now.
	Roots func() []*x509.Certificate

	// Issuers returns the issuing CAs that the hub trusts now, such as
	// mtls.Verifier.Trust().Issuers; a manifest by any other is refused. Nil means
	// every factory CA that one of Roots signed.
	Issuers func() []*x509.Certificate

	// BeforeImport is called before a manifest is judged by Issuers, so that a station
	// authorized a minute ago is among them. Nil: nothing is called.
	BeforeImport func()

	Now           func() time.Time // nil: time.Now
	Log           *slog.Logger     // nil: nothing is logged
	FlushInterval time.Duration    // how long a sighting may wait in memory; 0: one second
}

// Fleet is the registry at work. It is safe for concurrent use. Close it before its
// store.
type Fleet struct {
	config Config
	index  sync.Map // device ID → *registry.Status, never changed once stored
	ticket resumable

	// turn holds one token: whoever takes it may write. Records are read, changed,
	// committed and published in one turn, so the index follows the store's order.
	// It is a channel and no mutex because disk I/O happens under it and callers
	// must be able to give up waiting. Status never takes it.
	turn chan struct{}

	// blocked has the state of devices that an operator cut off while the store
	// couldn't be written. It overrides the record until the same verb succeeds.
	// Only the holder of the turn touches it.
	blocked map[string]registry.State

	sightings chan registry.Sighting // never closed; the recorder reads it
	dropped   atomic.Uint64          // sightings lost to a full queue
	stop      chan struct{}          // closed by Close
	closing   sync.Once
	recorder  sync.WaitGroup // the goroutine that records sightings
}

// Bounds of what is kept in memory and of one page.
const (
	sightingQueue = 4096
	loadPage      = 1000
	maxPage       = 1000
	defaultPage   = 100
)

// disconnectTimeout bounds how long a verb waits for sockets to close.
const disconnectTimeout = 5 * time.Second

// ErrUnknownDevice is in the chain of errors about an ID that has no record.
var ErrUnknownDevice = errors.New("no such device")

// ErrNotDurable is in the chain of the error of a Suspend or Revoke whose mark
// couldn't be written. The device is cut off, but only until the hub restarts.
var ErrNotDurable = errors.New("the change is not durable")

// Actor is who asks for a change, for the audit log.
type Actor struct {
	Name    string // such as the operator's SPIFFE ID
	Address string // where the request came from
}

// Open reads every device record into memory and starts recording sightings. It
// fails on the first record it can't read: a hub that doesn't know whom it refuses
// must not start.
func Open(config Config) (*Fleet, error) {
	if config.Store == nil || config.Sessions == nil || config.Roots == nil || len(config.Roots()) == 0 {
		return nil, errors.New("open fleet: a store, sessions and at least one root are required")
	}
	if err := identity.ValidTrustDomain(config.TrustDomain); err != nil {
		return nil, fmt.Errorf("open fleet: %w", err)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.FlushInterval <= 0 {
		config.FlushInterval = time.Second
	}
	f := &Fleet{
		config:    config,
		turn:      make(chan struct{}, 1),
		blocked:   make(map[string]registry.State),
		sightings: make(chan registry.Sighting, sightingQueue),
		stop:      make(chan struct{}),
	}
	if err := f.ticket.init(); err != nil {
		return nil, err
	}
	for after := ""; ; {
		page, err := config.Store.Devices(context.Background(), after, loadPage)
		if err != nil {
			return nil, fmt.Errorf("open fleet: %w", err)
		}
		for i := range page {
			f.publish(&page[i])
		}
		if len(page) < loadPage {
			break
		}
		after = page[len(page)-1].ID
	}
	f.recorder.Go(f.recordSightings)
	return f, nil
}

// Close records the sightings still in memory and stops. Seen may still be called and
// does nothing. The store stays open.
func (f *Fleet) Close() error {
	f.closing.Do(func() { close(f.stop) })
	f.recorder.Wait()
	return nil
}

// Status returns what admission needs to know of a device, from memory: no I/O, no
// lock, safe inside a TLS handshake. False means that there is no such device. The
// result's slice and map are shared; nobody may change them.
func (f *Fleet) Status(id string) (registry.Status, bool) {
	if s, ok := f.index.Load(id); ok {
		return *s.(*registry.Status), true
	}
	return registry.Status{}, false
}

// publish puts the record's status into the index, or the stricter one of a device
// whose cut-off isn't durable yet. Only the holder of the turn, or Open, calls it.
func (f *Fleet) publish(d *registry.Device) {
	status := d.Status()
	if state, ok := f.blocked[d.ID]; ok {
		status.State = state
	}
	f.index.Store(d.ID, &status)
	f.ticket.publish(d)
}

// Device returns the record of that ID, or ErrUnknownDevice.
func (f *Fleet) Device(ctx context.Context, id string) (registry.Device, error) {
	if identity.ValidID(id) != nil {
		return registry.Device{}, fmt.Errorf("%w: %.80q can't be a device's ID", ErrUnknownDevice, id)
	}
	d, err := f.config.Store.Device(ctx, id)
	if errors.Is(err, registry.ErrUnknown) {
		return d, fmt.Errorf("%w: %s; `hub device list` shows those there are", ErrUnknownDevice, id)
	}
	return d, err
}

// Page is one page of records in order of ID. Next is what to pass as after for the
// following page, empty on the last.
type Page struct {
	Devices []registry.Device
	Next    string
}

// Devices returns the page of records after an ID; an empty after starts at the
// first. A limit of 0 means 100, and 1000 is the most.
func (f *Fleet) Devices(ctx context.Context, after string, limit int) (Page, error) {
	limit = pageSize(limit)
	devices, err := f.config.Store.Devices(ctx, after, limit+1)
	if err != nil {
		return Page{}, err
	}
	page := Page{Devices: devices}
	if len(devices) > limit {
		page.Devices, page.Next = devices[:limit], devices[limit-1].ID
	}
	return page, nil
}

// Audit returns the audit records after a number, oldest first, with the limits of
// Devices.
func (f *Fleet) Audit(ctx context.Context, after uint64, limit int) ([]registry.AuditRecord, error) {
	return f.config.Store.Audit(ctx, after, pageSize(limit))
}

func pageSize(limit int) int {
	if limit <= 0 {
		return defaultPage
	}
	return min(limit, maxPage)
}

// write runs fn while nobody else writes, or gives up when ctx ends first.
func (f *Fleet) write(ctx context.Context, fn func() error) error {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
		return fn()
	case <-ctx.Done():
		return fmt.Errorf("wait for another change to the fleet: %w", ctx.Err())
	}
}

// audit begins an audit record.
func (f *Fleet) audit(actor Actor, action, device string) registry.AuditRecord {
	return registry.AuditRecord{
		Time: f.config.Now(), Actor: actor.Name, Address: actor.Address,
		Action: action, Device: clip(device), Outcome: registry.OutcomeDone,
	}
}

// refused leaves an audit record of a verb that was refused. That it couldn't be
// written is logged only: the refusal stands either way.
func (f *Fleet) refused(ctx context.Context, r registry.AuditRecord, cause error) {
	r.Outcome, r.Detail = registry.OutcomeRefused, clip(cause.Error())
	if err := f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Audit: []registry.AuditRecord{r}}); err != nil {
		f.config.Log.Error("a refusal is missing in the audit log", "action", r.Action, "device", r.Device, "error", err)
	}
}

// clip bounds what a request can write into the audit log.
func clip(s string) string {
	const most = 1000
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
