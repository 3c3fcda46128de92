// Package fleet has the operator's verbs over the device registry: import a signed
// manifest, suspend, resume, revoke, retire, replace, label, look up. It is the only
// writer of device records.
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
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

// Store keeps device records, documents and the audit log. Commit is all or nothing and
// durable when it returns nil; it refuses a certificate that another device owns with a
// *registry.ConflictError. What looks up by ID returns registry.ErrUnknown if there is
// nothing. Device alone returns certificates with their DER; a record that is committed
// without keeps what is stored.
type Store interface {
	Device(ctx context.Context, id string) (registry.Device, error)
	Devices(ctx context.Context, after string, limit int) ([]registry.Device, error)
	Records(ctx context.Context, ids []string) ([]registry.Device, error)
	Facts(ctx context.Context, after string, visit func(*registry.Facts) bool) error
	Attributes(ctx context.Context, id string) (registry.Attributes, error)
	Certificate(ctx context.Context, id, fingerprint string) ([]byte, error)
	Endorsed(ctx context.Context, ek string) (id string, err error)
	Owner(ctx context.Context, issuer, serial string) (registry.Ownership, error)
	Owners(ctx context.Context, issuer string, visit func(registry.Ownership) bool) error

	Document(ctx context.Context, kind registry.DocumentKind, id string) ([]byte, error)
	Documents(ctx context.Context, kind registry.DocumentKind, after string, limit int) ([]registry.Document, error)

	Audit(ctx context.Context, q registry.AuditQuery) (registry.AuditPage, error)
	AuditHead(ctx context.Context) (registry.AuditHead, error)
	AuditLines(ctx context.Context, after uint64, visit func(registry.AuditLine) bool) error

	Commit(ctx context.Context, change registry.Change) error
}

// Sessions disconnects what is connected, many at a time. DisconnectMany cuts every
// connection of these devices, in parallel and without their wills, and waits until
// their sockets are closed or ctx ends. Of devices that never come back (for the reasons
// revoked, retired and replaced of package protocol) it also removes what is stored of
// their sessions before it returns. It returns one Closed for every device
// that it has something to say about, in any order.
type Sessions interface {
	DisconnectMany(ctx context.Context, ids []string, reason string) []Closed
}

// Closed says what a disconnect found of one device.
type Closed struct {
	ID         string
	Sessions   int       // connections seen closed
	Open       int       // connections still open when the wait ended
	At         time.Time // when the last of those closed was; zero if none was
	LastPacket time.Time // when the hub last accepted a packet of the device; zero if it doesn't know
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

	// Sign returns the signed form of a receipt, such as receipt.Sign's. Nil: receipts
	// are kept unsigned.
	Sign func(payload []byte) ([]byte, error)

	// Node is the name of this hub in receipts. Empty: hub.
	Node string

	// FourEyesOver is how many devices one operator may revoke or retire in one order;
	// more need the approval of a second one. 0: any number.
	FourEyesOver int

	// NeedsTPM reports whether keys of that model must be in a TPM, proved by their
	// certificates. Nil: no model's need be. It is called for every connection.
	NeedsTPM func(model string) bool

	// Quarantine returns how many devices may wait for approval at a time. Nil:
	// DefaultQuarantine.
	Quarantine func() int

	// Changed is called after labels, models or batches of devices were changed, with
	// their IDs, so that what policy decided by them can be decided again. Nil: nothing
	// is called.
	Changed func(ids []string)

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
	index  index
	ticket resumable

	// turn holds one token: whoever takes it may write. Records are read, changed,
	// committed and published in one turn, so the index follows the store's order.
	// It is a channel and no mutex because disk I/O happens under it and callers
	// must be able to give up waiting. Status never takes it.
	turn chan struct{}

	// blocked has the state of devices that were cut off and whose record doesn't say
	// so: because the store couldn't be written, or because the order is still being
	// carried out. It overrides the record until the same verb succeeds. Only the
	// holder of the turn touches it; overlaid says to others whether it has anything.
	blocked  map[string]registry.State
	overlaid atomic.Bool

	underWay flights // orders by their IDs

	// pending has the orders that are durable and not yet written into every record,
	// oldest first. Only the holder of the turn, or Open, touches it.
	pending    []*pendingOrder
	unfinished atomic.Bool  // some could not be written; tells the recorder to try again
	cutting    atomic.Int32 // how many of them wait for their sessions' end; sightings do, too

	sightings *sightings
	stop      chan struct{} // closed by Close
	closing   sync.Once
	recorder  sync.WaitGroup // the goroutine that records sightings
}

// Bounds of what is kept in memory and of one page.
const (
	maxPage     = 1000
	defaultPage = 100
)

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

// Open reads the facts of every device into memory, finishes orders that a kill
// interrupted, and starts recording sightings. It fails on the first record it can't
// read: a hub that doesn't know whom it refuses must not start.
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
	if config.Node == "" {
		config.Node = "hub"
	}
	f := &Fleet{
		config:    config,
		turn:      make(chan struct{}, 1),
		blocked:   make(map[string]registry.State),
		sightings: newSightings(),
		stop:      make(chan struct{}),
	}
	if err := f.ticket.init(); err != nil {
		return nil, err
	}
	f.index.init()
	if err := config.Store.Facts(context.Background(), "", func(facts *registry.Facts) bool {
		f.index.put(facts)
		return true
	}); err != nil {
		return nil, fmt.Errorf("open fleet: %w", err)
	}
	if err := f.restore(); err != nil {
		return nil, fmt.Errorf("open fleet: %w", err)
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

// Status returns what admission needs to know of a device, from memory: safe inside a
// TLS handshake. False means that there is no such device. The result's map is shared;
// nobody may change it.
//
// Only where the fleet has more than 16,384 different sets of attributes are those
// beyond read from the store; while they can't be, the status admits nobody.
func (f *Fleet) Status(id string) (registry.Status, bool) {
	c, ok := f.index.lookup(id)
	if !ok {
		return registry.Status{}, false
	}
	a := c.attributes
	if a == nil {
		read, err := f.config.Store.Attributes(context.Background(), id)
		if err != nil {
			f.config.Log.Error("a device is refused because its labels can't be read", "device", id, "error", err)
			return registry.Status{}, true
		}
		a = &read
	}
	status := registry.Status{State: c.state, Labels: a.Labels, Model: a.Model, Batch: a.Batch, Station: a.Station, Protection: a.Protection, NeedsTPM: f.needsTPM(a.Model), Fingerprints: c.usable}
	return status, true
}

// publish puts the record's facts into the index, or the stricter state of a device
// whose cut-off its record doesn't have yet. Only the holder of the turn, or Open, calls
// it; for different devices at a time, if it likes.
func (f *Fleet) publish(d *registry.Device) {
	facts := d.Facts()
	if state, ok := f.blocked[d.ID]; ok {
		facts.State = state
	}
	f.index.put(&facts)
}

// publishAll publishes many records, no two of them of one device, on all processors: a
// manifest's would take as long as the look at its certificates otherwise. It is the
// whole of them that the caller's turn covers.
func (f *Fleet) publishAll(devices []registry.Device) {
	var workers sync.WaitGroup
	for chunk := range slices.Chunk(devices, max(256, len(devices)/runtime.GOMAXPROCS(0)+1)) {
		workers.Go(func() {
			for i := range chunk {
				f.publish(&chunk[i])
			}
		})
	}
	workers.Wait()
}

// block makes a cut-off effective before its records have it.
func (f *Fleet) block(id string, state registry.State) {
	f.blocked[id] = state
	f.overlaid.Store(true)
	f.index.setState(id, state)
}

// unblock lifts a block now that the record itself says state, or leaves it if it is
// the stricter of the two.
func (f *Fleet) unblock(id string, state registry.State) {
	if f.blocked[id] == state || state.Final() {
		delete(f.blocked, id)
	}
	f.overlaid.Store(len(f.blocked) > 0)
}

// inForce returns the state that decides about a device, where its record lags behind.
func (f *Fleet) inForce(id string, recorded registry.State) registry.State {
	if !f.overlaid.Load() {
		return recorded
	}
	if state, ok := f.index.state(id); ok && !state.MayConnect() {
		return state
	}
	return recorded
}

// Device returns the record of that ID, each certificate with its standing, or
// ErrUnknownDevice.
func (f *Fleet) Device(ctx context.Context, id string) (registry.Device, error) {
	d, err := f.record(ctx, id)
	if err == nil {
		f.judge(&d)
	}
	return d, err
}

// record returns the record as it is stored, or ErrUnknownDevice.
func (f *Fleet) record(ctx context.Context, id string) (registry.Device, error) {
	if identity.ValidID(id) != nil {
		return registry.Device{}, fmt.Errorf("%w: %.80q can't be a device's ID", ErrUnknownDevice, id)
	}
	d, err := f.config.Store.Device(ctx, id)
	if errors.Is(err, registry.ErrUnknown) {
		return d, fmt.Errorf("%w: %s; `hub device list` shows those there are", ErrUnknownDevice, id)
	}
	return d, err
}

// unchanged returns an error that matches registry.ErrChanged if the record has another
// revision than the one expected; empty expects any. What decides is the record as it is
// shown, in the state in force. Only the holder of the turn has an answer that lasts.
func (f *Fleet) unchanged(d registry.Device, revision string) error {
	if revision == "" {
		return nil
	}
	if d.State = f.inForce(d.ID, d.State); d.Revision() == revision {
		return nil
	}
	since := ""
	if last := d.Since(); !last.At.IsZero() {
		since = fmt.Sprintf(" since %s, by %s", last.At.UTC().Format(time.RFC3339), last.Actor)
	}
	return fmt.Errorf("%w: device %s is %s%s, not as you have seen it; look at it again with `hub device show %s`", registry.ErrChanged, d.ID, d.State, since, d.ID)
}

// judge completes a record for showing: the state in force, and what each certificate
// is worth now.
func (f *Fleet) judge(d *registry.Device) {
	d.State = f.inForce(d.ID, d.State)
	now, trusted := f.config.Now(), f.trustedIssuers()
	for i := range d.Certificates {
		c := &d.Certificates[i]
		c.Standing = c.StandingAt(now, trusted == nil || trusted[c.Issuer])
	}
}

func pageSize(limit int) int {
	if limit <= 0 {
		return defaultPage
	}
	return min(limit, maxPage)
}

// write runs fn while nobody else writes, or gives up when ctx ends first. An order that
// is not in every record yet comes first, so that nobody decides by a record that is
// about to change.
func (f *Fleet) write(ctx context.Context, fn func() error) error {
	return f.inTurn(ctx, func() error {
		f.settle(ctx)
		return fn()
	})
}

// settle has the orders that are not in every record yet there. Only the holder of the
// turn calls it.
func (f *Fleet) settle(ctx context.Context) {
	if err := f.finish(context.WithoutCancel(ctx)); err != nil {
		f.config.Log.Error("an order waits for the store", "error", err)
	}
}

// inTurn is write, whatever orders there are.
func (f *Fleet) inTurn(ctx context.Context, fn func() error) error {
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
