package fleet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

// A device gets at most renewalsInWindow certificates by renewal within the lifetime of
// one, or a day if that is shorter: whoever has its key must not fill the store.
const (
	renewalsInWindow = 8
	maxRenewalWindow = 24 * time.Hour
)

// Reasons of a RenewalRefusal that are about the request, not about the device.
const (
	RefusedForKey        = "key"            // it isn't a new one
	RefusedForRate       = "rate"           // too many renewals
	RefusedForNoTPM      = "no-tpm"         // a TPM vouches for it, and no TPM is known to be the device's
	RefusedForOtherTPM   = "other-tpm"      // the TPM that vouches for it is not the device's
	RefusedForProtection = "key-protection" // no TPM vouches for it, and the model demands that
)

// Renewal is a device's request for another certificate.
type Renewal struct {
	Device    string            // ID
	Presented *x509.Certificate // the device has proved to hold its key; chain and validity are the caller's to verify
	Key       []byte            // the SubjectPublicKeyInfo to be certified; its possession is proved
	Address   string            // of the device, for the audit log

	// EK is the TPM that vouches for the key, as registry.Device.EK has it: the device has
	// proved that the key is in it. Empty: it may be anywhere.
	EK string
}

// protection is what the certificate is to say of the key.
func (r Renewal) protection() identity.Protection {
	if r.EK == "" {
		return identity.ProtectionUnproven
	}
	return identity.ProtectionTPM
}

// RenewalRefusal is the error of a renewal that is refused.
type RenewalRefusal struct {
	Reason     string        // one word, as admission has it where it has one
	Detail     string        // one sentence
	RetryAfter time.Duration // 0: it makes no sense to ask again
}

// Error returns the sentence.
func (r *RenewalRefusal) Error() string { return r.Detail }

// Renew gives a device a certificate in place of the one it presented, and returns it
// once that is durable. Both are usable until Connected is told that the new one has
// connected. Issue signs a certificate for the key; it is called at most once, and not at
// all for a device that asks again with the key of a renewal that has not connected: it
// hears the same certificate again. Refused devices get a *RenewalRefusal.
func (f *Fleet) Renew(ctx context.Context, r Renewal, issue func() (*x509.Certificate, error)) (*x509.Certificate, error) {
	// Signing may take a TPM's time, and is not done in the writer's turn. What it is
	// decided by is looked at again there: a revocation may have been faster.
	_, made, err := f.renewable(ctx, r)
	if err != nil || made != nil {
		return made, err
	}
	leaf, err := issue()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, r.Key) {
		return nil, fmt.Errorf("renew %s: the certificate that was signed is for another key", r.Device)
	}
	if says := identity.ProtectionOf(leaf); says != r.protection() {
		return nil, fmt.Errorf("renew %s: the certificate that was signed says %s of its key, which is %s", r.Device, says, r.protection())
	}
	changed := false
	err = f.write(ctx, func() error {
		var d registry.Device
		if d, made, err = f.renewable(ctx, r); err != nil || made != nil {
			return err
		}
		former := identity.Fingerprint(r.Presented)
		record := f.audit(Actor{Name: identityOf(leaf), Address: r.Address}, "device.renew", d.ID)
		record.Before, record.After = d.State, d.State
		record.Detail = fmt.Sprintf("serial number %s until %s, renews %s", identity.SerialString(leaf.SerialNumber), leaf.NotAfter.UTC().Format(time.RFC3339), identity.SerialString(r.Presented.SerialNumber))
		if err := d.Renew(former, registryCertificate(leaf), record.Time); err != nil {
			return err
		}
		before := d.Protection
		if changed = r.protect(&d); changed {
			record.Detail += ", key protection " + d.Protection + " (was " + before + ")"
		}
		if err := f.config.Store.Commit(context.WithoutCancel(ctx), registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}}); err != nil {
			return fmt.Errorf("renew %s: %w", d.ID, err)
		}
		f.publish(&d)
		made = leaf
		return nil
	})
	if err != nil {
		return nil, err
	}
	if changed && f.config.Changed != nil {
		f.config.Changed([]string{r.Device})
	}
	return made, nil
}

// CheckRenewal returns nil if Renew would give the device a certificate, as far as that can
// be told before the key is proved to be in a TPM: the same *RenewalRefusal otherwise.
func (f *Fleet) CheckRenewal(ctx context.Context, r Renewal) error {
	_, _, err := f.renewable(ctx, r)
	return err
}

// Endorsed reports whether a device, in whatever state, has the TPM of that endorsement
// key (registry.Device.EK).
func (f *Fleet) Endorsed(ctx context.Context, ek string) bool {
	_, err := f.config.Store.Endorsed(ctx, ek)
	if err != nil && !errors.Is(err, registry.ErrUnknown) {
		f.config.Log.Error("whose a TPM is can't be read", "error", err)
	}
	return err == nil
}

// renewable returns the record of a device that may renew, with what it has been given
// already for that very key, nil if nothing.
func (f *Fleet) renewable(ctx context.Context, r Renewal) (d registry.Device, made *x509.Certificate, err error) {
	refuse := func(reason, format string, args ...any) (registry.Device, *x509.Certificate, error) {
		return registry.Device{}, nil, &RenewalRefusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
	}
	d, err = f.record(ctx, r.Device)
	if errors.Is(err, ErrUnknownDevice) {
		return refuse("unknown-device", "device %.80s is not registered at this hub", r.Device)
	}
	if err != nil {
		return d, nil, err
	}
	if state := f.inForce(d.ID, d.State); !state.MayConnect() {
		return refuse(string(state), "device %s is %s: its certificates are not renewed", d.ID, state)
	}
	fingerprint := identity.Fingerprint(r.Presented)
	at := slices.IndexFunc(d.Certificates, func(c registry.Certificate) bool { return c.Fingerprint == fingerprint })
	if at < 0 {
		return refuse("certificate-unknown", "the certificate presented is not one that is registered for device %s", d.ID)
	}
	if !d.Certificates[at].Usable() {
		return refuse("superseded", "the certificate presented was device %s's once, and another has taken its place", d.ID)
	}
	switch {
	case r.EK != "" && d.EK == "":
		return refuse(RefusedForNoTPM, "this hub knows no TPM of device %s, so none can vouch for its key", d.ID)
	case r.EK != d.EK && r.EK != "":
		return refuse(RefusedForOtherTPM, "the TPM that vouches for the key is not device %s's", d.ID)
	case r.EK == "" && f.needsTPM(d.Model):
		return refuse(RefusedForProtection, "keys of the model %s must be in a TPM, and no TPM vouches for the key that device %s sent: renew with the attested exchange (device-agent does, where the key is in the TPM)", d.Model, d.ID)
	}
	now, trusted := f.config.Now(), f.trustedIssuers()
	recent, oldest := 0, now
	for i, c := range d.Certificates {
		if since := now.Sub(c.NotBefore); c.Renews != "" && since < min(c.NotAfter.Sub(c.NotBefore), maxRenewalWindow) {
			recent++
			oldest = minTime(oldest, c.NotBefore)
		}
		same, parsed, err := isForKey(c, r.Key)
		switch {
		case err != nil:
			return d, nil, fmt.Errorf("certificate %s of %s: %w", c.Serial, d.ID, err)
		case same && i > at && c.StandingAt(now, trusted == nil || trusted[c.Issuer]) == registry.StandingUsable:
			if r.EK == "" || identity.ProtectionOf(parsed) == identity.ProtectionTPM {
				return d, parsed, nil
			}
			return refuse(RefusedForKey, "device %s has a certificate for that key which doesn't say that it is in a TPM: make a new key", d.ID)
		case same:
			return refuse(RefusedForKey, "device %s has had a certificate for that key before: make a new key", d.ID)
		}
	}
	if recent >= renewalsInWindow {
		return d, nil, &RenewalRefusal{
			Reason: RefusedForRate, RetryAfter: max(oldest.Add(maxRenewalWindow).Sub(now), time.Minute),
			Detail: fmt.Sprintf("device %s has renewed its certificate %d times within the last day, or one's lifetime", d.ID, recent),
		}
	}
	return d, nil, nil
}

func isForKey(c registry.Certificate, key []byte) (bool, *x509.Certificate, error) {
	parsed, err := x509.ParseCertificate(c.DER)
	if err != nil {
		return false, nil, err
	}
	return bytes.Equal(parsed.RawSubjectPublicKeyInfo, key), parsed, nil
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// protect notes what is proved of the new key; what was proved of another one is no proof
// any more. It reports whether that is a change.
func (r Renewal) protect(d *registry.Device) bool {
	before := d.Protection
	switch {
	case r.EK != "":
		d.Protection = protectionTPM
	case before == protectionTPM:
		d.Protection = ProtectionUnproven
	}
	return d.Protection != before
}

// identityOf returns the SPIFFE ID of a certificate that the hub has just signed.
func identityOf(leaf *x509.Certificate) string {
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return recorderName
	}
	return id.String()
}

func registryCertificate(leaf *x509.Certificate) registry.Certificate {
	return registry.Certificate{
		Serial: identity.SerialString(leaf.SerialNumber), Fingerprint: identity.Fingerprint(leaf), Issuer: hex.EncodeToString(leaf.AuthorityKeyId),
		NotBefore: leaf.NotBefore.UTC(), NotAfter: leaf.NotAfter.UTC(), DER: leaf.Raw,
	}
}

// Renewing reports, from memory, whether a device has renewed its certificate and the
// new one has not connected yet, as far as Connected was told.
func (f *Fleet) Renewing(id string) bool {
	c, ok := f.index.lookup(id)
	return ok && len(c.usable) > 1
}

// Connected is told that a device has connected with that certificate: the ones that it
// renewed are superseded, durably, and refused from then on. It returns their serial
// numbers, none if there is nothing to do. Connections by them are the caller's to cut. A
// crash before it leaves both usable until the next connection.
func (f *Fleet) Connected(ctx context.Context, id string, leaf *x509.Certificate) (superseded []string, err error) {
	if !f.Renewing(id) {
		return nil, nil
	}
	err = f.write(ctx, func() error {
		d, err := f.record(ctx, id)
		if err != nil {
			return err
		}
		record := f.audit(Actor{Name: recorderName}, "device.supersede", id)
		serials := d.Connected(identity.Fingerprint(leaf), record.Time)
		if len(serials) == 0 {
			return nil
		}
		record.Before, record.After = d.State, d.State
		record.Detail = fmt.Sprintf("serial number %s has connected, superseded: %s", identity.SerialString(leaf.SerialNumber), strings.Join(serials, ", "))
		if err := f.config.Store.Commit(ctx, registry.Change{Devices: []registry.Device{d}, Audit: []registry.AuditRecord{record}}); err != nil {
			return fmt.Errorf("supersede the former certificate of %s: %w", id, err)
		}
		f.publish(&d)
		superseded = serials
		return nil
	})
	return superseded, err
}
