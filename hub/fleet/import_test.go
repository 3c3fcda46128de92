package fleet

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestImportRegistersEveryDeviceWithAudit(t *testing.T) {
	r := newRig(t)
	a, b := r.pki.Device("pi-1", certtest.WithOU("sensors")), r.pki.Device("pi-2")
	data := r.sign(entryOf(a), entryOf(b))
	report, err := r.Import(t.Context(), data, ann)
	if err != nil || report != (ImportReport{Station: "bench-1", Number: 1, Devices: 2, Registered: 2}) {
		t.Fatalf("report = %+v, %v", report, err)
	}
	check := func() {
		t.Helper()
		d, err := r.Device(t.Context(), "pi-1")
		if err != nil {
			t.Fatal(err)
		}
		if d.State != registry.StateRegistered || d.Station != "bench-1" || d.Manifest != 1 || d.Model != "pi4" || d.Protection != "software" ||
			!slices.Equal(d.OU, []string{"sensors"}) || !maps.Equal(d.Labels, map[string]string{"line": "a"}) || len(d.Certificates) != 1 {
			t.Fatalf("device = %+v", d)
		}
		if c := d.Certificates[0]; c.Serial != identity.SerialString(a.Leaf.SerialNumber) || c.Fingerprint != identity.Fingerprint(a.Leaf) ||
			!c.NotAfter.Equal(a.Leaf.NotAfter) || !bytes.Equal(c.DER, a.Leaf.Raw) {
			t.Fatalf("certificate = %+v", c)
		}
		if status, ok := r.Status("pi-2"); !ok || !status.Admits(sha256.Sum256(b.Leaf.Raw)) || status.Admits(sha256.Sum256(a.Leaf.Raw)) {
			t.Fatalf("status = %+v, %v", status, ok)
		}
	}
	check()
	log := r.log()
	if len(log) != 2 || log[0].Device != "pi-1" || log[0].Action != "manifest.import" || log[0].After != registry.StateRegistered || log[0].Actor != ann.Name ||
		!strings.Contains(log[0].Detail, "manifest 1 of station bench-1") || !strings.Contains(log[0].Detail, identity.SerialString(a.Leaf.SerialNumber)) {
		t.Fatalf("audit log = %+v", log)
	}
	r.restart()
	check()

	before := r.devices()
	report, err = r.Import(t.Context(), data, ann)
	if err != nil || report != (ImportReport{Station: "bench-1", Number: 1, Devices: 2, Unchanged: 2}) {
		t.Fatalf("second report = %+v, %v", report, err)
	}
	if !reflect.DeepEqual(r.devices(), before) || len(r.log()) != 2 {
		t.Fatal("importing again changed something")
	}
}

func TestImportAgainDoesNotReinstate(t *testing.T) {
	r := newRig(t)
	c := r.pki.Device("pi-1")
	data := r.sign(entryOf(c))
	if _, err := r.Import(t.Context(), data, ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke(t.Context(), "pi-1", 0, ann); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Import(t.Context(), data, ann); err != nil || report.Unchanged != 1 {
		t.Fatalf("report = %+v, %v", report, err)
	}
	next := entryOf(r.pki.Device("pi-1"))
	next.Supersedes = identity.SerialString(c.Leaf.SerialNumber)
	if _, err := r.Import(t.Context(), r.sign(next), ann); !errors.Is(err, ErrRejected) || !errors.Is(err, registry.ErrTransition) {
		t.Fatalf("superseding a revoked device's certificate: error = %v", err)
	}
	if r.state("pi-1") != registry.StateRevoked {
		t.Fatal("an import reinstated a revoked device")
	}
}

func TestSupersedingCertificateReplacesTheOld(t *testing.T) {
	r := newRig(t)
	old := r.register("pi-1", "pi-2")[0]
	next := r.pki.Device("pi-1")
	listed := entryOf(next)
	listed.Supersedes = strings.ToUpper(identity.SerialString(old.Leaf.SerialNumber))
	data := r.sign(listed)
	for _, state := range []string{"first", "again"} {
		report, err := r.Import(t.Context(), data, ann)
		if err != nil || report.Superseded+report.Unchanged != 1 || (report.Superseded == 1) != (state == "first") {
			t.Fatalf("%s: report = %+v, %v", state, report, err)
		}
		if status, _ := r.Status("pi-1"); status.Admits(sha256.Sum256(old.Leaf.Raw)) || !status.Admits(sha256.Sum256(next.Leaf.Raw)) {
			t.Fatalf("%s: status = %+v", state, status)
		}
		if !slices.Equal(r.sessions.calls, []string{"pi-1 superseded"}) {
			t.Fatalf("%s: disconnected %v", state, r.sessions.calls)
		}
	}
	// The superseded certificate can't be superseded once more.
	third := entryOf(r.pki.Device("pi-1"))
	third.Supersedes = listed.Supersedes
	if _, err := r.Import(t.Context(), r.sign(third), ann); !errors.Is(err, ErrRejected) {
		t.Fatalf("error = %v", err)
	}
}

func TestSupersedingWithinOneManifest(t *testing.T) {
	r := newRig(t)
	old, next := r.pki.Device("pi-1"), r.pki.Device("pi-1")
	second := entryOf(next)
	second.Supersedes = identity.SerialString(old.Leaf.SerialNumber)
	report, err := r.Import(t.Context(), r.sign(entryOf(old), second), ann)
	if err != nil || report.Registered != 1 || report.Superseded != 1 {
		t.Fatalf("report = %+v, %v", report, err)
	}
	if status, _ := r.Status("pi-1"); !slices.Equal(status.Fingerprints, []registry.Fingerprint{sha256.Sum256(next.Leaf.Raw)}) {
		t.Fatalf("status = %+v", status)
	}
}

func TestSuspendedDeviceStaysSuspendedUnderItsNewCertificate(t *testing.T) {
	r := newRig(t)
	old := r.register("pi-1")[0]
	if _, err := r.Suspend(t.Context(), "pi-1", "lost", ann); err != nil {
		t.Fatal(err)
	}
	next := entryOf(r.pki.Device("pi-1"))
	next.Supersedes = identity.SerialString(old.Leaf.SerialNumber)
	if _, err := r.Import(t.Context(), r.sign(next), ann); err != nil {
		t.Fatal(err)
	}
	if r.state("pi-1") != registry.StateSuspended {
		t.Fatal("a new certificate lifted a suspension")
	}
}

// TestRejectedManifestLeavesNothing lists what is wrong with manifests. Each also has
// a good entry in front, of which nothing may remain.
func TestRejectedManifestLeavesNothing(t *testing.T) {
	r := newRig(t)
	known := r.register("known")[0]
	station2, station2Key := r.pki.IssuingCA(identity.KindFactory, "bench-2")
	foreign := r.pki.Foreign()
	good := entryOf(r.pki.Device("good"))
	goodManifest := r.sign(good)
	with := func(e manifest.Entry) []byte { return r.sign(good, e) }
	labelled := func(key, value string) manifest.Entry {
		e := entryOf(r.pki.Device("labelled"))
		e.Labels = map[string]string{key: value}
		return e
	}
	superseding := func(id, serial string) manifest.Entry {
		e := entryOf(r.pki.Device(id))
		e.Supersedes = serial
		return e
	}
	sameSerial := func(id string, serial certtest.Credential) manifest.Entry {
		name, err := identity.New(certtest.TrustDomain, identity.RoleDevice, id)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := r.pki.Factory.Issue(issuance.Request{
			Profile: issuance.DeviceProfile(), Identity: name, PublicKey: serial.Key.Public(), Serial: serial.Leaf.SerialNumber,
		})
		if err != nil {
			t.Fatal(err)
		}
		return manifest.Entry{Certificate: leaf.Raw}
	}
	flipped := func(der []byte, i int) []byte {
		der = bytes.Clone(der)
		der[len(der)+i] ^= 1
		return der
	}
	signed := func(m manifest.Manifest, ca *issuance.Issuer, by *certtest.Fleet) []byte {
		t.Helper()
		key := by.FactoryKey
		if ca == station2 {
			key = station2Key
		}
		data, err := manifest.Sign(m, []*x509.Certificate{ca.Certificate()}, key)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	of := func(station string, entries ...manifest.Entry) manifest.Manifest {
		return manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: station, Number: 9, CreatedAt: time.Now(), Devices: entries}
	}
	otherDomain := of(certtest.StationName, good)
	otherDomain.TrustDomain = "other.example"
	device := r.pki.Device("device")
	// forged is what the station's key can sign though its software wouldn't.
	forged := func(uri string, change func(*x509.Certificate)) manifest.Entry {
		t.Helper()
		template := &x509.Certificate{
			SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "forged"}, NotBefore: device.Leaf.NotBefore, NotAfter: device.Leaf.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
		if change != nil {
			change(template)
		}
		der, err := x509.CreateCertificate(rand.Reader, template, r.pki.Factory.Certificate(), device.Key.Public(), r.pki.FactoryKey)
		if err != nil {
			t.Fatal(err)
		}
		return manifest.Entry{Certificate: der}
	}
	const forgedID = "spiffe://" + certtest.TrustDomain + "/device/forged"

	for _, tt := range []struct {
		name string
		data []byte
		say  string
	}{
		{"empty", nil, "manifest"},
		{"text", []byte("hello"), "manifest"},
		{"cut in half", goodManifest[:len(goodManifest)/2], "manifest"},
		{"last byte missing", goodManifest[:len(goodManifest)-2], "manifest"},
		{"bit flipped in the header", flipped(goodManifest, 20-len(goodManifest)), "manifest"},
		{"bit flipped in the middle", flipped(goodManifest, -len(goodManifest)/2), "manifest"},
		{"bit flipped in the signature", flipped(goodManifest, -20), "manifest"},
		{"two manifests in one", append(bytes.Clone(goodManifest), goodManifest...), "manifest"},
		{"another PKI", signed(of(certtest.StationName, entryOf(foreign.Device("x"))), foreign.Factory, foreign), "root"},
		{"operational CA", signed(of("hub", good), r.pki.Operational, r.pki), ""},
		{"station this hub doesn't know", signed(of("bench-2"), station2, r.pki), "bench-2"},
		{"another station's name", signed(of("bench-9", good), r.pki.Factory, r.pki), "bench-9"},
		{"another trust domain", r.signAs(otherDomain), "other.example"},
		{"certificate of another station", with(entryOf(r.pki.Device("x", certtest.WithIssuer(station2)))), "bench-1"},
		{"certificate of the operational CA", with(entryOf(r.pki.Device("x", certtest.WithIssuer(r.pki.Operational)))), "bench-1"},
		{"certificate of another PKI", with(entryOf(foreign.Device("x"))), "bench-1"},
		{"certificate with a forged signature", with(manifest.Entry{Certificate: flipped(device.Leaf.Raw, -1)}), "device device"},
		{"certificate cut short", with(manifest.Entry{Certificate: device.Leaf.Raw[:300]}), "entry 2"},
		{"certificate with trailing bytes", with(manifest.Entry{Certificate: append(bytes.Clone(device.Leaf.Raw), 0)}), "entry 2"},
		{"no certificate", with(manifest.Entry{}), "entry 2"},
		{"CA certificate", with(manifest.Entry{Certificate: r.pki.Factory.Certificate().Raw}), "entry 2"},
		{"service certificate", with(forged("spiffe://fleet.example/service/forged", nil)), "service's"},
		{"operator certificate", with(forged("spiffe://fleet.example/operator/forged", nil)), "operator's"},
		{"hub certificate", with(forged("spiffe://fleet.example/hub/forged", nil)), "hub's"},
		{"certificate of another trust domain", with(forged("spiffe://other.example/device/forged", nil)), "other.example"},
		{"certificate without identity", with(forged("https://fleet.example/device/forged", nil)), "entry 2"},
		{"certificate of another common name", with(forged(forgedID, func(c *x509.Certificate) { c.Subject.CommonName = "known" })), "entry 2"},
		{"certificate of two identities", with(forged(forgedID, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) })), "entry 2"},
		{"certificate for servers", with(forged(forgedID, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), "TLS clients"},
		{"certificate for any use", with(forged(forgedID, func(c *x509.Certificate) { c.ExtKeyUsage = nil })), "TLS clients"},
		{"certificate that is a CA", with(forged(forgedID, func(c *x509.Certificate) { c.IsCA = true })), "entry 2"},
		{"ID of another record", with(entryOf(r.pki.Device("known"))), "known is already registered"},
		{"serial number of another record", with(sameSerial("thief", known)), "belongs to device known"},
		{"ID twice", with(entryOf(r.pki.Device("good"))), "listed twice"},
		{"entry twice", with(good), "listed twice"},
		{"serial number twice", r.sign(good, entryOf(device), sameSerial("thief", device)), "belongs to device device"},
		{"supersedes an unknown device's", with(superseding("new", "0123")), "doesn't know"},
		{"supersedes a serial it never had", with(superseding("known", "0123")), "0123"},
		{"label that is a wildcard", with(labelled("line", "+")), "label"},
		{"label with a slash", with(labelled("a/b", "c")), "label"},
		{"empty label", with(labelled("", "")), "label"},
		{"model of two lines", with(manifest.Entry{Certificate: device.Leaf.Raw, Model: "a\nb"}), "model"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, log := r.devices(), len(r.log())
			report, err := r.Import(t.Context(), tt.data, ann)
			if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), tt.say) || strings.ContainsAny(err.Error(), "\n") {
				t.Fatalf("report %+v, error = %v; want one sentence with %q", report, err, tt.say)
			}
			if !reflect.DeepEqual(r.devices(), before) {
				t.Fatal("something of it was stored")
			}
			if _, known := r.Status("good"); known {
				t.Fatal("something of it is in the index")
			}
			records := r.log()
			if last := records[len(records)-1]; len(records) != log+1 || last.Outcome != registry.OutcomeRefused || last.Action != "manifest.import" {
				t.Fatalf("audit record = %+v", last)
			}
		})
	}
	if _, err := r.Import(t.Context(), goodManifest, ann); err != nil {
		t.Fatalf("the good manifest: %v", err)
	}
}

func TestStationCannotSupersedeAnothersDevice(t *testing.T) {
	r := newRig(t)
	old := r.register("pi-1")[0]
	station2, key := r.pki.IssuingCA(identity.KindFactory, "bench-2")
	r.config.Issuers = nil // any station that the root authorized
	e := entryOf(r.pki.Device("pi-1", certtest.WithIssuer(station2)))
	e.Supersedes = identity.SerialString(old.Leaf.SerialNumber)
	data, err := manifest.Sign(manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: "bench-2", Number: 1, Devices: []manifest.Entry{e}}, []*x509.Certificate{station2.Certificate()}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Import(t.Context(), data, ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "belongs to station bench-1") {
		t.Fatalf("error = %v", err)
	}
}

func TestExpiredStationRegistersNobody(t *testing.T) {
	r := newRig(t)
	data := r.sign(entryOf(r.pki.Device("pi-1")))
	expired := r.pki.Factory.Certificate().NotAfter.Add(time.Second)
	r.config.Now = func() time.Time { return expired }
	if _, err := r.Import(t.Context(), data, ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "valid") {
		t.Fatalf("error = %v", err)
	}
	if _, known := r.Status("pi-1"); known {
		t.Fatal("registered")
	}
}

// TestLargeManifestIsSampled: of a large manifest not every signature is verified. A
// station that makes bad ones is found all the same; and one that slipped through would
// be refused in the handshake, which verifies every one.
func TestLargeManifestIsSampled(t *testing.T) {
	r := newRig(t)
	good := r.pki.Device("good")
	forge := func(id string) []byte {
		der := bytes.Clone(r.pki.Device(id).Leaf.Raw)
		der[len(der)-1] ^= 1
		return der
	}
	var all, one []manifest.Entry
	for i := range fullyChecked + 100 {
		id := fmt.Sprintf("pi-%04d", i)
		all = append(all, manifest.Entry{Certificate: forge(id)})
		one = append(one, manifest.Entry{Certificate: r.pki.Device(id).Leaf.Raw})
	}
	if _, err := r.Import(t.Context(), r.sign(all...), ann); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "not good for a device") {
		t.Fatalf("all signatures are bad: error = %v", err)
	}
	bad := forge("bad")
	report, err := r.Import(t.Context(), r.sign(append(one, manifest.Entry{Certificate: bad}, entryOf(good))...), ann)
	if err != nil && !errors.Is(err, ErrRejected) || err == nil && report.Registered != fullyChecked+102 {
		t.Fatalf("report = %+v, %v", report, err)
	}
	leaf, err := x509.ParseCertificate(bad)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := mtls.NewVerifier(r.pki.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.VerifyCertificate(leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice); err == nil {
		t.Fatal("a handshake takes a certificate with a bad signature")
	}
	if _, err := verifier.VerifyCertificate(good.Leaf, x509.ExtKeyUsageClientAuth, identity.RoleDevice); err != nil {
		t.Fatal(err)
	}
	// What isn't a matter of signatures is checked in every entry.
	wrong := append(one[:fullyChecked+100:fullyChecked+100], entryOf(r.pki.Device("x", certtest.WithIssuer(r.pki.Operational))))
	if _, err := r.Import(t.Context(), r.sign(wrong...), ann); !errors.Is(err, ErrRejected) {
		t.Fatalf("a certificate of another issuer: error = %v", err)
	}
}
