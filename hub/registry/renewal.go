package registry

import (
	"fmt"
	"slices"
	"time"
)

// maxRenewed is how many certificates that came by renewal a record keeps, at least,
// besides those that still mean something; the audit log has all.
const maxRenewed = 32

// Renew adds the certificate that the device got with the usable one of that
// fingerprint, which stays usable until Connected is told that the new one has
// connected. A renewal that never connected gives way, and so does what that fingerprint's
// took the place of: at most two certificates are usable at a time.
func (d *Device) Renew(fingerprint string, next Certificate, now time.Time) error {
	if !d.State.MayConnect() {
		return &TransitionError{ID: d.ID, From: d.State, To: StateActive}
	}
	i := d.usable(fingerprint)
	if i < 0 {
		return fmt.Errorf("device %s has no usable certificate with the fingerprint %.64s", d.ID, fingerprint)
	}
	for j := range d.Certificates {
		if j != i {
			d.supersede(j, now)
		}
	}
	next.Renews = d.Certificates[i].Key()
	d.Certificates = append(d.Certificates, next)
	d.Updated = now
	d.forget(now)
	return nil
}

// Connected notes that the device has used the certificate of that fingerprint: those
// before it are superseded. It returns the serial numbers of those that were usable
// until now; none, and the record is as it was.
func (d *Device) Connected(fingerprint string, now time.Time) (superseded []string) {
	for j := range max(d.usable(fingerprint), 0) {
		if d.supersede(j, now) {
			superseded = append(superseded, d.Certificates[j].Serial)
			d.Updated = now
		}
	}
	return superseded
}

// usable returns the index of the usable certificate of that fingerprint, -1 for none.
func (d *Device) usable(fingerprint string) int {
	return slices.IndexFunc(d.Certificates, func(c Certificate) bool { return c.Fingerprint == fingerprint && c.Usable() })
}

// supersede marks a certificate, unless it is good for nothing already.
func (d *Device) supersede(i int, now time.Time) bool {
	if !d.Certificates[i].Usable() {
		return false
	}
	d.Certificates[i].Superseded = now
	return true
}

// replaceable reports whether a station may put another in the place of certificate i:
// it is usable, or the device has renewed it since, which the station can't know.
func (d *Device) replaceable(i int) bool {
	if d.Certificates[i].Usable() {
		return true
	}
	later := d.Certificates[i+1:]
	return d.Certificates[i].Revoked.IsZero() && slices.ContainsFunc(later, Certificate.Usable) &&
		!slices.ContainsFunc(later, func(c Certificate) bool { return c.Renews == "" })
}

// forget drops certificates that came by renewal, were superseded and have expired
// since, the oldest first: a board that renews every hour for years must not have a
// record without end. A store keeps their serial numbers.
func (d *Device) forget(now time.Time) {
	renewed := 0
	for _, c := range d.Certificates {
		if c.Renews != "" {
			renewed++
		}
	}
	d.Certificates = slices.DeleteFunc(d.Certificates, func(c Certificate) bool {
		if renewed <= maxRenewed || c.Renews == "" || c.Superseded.IsZero() || !c.Revoked.IsZero() || !now.After(c.NotAfter) {
			return false
		}
		renewed--
		return true
	})
}
