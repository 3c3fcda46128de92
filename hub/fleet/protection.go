package fleet

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/registry"
)

// ProtectionUnproven is the key protection of a device that had its key in a TPM and has
// renewed since without the TPM's word for the new one.
const ProtectionUnproven = string(identity.ProtectionUnproven)

const protectionTPM = string(identity.ProtectionTPM)

// needsTPM reports whether keys of that model must be in a TPM.
func (f *Fleet) needsTPM(model string) bool {
	return f.config.NeedsTPM != nil && f.config.NeedsTPM(model)
}

// checkListedKey checks what the station says of the key and its TPM, by itself.
func checkListedKey(listed manifest.Entry) error {
	switch listed.Protection {
	case "", "software", ProtectionUnproven, protectionTPM:
	default:
		return fmt.Errorf("its key protection %.80q is none of tpm, software and unproven", listed.Protection)
	}
	if listed.EK == "" {
		if listed.Protection == protectionTPM {
			return fmt.Errorf("its key is said to be in a TPM, and no endorsement key says in which; have the station's program updated, and the certificate replaced")
		}
		return nil
	}
	if sum, err := hex.DecodeString(listed.EK); err != nil || len(sum) != registry.EKSize || strings.ToLower(listed.EK) != listed.EK {
		return fmt.Errorf("its endorsement key %.80q is no SHA-256 in lower-case hex", listed.EK)
	}
	return nil
}

// checkKey holds what the manifest says of a new certificate's key against the
// certificate, and both against what the model demands. Known certificates aren't asked:
// a manifest that was good stays good. A TPM is a device's for life, so that nobody gets
// one by a word that no certificate stands for: the entry of a software key may name the
// TPM that its device d, nil for a new one, is known by already, or one that it may learn.
func (b *batch) checkKey(d *registry.Device, e entry, model string) error {
	switch {
	case e.listed.EK != "" && e.listed.Protection != protectionTPM && e.protection != identity.ProtectionTPM && (d == nil || d.EK != e.listed.EK && !b.mayLearn(d)):
		return rejected(fmt.Errorf("device %s: the manifest says that it has the TPM with the endorsement key %s, and its certificate doesn't say that its key is in one; have it replaced at a station whose program is new enough to write that down", e.identity.ID, e.listed.EK))
	case e.listed.Protection == protectionTPM && e.protection != identity.ProtectionTPM:
		return rejected(fmt.Errorf("device %s: the manifest says that its key is in a TPM, and its certificate doesn't; have it replaced at a station whose program is new enough to write that down", e.identity.ID))
	case e.listed.Protection != protectionTPM && e.protection == identity.ProtectionTPM:
		return rejected(fmt.Errorf("device %s: its certificate says that its key is in a TPM, and the manifest says %q; one of them is wrong", e.identity.ID, e.listed.Protection))
	case e.protection != identity.ProtectionTPM && b.fleet.needsTPM(model):
		return rejected(fmt.Errorf("device %s: keys of the model %q must be in a TPM (key_protection in hub.yaml), and its certificate doesn't say so", e.identity.ID, model))
	}
	return nil
}

// sameBoard refuses a certificate for a known device whose key is in another board's TPM.
func sameBoard(d *registry.Device, e entry) error {
	if d.EK == "" || e.listed.EK == "" || d.EK == e.listed.EK {
		return nil
	}
	return rejected(fmt.Errorf("device %s has the TPM with the endorsement key %s, and the manifest says %s: another board takes its place after `hub device retire %s` and `hub device reinstate %s` only", d.ID, d.EK, e.listed.EK, d.ID, d.ID))
}

// learn gives a device its TPM whose station, when it was imported, didn't say yet in which
// it has its key: that station has written the same manifest again since. From then on it
// can renew with its TPM's word. Of a device whose key was never said to be in a TPM there
// is none to learn, and the manifest is refused.
func (b *batch) learn(d *registry.Device, e entry) error {
	if d.EK != "" || e.listed.EK == "" || d.Station != b.manifest.Station || d.State.Final() {
		return nil
	}
	if !b.mayLearn(d) {
		return rejected(fmt.Errorf("device %s: the manifest says that it has the TPM with the endorsement key %s, and its key was imported as %s, not as one in a TPM; have it replaced at its station, with its key in the TPM", d.ID, e.listed.EK, cmp.Or(d.Protection, "of no known protection")))
	}
	d.EK, d.Updated = e.listed.EK, b.record.Time
	b.put(d, d.State, e)
	b.audit[len(b.audit)-1].Detail += ", its TPM is known now"
	return nil
}

// mayLearn reports whether the manifest may say, by itself, which TPM d has: none is known,
// the same station has named the device, and said of its key that it is in one, or was.
func (b *batch) mayLearn(d *registry.Device) bool {
	return d.EK == "" && !d.Introduced() && d.Station == b.manifest.Station && (d.Protection == protectionTPM || d.Protection == ProtectionUnproven)
}

// take notes what the entry says of the device's present key.
func (e entry) take(d *registry.Device) {
	d.Protection = e.listed.Protection
	if e.listed.EK != "" {
		d.EK = e.listed.EK
	}
}
