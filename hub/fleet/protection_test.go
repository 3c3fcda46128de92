package fleet

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/registry"
)

// chip returns the endorsement key of the TPM of that name.
func chip(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// attested returns a device whose TPM has vouched for its key, as its station lists it.
func (r *rig) attested(id, tpm string) (certtest.Credential, manifest.Entry) {
	d := r.pki.Device(id, certtest.WithTPM())
	e := entryOf(d)
	e.Protection, e.EK = protectionTPM, chip(tpm)
	return d, e
}

func instead(of certtest.Credential, e manifest.Entry) manifest.Entry {
	e.Supersedes = identity.SerialString(of.Leaf.SerialNumber)
	return e
}

func onlyPi4(model string) bool { return model == "pi4" }

// Whatever a station says of a key must be what its certificate says, and one TPM is one
// device's.
func TestManifestsClaimsAboutKeysAreHeldAgainstTheCertificates(t *testing.T) {
	for name, test := range map[string]struct {
		entries func(r *rig) []manifest.Entry
		demand  bool
		want    string // "": accepted
	}{
		"tpm, and it says so": {func(r *rig) []manifest.Entry { _, e := r.attested("pi-1", "a"); return []manifest.Entry{e} }, true, ""},
		"software":            {func(r *rig) []manifest.Entry { return []manifest.Entry{entryOf(r.pki.Device("pi-1"))} }, false, ""},
		"tpm claimed only": {func(r *rig) []manifest.Entry {
			e := entryOf(r.pki.Device("pi-1"))
			e.Protection, e.EK = protectionTPM, chip("a")
			return []manifest.Entry{e}
		}, false, "entry 1: device pi-1: the manifest says that its key is in a TPM, and its certificate doesn't"},
		"tpm in the certificate only": {func(r *rig) []manifest.Entry {
			return []manifest.Entry{entryOf(r.pki.Device("pi-1", certtest.WithTPM()))}
		}, false, "its certificate says that its key is in a TPM, and the manifest says \"software\""},
		"tpm without its endorsement key": {func(r *rig) []manifest.Entry {
			_, e := r.attested("pi-1", "a")
			e.EK = ""
			return []manifest.Entry{e}
		}, false, "no endorsement key says in which"},
		"an endorsement key in capitals": {func(r *rig) []manifest.Entry {
			_, e := r.attested("pi-1", "a")
			e.EK = strings.ToUpper(e.EK)
			return []manifest.Entry{e}
		}, false, "is no SHA-256"},
		"an endorsement key cut short": {func(r *rig) []manifest.Entry {
			_, e := r.attested("pi-1", "a")
			e.EK = e.EK[2:]
			return []manifest.Entry{e}
		}, false, "is no SHA-256"},
		"a protection of its own": {func(r *rig) []manifest.Entry {
			e := entryOf(r.pki.Device("pi-1"))
			e.Protection = "tpm2"
			return []manifest.Entry{e}
		}, false, "is none of tpm, software and unproven"},
		"two devices of one TPM": {func(r *rig) []manifest.Entry {
			_, a := r.attested("pi-1", "a")
			_, b := r.attested("pi-2", "a")
			return []manifest.Entry{a, b}
		}, false, "is device pi-1's, for life"},
		"a TPM for a software key": {func(r *rig) []manifest.Entry {
			e := entryOf(r.pki.Device("pi-1"))
			e.EK = chip("a")
			return []manifest.Entry{entryOf(r.pki.Device("pi-0")), e}
		}, false, "entry 2: device pi-1: the manifest says that it has the TPM"},
		"a TPM for an unproven key": {func(r *rig) []manifest.Entry {
			e := entryOf(r.pki.Device("pi-1"))
			e.Protection, e.EK = ProtectionUnproven, chip("a")
			return []manifest.Entry{e}
		}, false, "entry 1: device pi-1: the manifest says that it has the TPM"},
		"a model that demands a TPM": {func(r *rig) []manifest.Entry { return []manifest.Entry{entryOf(r.pki.Device("pi-1"))} }, true,
			"entry 1: device pi-1: keys of the model \"pi4\" must be in a TPM"},
		"another model": {func(r *rig) []manifest.Entry {
			e := entryOf(r.pki.Device("pi-1"))
			e.Model = "pi3"
			return []manifest.Entry{e}
		}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if test.demand {
				r.config.NeedsTPM = onlyPi4
			}
			_, err := r.Import(t.Context(), r.sign(test.entries(r)...), ann)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (!errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error = %v", err)
			case test.want != "" && r.Len() > 0:
				t.Error("something of it was registered")
			}
		})
	}
}

func TestTPMIsOneDevicesForLife(t *testing.T) {
	r := newRig(t)
	first, e := r.attested("pi-1", "a")
	r.mustImport(e)
	d, err := r.Device(t.Context(), "pi-1")
	if err != nil || d.EK != chip("a") || d.Protection != protectionTPM {
		t.Fatalf("%+v, %v", d, err)
	}
	stranger := func() error {
		_, e := r.attested("pi-2", "a")
		_, err := r.Import(t.Context(), r.sign(e), ann)
		return err
	}
	for _, when := range []string{"active", "after a restart", "retired", "replaced by software"} {
		switch when {
		case "after a restart":
			r.restart()
		case "retired":
			if _, err := r.Execute(t.Context(), Order{Verb: VerbRetire, Device: "pi-1"}, ann); err != nil {
				t.Fatal(err)
			}
		case "replaced by software":
			if _, err := r.Allow(t.Context(), Leave{Device: "pi-1"}, ann); err != nil {
				t.Fatal(err)
			}
			r.mustImport(entryOf(r.pki.Device("pi-1")))
		}
		if err := stranger(); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "is device pi-1's, for life") {
			t.Errorf("%s: another device has its TPM: %v", when, err)
		}
		if _, known := r.Status("pi-2"); known {
			t.Errorf("%s: registered", when)
		}
		if !r.Endorsed(t.Context(), chip("a")) || r.Endorsed(t.Context(), chip("b")) || r.Endorsed(t.Context(), "") || r.Endorsed(t.Context(), "zz") {
			t.Errorf("%s: the index of TPMs is wrong", when)
		}
	}
	// The refusal is in the audit log, with its reason.
	log := r.log()
	if last := log[len(log)-1]; last.Outcome != registry.OutcomeRefused || !strings.Contains(last.Detail, "for life") {
		t.Errorf("audit: %+v", last)
	}
	_ = first
}

func TestBoardIsExchangedByAnOperatorsLeaveOnly(t *testing.T) {
	r := newRig(t)
	first, e := r.attested("pi-1", "a")
	r.mustImport(e)
	_, other := r.attested("pi-1", "b")
	if _, err := r.Import(t.Context(), r.sign(instead(first, other)), ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "another board takes its place") {
		t.Fatalf("another TPM under its name: %v", err)
	}
	same, e := r.attested("pi-1", "a")
	r.mustImport(instead(first, e))
	if _, err := r.Execute(t.Context(), Order{Verb: VerbRetire, Device: "pi-1"}, ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Allow(t.Context(), Leave{Device: "pi-1"}, ann); err != nil {
		t.Fatal(err)
	}
	board, e := r.attested("pi-1", "b")
	r.mustImport(e)
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("b") || !r.admits(board.Leaf) || r.admits(same.Leaf) {
		t.Errorf("%+v, %v", d, err)
	}
	for _, ek := range []string{"a", "b"} { // the old board doesn't become another device either
		if owner, err := r.store.Endorsed(t.Context(), chip(ek)); err != nil || owner != "pi-1" {
			t.Errorf("TPM %s is %q's, %v", ek, owner, err)
		}
	}
}

// A software key in the place of one in a TPM says so from then on, and the TPM stays the
// device's.
func TestDeviceRemembersItsTPMUnderASoftwareKey(t *testing.T) {
	r := newRig(t)
	first, e := r.attested("pi-1", "a")
	r.mustImport(e)
	r.config.NeedsTPM = onlyPi4
	plain := instead(first, entryOf(r.pki.Device("pi-1")))
	if _, err := r.Import(t.Context(), r.sign(plain), ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "must be in a TPM") {
		t.Fatalf("the model demands a TPM: %v", err)
	}
	r.config.NeedsTPM = nil
	r.mustImport(plain)
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("a") || d.Protection != "software" {
		t.Errorf("%+v, %v", d, err)
	}
}

// What was accepted under another configuration is no error now: the same manifest again
// changes nothing.
func TestManifestThatWasImportedStaysGood(t *testing.T) {
	r := newRig(t)
	data := r.sign(entryOf(r.pki.Device("pi-1")))
	if _, err := r.Import(t.Context(), data, ann); err != nil {
		t.Fatal(err)
	}
	r.config.NeedsTPM = onlyPi4
	if report, err := r.Import(t.Context(), data, ann); err != nil || report.Unchanged != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if status, _ := r.Status("pi-1"); !status.NeedsTPM {
		t.Error("admission isn't told what the model demands")
	}
}

// A station that was too old to say in which TPM a key is writes its manifest again once it
// is not: that is how the hub learns it.
func TestTPMIsLearnedFromTheSameManifestWrittenAgain(t *testing.T) {
	r := newRig(t)
	old, other := r.pki.Device("pi-1"), r.pki.Device("pi-2")
	before := entryOf(old)
	before.Protection = ProtectionUnproven
	r.mustImport(before, entryOf(other))
	after := before
	after.EK = chip("a")
	for _, changes := range []bool{true, false} {
		n := len(r.log())
		if report, err := r.Import(t.Context(), r.sign(after), ann); err != nil || report.Unchanged != 1 || (len(r.log()) > n) != changes {
			t.Fatalf("%+v, %d audit records more, %v", report, len(r.log())-n, err)
		}
		if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("a") || len(d.Certificates) != 1 || d.Protection != ProtectionUnproven {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	again := entryOf(other) // of a key that was never said to be in a TPM
	for _, ek := range []string{"a", "c"} {
		again.EK = chip(ek)
		if _, err := r.Import(t.Context(), r.sign(again), ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "entry 1: device pi-2") {
			t.Errorf("a software key's device got TPM %s: %v", ek, err)
		}
	}
	if r.Endorsed(t.Context(), chip("c")) {
		t.Error("a TPM was taken by a manifest that was refused")
	}
	after.EK = chip("b")
	if _, err := r.Import(t.Context(), r.sign(after), ann); err != nil {
		t.Errorf("a manifest that was good isn't any more: %v", err)
	}
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("a") {
		t.Errorf("the TPM was exchanged: %s, %v", d.EK, err)
	}
	request, issue := r.renewalBy(old, chip("a"), certtest.WithIssuer(r.pki.Operational), certtest.WithTPM())
	if _, err := r.Renew(t.Context(), request, issue); err != nil {
		t.Error(err)
	}
	if status, _ := r.Status("pi-1"); status.Protection != protectionTPM {
		t.Errorf("protection %q", status.Protection)
	}
}

// A stolen station's key takes no other station's boards by naming their TPMs.
func TestTPMOfAnotherStationsBoardIsNotSquatted(t *testing.T) {
	r := newRig(t)
	squatter := entryOf(r.pki.Device("zz-1"))
	squatter.EK = chip("a")
	if _, err := r.Import(t.Context(), r.sign(squatter), ann); !errors.Is(err, ErrRejected) {
		t.Errorf("a device with a software key has a TPM: %v", err)
	}
	_, e := r.attested("pi-1", "a")
	r.mustImport(e)
}

// A station goes on naming a board's TPM when it has replaced the key in it by another.
func TestSoftwareKeysEntryMayNameItsDevicesTPM(t *testing.T) {
	for name, before := range map[string]func(r *rig) (certtest.Credential, manifest.Entry){
		"known": func(r *rig) (certtest.Credential, manifest.Entry) { return r.attested("pi-1", "a") },
		"not known yet": func(r *rig) (certtest.Credential, manifest.Entry) {
			d := r.pki.Device("pi-1")
			e := entryOf(d)
			e.Protection = ProtectionUnproven
			return d, e
		},
	} {
		r := newRig(t)
		first, e := before(r)
		r.mustImport(e)
		replaced := instead(first, entryOf(r.pki.Device("pi-1")))
		replaced.EK = chip("a")
		r.mustImport(replaced)
		if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("a") || d.Protection != "software" {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}

func TestRenewalSaysWhatIsProved(t *testing.T) {
	operational := func(r *rig) certtest.Option { return certtest.WithIssuer(r.pki.Operational) }
	for name, test := range map[string]struct {
		tpm    string // of the device; "": none known
		demand bool
		ek     string // that vouches; "": none
		says   bool   // the certificate says so
		reason string // of the refusal; "": renewed
		after  string // protection
	}{
		"software stays software":          {"", false, "", false, "", "software"},
		"a TPM's key without its word":     {"a", false, "", false, "", ProtectionUnproven},
		"a TPM's key with its word":        {"a", true, "a", true, "", protectionTPM},
		"another TPM's word":               {"a", false, "b", true, RefusedForOtherTPM, protectionTPM},
		"the word of a TPM nobody knows":   {"", false, "a", true, RefusedForNoTPM, "software"},
		"no word where the model wants it": {"a", true, "", false, RefusedForProtection, protectionTPM},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			device, e := r.pki.Device("pi-1"), manifest.Entry{}
			if e = entryOf(device); test.tpm != "" {
				device, e = r.attested("pi-1", test.tpm)
			}
			r.mustImport(e)
			if test.demand {
				r.config.NeedsTPM = onlyPi4
			}
			ek, options := "", []certtest.Option{operational(r)}
			if test.ek != "" {
				ek = chip(test.ek)
			}
			if test.says {
				options = append(options, certtest.WithTPM())
			}
			request, issue := r.renewalBy(device, ek, options...)
			signed := 0
			leaf, err := r.Renew(t.Context(), request, func() (*x509.Certificate, error) { signed++; return issue() })
			if check := r.CheckRenewal(t.Context(), request); (check == nil) != (err == nil) {
				t.Errorf("checked: %v, renewed: %v", check, err)
			}
			refusal, _ := errors.AsType[*RenewalRefusal](err)
			switch {
			case test.reason == "" && (err != nil || leaf == nil):
				t.Errorf("refused: %v", err)
			case test.reason != "" && (refusal == nil || refusal.Reason != test.reason || signed > 0):
				t.Errorf("error = %v, signed %d times", err, signed)
			}
			if status, _ := r.Status("pi-1"); status.Protection != test.after {
				t.Errorf("protection %q, want %q", status.Protection, test.after)
			}
		})
	}
}

// A device that lost its proof gets it back: its TPM is known still.
func TestProofIsRegainedByTheNextAttestedRenewal(t *testing.T) {
	r := newRig(t)
	device, e := r.attested("pi-1", "a")
	r.mustImport(e)
	var changed []string
	r.config.Changed = func(ids []string) { changed = append(changed, ids...) }
	r.renew(device)
	request, issue := r.renewalBy(device, chip("a"), certtest.WithIssuer(r.pki.Operational), certtest.WithTPM())
	if _, err := r.Renew(t.Context(), request, issue); err != nil {
		t.Fatal(err)
	}
	if status, _ := r.Status("pi-1"); status.Protection != protectionTPM || strings.Join(changed, " ") != "pi-1 pi-1" {
		t.Errorf("protection %q; policy is decided again for %v", status.Protection, changed)
	}
	r.restart()
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.EK != chip("a") || d.Protection != protectionTPM {
		t.Errorf("%+v, %v", d, err)
	}
}

// Its own signature over a certificate that says more than was proved is a fault of the
// hub, which must not reach a device.
func TestCertificateThatSaysMoreThanWasProvedIsNotHandedOut(t *testing.T) {
	r := newRig(t)
	device, e := r.attested("pi-1", "a")
	r.mustImport(e)
	for name, c := range map[string]struct {
		ek      string
		options []certtest.Option
	}{
		"more": {"", []certtest.Option{certtest.WithIssuer(r.pki.Operational), certtest.WithTPM()}},
		"less": {chip("a"), []certtest.Option{certtest.WithIssuer(r.pki.Operational)}},
	} {
		request, issue := r.renewalBy(device, c.ek, c.options...)
		if leaf, err := r.Renew(t.Context(), request, issue); err == nil || leaf != nil {
			t.Errorf("%s: handed out, %v", name, err)
		}
	}
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || len(d.Certificates) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
}

// The same key with and without its TPM's word is two different things to certify.
func TestRepeatedRenewalGetsWhatWasProvedThen(t *testing.T) {
	r := newRig(t)
	device, e := r.attested("pi-1", "a")
	r.mustImport(e)
	request, issue := r.renewalBy(device, chip("a"), certtest.WithIssuer(r.pki.Operational), certtest.WithTPM())
	first, err := r.Renew(t.Context(), request, issue)
	if err != nil {
		t.Fatal(err)
	}
	for _, ek := range []string{chip("a"), ""} { // its answer was lost
		request.EK = ek
		if again, err := r.Renew(t.Context(), request, issue); err != nil || !bytes.Equal(again.Raw, first.Raw) {
			t.Errorf("EK %q: %v", ek, err)
		}
	}
	r = newRig(t)
	device, e = r.attested("pi-1", "a")
	r.mustImport(e)
	request, issue = r.renewal(device)
	if _, err := r.Renew(t.Context(), request, issue); err != nil {
		t.Fatal(err)
	}
	request.EK = chip("a")
	if _, err := r.Renew(t.Context(), request, issue); err == nil {
		t.Error("a certificate that says nothing was taken for one that does")
	} else if refusal, ok := errors.AsType[*RenewalRefusal](err); !ok || refusal.Reason != RefusedForKey {
		t.Error(err)
	}
}

// However devices come and go, no TPM is two devices', and the store knows of each whose.
func TestNoTPMIsEverTwoDevices(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	rapid.Check(t, func(t *rapid.T) {
		run := rapid.StringMatching(`[a-z]{8}`).Draw(t, "run")
		owner := make(map[string]string) // by TPM
		newest := make(map[string]certtest.Credential)
		known := make(map[string]string) // TPM by device
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			id := fmt.Sprintf("%s-%d", run, rapid.IntRange(0, 3).Draw(t, "device"))
			tpm := fmt.Sprintf("%s/%d", run, rapid.IntRange(0, 3).Draw(t, "tpm"))
			d, e := r.attested(id, tpm)
			if old, ok := newest[id]; ok {
				e = instead(old, e)
			}
			_, err := r.Import(t.Context(), r.sign(e), ann)
			free := owner[tpm] == "" || owner[tpm] == id
			fits := known[id] == "" || known[id] == tpm
			if (err == nil) != (free && fits) {
				t.Fatalf("%s with TPM %s (%q has it, %s has %q): %v", id, tpm, owner[tpm], id, known[id], err)
			}
			if err == nil {
				owner[tpm], known[id], newest[id] = id, tpm, d
			}
		}
		for tpm, id := range owner {
			if stored, err := r.store.Endorsed(t.Context(), chip(tpm)); err != nil || stored != id {
				t.Fatalf("TPM %s is %q's in the store, %q's by what was imported (%v)", tpm, stored, id, err)
			}
		}
	})
}
