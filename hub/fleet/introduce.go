package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/hub/registry"
)

// DefaultQuarantine is how many devices may wait for an operator's approval at a time.
const DefaultQuarantine = 1000

// Introduction is a device that no manifest has named, and that came with a certificate.
type Introduction struct {
	// Certificate is the device's, whose key it has proved, and Issuer the factory's issuing
	// CA that signed it. That it is trusted, and the certificate good now, is the caller's
	// to have verified.
	Certificate, Issuer *x509.Certificate

	Address string // of the device, for the audit log

	// Activate has the device registered at once. Otherwise it waits, quarantined, for
	// an operator's approval or a manifest.
	Activate bool
}

// The reasons of an IntroductionRefusal.
const (
	RefusedForQuarantine = "quarantine-full"
	RefusedForBudget     = "device-budget"
	RefusedForIssuer     = "issuer-not-factory"
	RefusedForSerial     = "serial-taken"
)

// IntroductionRefusal is the error of a device that is not taken down.
type IntroductionRefusal struct {
	Reason string // one word
	Detail string // one sentence
}

// Error returns the sentence.
func (r *IntroductionRefusal) Error() string { return r.Detail }

// Knows reports, from memory, whether a device of that ID has a record.
func (f *Fleet) Knows(id string) bool {
	_, known := f.index.state(id)
	return known
}

// CheckIntroduction returns nil if Introduce would take the device down, as far as that can
// be told from memory, else an *IntroductionRefusal. It is safe inside a TLS handshake.
func (f *Fleet) CheckIntroduction(in Introduction) error {
	refuse := func(reason, format string, args ...any) error {
		return &IntroductionRefusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
	}
	name := in.Certificate.Subject.CommonName
	kind, err := identity.KindOf(in.Issuer)
	switch {
	case err != nil || kind != identity.KindFactory:
		return refuse(RefusedForIssuer, "device %s is not registered, and its certificate is by no factory: only a device that was registered once has one of this hub's", name)
	case f.needsTPM("") && identity.ProtectionOf(in.Certificate) != identity.ProtectionTPM:
		return refuse(RefusedForProtection, "device %s is not registered, and nothing says that its key is in a TPM, as those of models that aren't known must be (key_protection)", name)
	case !in.Activate && f.quarantined() >= f.quarantine():
		return refuse(RefusedForQuarantine, "device %s is not registered, and %d devices wait for approval already, which is the most: approve or revoke them (hub device list --select state=quarantined)", name, f.quarantine())
	}
	return nil
}

func (f *Fleet) quarantine() int {
	if f.config.Quarantine != nil {
		return f.config.Quarantine()
	}
	return DefaultQuarantine
}

// quarantined returns how many devices wait for approval.
func (f *Fleet) quarantined() int {
	return int(f.index.counts[stateCode(registry.StateQuarantined)].Load())
}

// Introduce takes down a device that came before any manifest named it, and returns its
// state once that is durable: quarantined, or registered if it is to be activated. One of
// that ID that is known already is left as it is. It counts against the budget of its
// station like one that a manifest named, whatever becomes of it, so a stolen key of a
// station makes no more of them than of others.
func (f *Fleet) Introduce(ctx context.Context, in Introduction) (registry.State, error) {
	id, err := identity.FromCertificate(in.Certificate)
	if err != nil {
		return "", err
	}
	var state registry.State
	err = f.write(ctx, func() error {
		if known, ok := f.index.state(id.ID); ok {
			state = known
			return nil
		}
		if err := f.admissible(ctx, in); err != nil {
			return err
		}
		d, record, err := f.newcomer(in, id)
		if err != nil {
			return err
		}
		err = f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}})
		if conflict, ok := errors.AsType[*registry.ConflictError](err); ok {
			return &IntroductionRefusal{Reason: RefusedForSerial, Detail: conflict.Error()}
		}
		if err != nil {
			return fmt.Errorf("introduce %s: %w", id.ID, err)
		}
		f.publish(&d)
		state = d.State
		return nil
	})
	if err == nil && state == registry.StateQuarantined {
		f.config.Log.Warn("a device waits for approval: hub device approve", "device", id.ID, "station", in.Issuer.Subject.CommonName, "address", in.Address)
	}
	return state, err
}

// admissible is CheckIntroduction with the station's budget. It runs in the writer's turn.
func (f *Fleet) admissible(ctx context.Context, in Introduction) error {
	if err := f.CheckIntroduction(in); err != nil {
		return err
	}
	station := in.Issuer.Subject.CommonName
	budget, err := issuance.DeviceBudget(in.Issuer)
	if err != nil {
		return &IntroductionRefusal{Reason: RefusedForBudget, Detail: err.Error()}
	}
	made, err := f.madeBy(ctx, station, budget-1)
	if err != nil {
		return err
	}
	if made >= budget {
		return &IntroductionRefusal{Reason: RefusedForBudget, Detail: fmt.Sprintf("station %s may make %d devices, and has made %d; if that is right, raise it with `hub station authorize --max-devices`", station, budget, made)}
	}
	return nil
}

// newcomer returns the record of the device, and of its coming.
func (f *Fleet) newcomer(in Introduction, id identity.Identity) (registry.Device, registry.AuditRecord, error) {
	record := f.audit(Actor{Name: id.String(), Address: in.Address}, "device.introduce", id.ID)
	d := registry.Device{
		ID: id.ID, OU: id.OU, BoardSerial: id.BoardSerial, Station: in.Issuer.Subject.CommonName,
		Protection: string(identity.ProtectionOf(in.Certificate)), Certificates: []registry.Certificate{registryCertificate(in.Certificate)},
	}
	cause := registry.Cause{Actor: record.Actor, At: record.Time}
	err := d.Introduce(cause)
	if err == nil && in.Activate {
		cause.Actor, cause.Note = recorderName, "devices of station "+d.Station+" are activated at once (just_in_time.activate)"
		err = d.Approve(cause)
	}
	record.After = d.State
	record.Detail = fmt.Sprintf("serial number %s by station %s, key protection %s", d.Certificates[0].Serial, d.Station, d.Protection)
	return d, record, err
}

// named completes a device that introduced itself before this manifest came.
func (b *batch) named(d *registry.Device, e entry) error {
	before := d.State
	if d.Station == b.manifest.Station {
		b.counted++
	}
	if err := d.Named(registry.Name{
		Certificate: e.certificate, Station: b.manifest.Station, Model: e.listed.Model, Batch: registry.BatchOf(e.listed.Labels, b.manifest.Station, b.manifest.Number),
		OU: e.identity.OU, BoardSerial: e.identity.BoardSerial, Protection: e.listed.Protection, EK: e.listed.EK,
		Labels: e.listed.Labels, Manifest: b.manifest.Number,
	}, b.cause()); err != nil {
		return rejected(err)
	}
	b.put(d, before, e)
	b.report.Registered++
	b.completed = append(b.completed, d.ID)
	return nil
}
