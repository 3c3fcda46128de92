package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// Plan is what a revocation would do. Nothing has been changed.
type Plan struct {
	ID        string         `json:"id"`
	State     registry.State `json:"state"`
	Model     string         `json:"model,omitempty"`
	Station   string         `json:"station,omitempty"`
	Serials   []string       `json:"serials"` // certificates that would be revoked
	Reason    string         `json:"reason"`
	Already   bool           `json:"already,omitempty"` // it is revoked; nothing would change
	FirstSeen time.Time      `json:"first_seen,omitzero"`
	LastSeen  time.Time      `json:"last_seen,omitzero"`
}

// Receipt is the proof of a device's cut-off: after DurableAt it holds through any
// crash, after EffectiveAt no handshake and no connect of the device is admitted, and
// after LastSessionClosedAt no connection of it is left.
type Receipt struct {
	ID                  string         `json:"id"`
	State               registry.State `json:"state"`
	Serials             []string       `json:"serials,omitempty"` // of every certificate revoked
	Reason              string         `json:"reason"`
	Already             bool           `json:"already,omitempty"` // it was done before, at DurableAt
	RequestedAt         time.Time      `json:"requested_at"`
	DurableAt           time.Time      `json:"durable_at"`
	EffectiveAt         time.Time      `json:"effective_at"`
	SessionsClosed      int            `json:"sessions_closed"`
	LastSessionClosedAt time.Time      `json:"last_session_closed_at,omitzero"`
}

// PlanRevoke returns what Revoke would do and changes nothing.
func (f *Fleet) PlanRevoke(ctx context.Context, id string, reason revocation.Reason) (Plan, error) {
	d, err := f.Device(ctx, id)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{
		ID: d.ID, State: d.State, Model: d.Model, Station: d.Station, Serials: []string{}, Reason: reason.String(),
		Already: d.State == registry.StateRevoked, FirstSeen: d.FirstSeen, LastSeen: d.LastSeen,
	}
	for _, c := range d.Certificates {
		if c.Revoked.IsZero() {
			p.Serials = append(p.Serials, c.Serial)
		}
	}
	return p, nil
}

// Revoke cuts a device off for good. When it returns a receipt, the revocation is
// durable and effective and its sessions are closed. Revoking again returns a receipt
// with Already set and the first revocation's reason and time. An error that matches
// ErrNotDurable means that the device is cut off until the hub restarts.
func (f *Fleet) Revoke(ctx context.Context, id string, reason revocation.Reason, actor Actor) (Receipt, error) {
	return f.cutOff(ctx, id, reason.String(), cut{
		action: "device.revoke", state: registry.StateRevoked, word: "revoked", apply: (*registry.Device).Revoke,
	}, actor)
}

// Suspend cuts a device off until Resume, with the guarantees of Revoke. Suspending
// again returns a receipt with Already set.
func (f *Fleet) Suspend(ctx context.Context, id, reason string, actor Actor) (Receipt, error) {
	if err := validText("reason", reason); err != nil {
		return Receipt{}, err
	}
	return f.cutOff(ctx, id, reason, cut{
		action: "device.suspend", state: registry.StateSuspended, word: "suspended", apply: (*registry.Device).Suspend,
	}, actor)
}

// Resume lifts a suspension. The device may connect when it returns.
func (f *Fleet) Resume(ctx context.Context, id, reason string, actor Actor) (registry.Device, error) {
	if err := validText("reason", reason); err != nil {
		return registry.Device{}, err
	}
	var d registry.Device
	err := f.write(ctx, func() error {
		record := f.audit(actor, "device.resume", id)
		record.Reason = reason
		var err error
		if d, err = f.Device(ctx, id); err != nil {
			f.refused(ctx, record, err)
			return err
		}
		record.Before = d.State
		if err := d.Resume(record.Time); err != nil {
			f.refused(ctx, record, err)
			return err
		}
		record.After = d.State
		if err := f.config.Store.Commit(ctx, registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}}); err != nil {
			return fmt.Errorf("resume %s: %w", id, err)
		}
		f.publish(&d)
		return nil
	})
	if err == nil {
		f.config.Log.Info("device resumed", "device", id, "actor", actor.Name)
	}
	return d, err
}

// cut is one way of cutting a device off.
type cut struct {
	action string
	state  registry.State
	word   string
	apply  func(d *registry.Device, reason string, now time.Time) error
}

// cutOff marks durably, publishes, then disconnects: in this order, a device that
// connects meanwhile is either refused by the index or found among the sessions.
func (f *Fleet) cutOff(ctx context.Context, id, reason string, c cut, actor Actor) (Receipt, error) {
	receipt := Receipt{ID: id, State: c.state, Reason: reason, RequestedAt: f.config.Now()}
	if err := f.write(ctx, func() error { return f.mark(ctx, &receipt, c, actor) }); err != nil {
		if errors.Is(err, ErrNotDurable) {
			f.disconnect(ctx, &receipt, c)
		}
		return Receipt{}, err
	}
	// Also when it was marked before: a crash may have come between.
	f.disconnect(ctx, &receipt, c)
	f.config.Log.Info("device "+c.word, "device", id, "reason", receipt.Reason, "already", receipt.Already, "sessions", receipt.SessionsClosed, "actor", actor.Name)
	return receipt, nil
}

// mark makes the cut durable and publishes it. If the store can't be written, it
// publishes the cut all the same and returns ErrNotDurable: better cut off too long
// than not at all.
func (f *Fleet) mark(ctx context.Context, receipt *Receipt, c cut, actor Actor) error {
	record := f.audit(actor, c.action, receipt.ID)
	record.Reason = receipt.Reason
	d, err := f.Device(ctx, receipt.ID)
	if errors.Is(err, ErrUnknownDevice) {
		f.refused(ctx, record, err)
		return err
	}
	if err != nil {
		return f.markInMemory(receipt.ID, c, err)
	}
	if d.State == c.state {
		f.unblock(d.ID, c.state)
		f.publish(&d)
		receipt.Already, receipt.Reason = true, d.Reason
		receipt.DurableAt, receipt.EffectiveAt = d.Updated, d.Updated
		receipt.Serials = revokedSerials(&d)
		return nil
	}
	record.Before = d.State
	if err := c.apply(&d, receipt.Reason, record.Time); err != nil {
		f.refused(ctx, record, err)
		return err
	}
	record.After = d.State
	// A caller that goes away now must not leave the cut half done.
	err = f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}})
	if err != nil {
		return f.markInMemory(receipt.ID, c, err)
	}
	receipt.DurableAt = f.config.Now()
	f.unblock(d.ID, c.state)
	f.publish(&d)
	receipt.EffectiveAt, receipt.Serials = f.config.Now(), revokedSerials(&d)
	return nil
}

// markInMemory cuts off a device whose record can't be read or written.
func (f *Fleet) markInMemory(id string, c cut, cause error) error {
	status, known := f.Status(id)
	if !known {
		return cause
	}
	if !status.State.Final() {
		f.blocked[id] = c.state
		status.State = c.state
		f.index.Store(id, &status)
	}
	f.config.Log.Error("a cut-off is not durable", "device", id, "action", c.action, "error", cause)
	return fmt.Errorf("%w: %s is cut off now but will not be after a restart of the hub: %w; make the store writable and repeat this before restarting", ErrNotDurable, id, cause)
}

// unblock lifts the block of markInMemory now that the record itself says state, or
// leaves it if it is the stricter of the two.
func (f *Fleet) unblock(id string, state registry.State) {
	if f.blocked[id] == state || state.Final() {
		delete(f.blocked, id)
	}
}

func (f *Fleet) disconnect(ctx context.Context, receipt *Receipt, c cut) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), disconnectTimeout)
	defer cancel()
	receipt.SessionsClosed, receipt.LastSessionClosedAt = f.config.Sessions.Disconnect(ctx, receipt.ID, c.word)
}

func revokedSerials(d *registry.Device) []string {
	var serials []string
	for _, c := range d.Certificates {
		if !c.Revoked.IsZero() {
			serials = append(serials, c.Serial)
		}
	}
	return serials
}

// ErrText is in the chain of the error about a free text that isn't acceptable.
var ErrText = errors.New("unacceptable text")

// validText bounds what an operator or a station may write into a record.
func validText(what, text string) error {
	const most = 256
	if len(text) > most {
		return fmt.Errorf("%w: the %s has %d bytes, at most %d are kept", ErrText, what, len(text), most)
	}
	if !utf8.ValidString(text) {
		return fmt.Errorf("%w: the %s is not UTF-8", ErrText, what)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: the %s has the unprintable character %U", ErrText, what, r)
		}
	}
	return nil
}
