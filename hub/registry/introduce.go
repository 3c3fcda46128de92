package registry

import "maps"

// Introduce makes a record that has no state yet a quarantined device: one that came with
// a good certificate before any manifest named it.
func (d *Device) Introduce(c Cause) error {
	if d.State != "" {
		return &TransitionError{ID: d.ID, From: d.State, To: StateQuarantined}
	}
	d.step(StateQuarantined, c)
	d.Created = c.At
	return nil
}

// Approve lets a quarantined device in. It is illegal from any other state.
func (d *Device) Approve(c Cause) error {
	if d.State != StateQuarantined {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	c.Reason = ""
	return d.move(StateRegistered, c)
}

// Introduced reports whether the device introduced itself, and no manifest has named it
// since.
func (d *Device) Introduced() bool { return d.Manifest == 0 && d.Station != "" }

// Name is what a manifest says of a device that introduced itself.
type Name struct {
	Certificate Certificate
	Station     string
	Model       string
	Batch       string
	OU          []string
	BoardSerial string
	Protection  string
	EK          string
	Labels      map[string]string
	Manifest    uint64
}

// Named completes the record of a device that introduced itself with what a manifest of
// a station says. A quarantined one is registered by it, with the manifest's certificate
// and no other: nobody vouched for whoever came under its name with another one, and the
// audit log has it. One that was approved has that certificate already; what an operator
// has changed since stays. A device in a final state isn't completed.
func (d *Device) Named(n Name, c Cause) error {
	if !d.Introduced() || d.State.Final() || d.State != StateQuarantined && !d.Holds(n.Certificate.Fingerprint) {
		return &TransitionError{ID: d.ID, From: d.State, To: StateRegistered}
	}
	if d.State == StateQuarantined {
		if err := d.move(StateRegistered, c); err != nil {
			return err
		}
		d.Certificates = []Certificate{n.Certificate}
		d.OU, d.BoardSerial, d.Station = n.OU, n.BoardSerial, n.Station
	}
	if newest := d.Certificates[len(d.Certificates)-1]; newest.Fingerprint == n.Certificate.Fingerprint {
		d.Protection = n.Protection
	}
	if d.Model == "" {
		d.Model = n.Model
	}
	if d.Batch == "" {
		d.Batch = n.Batch
	}
	labels := maps.Clone(n.Labels)
	if len(d.Labels) > 0 && labels == nil {
		labels = make(map[string]string, len(d.Labels))
	}
	maps.Copy(labels, d.Labels)
	d.Labels, d.EK, d.Manifest, d.Updated = labels, n.EK, n.Manifest, c.At
	return nil
}
