package authority_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func plain(path string) (crypto.Signer, []byte, error) {
	return cakey.Opener{}.Make(path, cakey.KeepInFile, nil)
}

// hub is the folder of a hub with an issuing CA, and its fleet's PKI.
type hub struct {
	*certtest.Fleet
	authority.Folder
	dir string
	t   *testing.T
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{Fleet: certtest.New(t), dir: t.TempDir(), t: t}
	h.Folder = authority.In(h.dir, cakey.Opener{})
	must(t, os.Mkdir(h.Dir, 0o700))
	must(t, pemfile.WriteCertificates(filepath.Join(h.dir, "ca.crt"), h.Bundle()...))
	must(t, pemfile.WriteCertificates(h.file("operational.crt"), h.Operational.Certificate()))
	must(t, pemfile.WriteKey(h.file("operational.key"), h.OperationalKey))
	return h
}

func (h *hub) file(name string) string { return filepath.Join(h.Dir, name) }

// ask has the hub ask for a CA of that name, and the root sign it.
func (h *hub) ask(name string) *x509.Certificate {
	h.t.Helper()
	request, err := h.Request(name, plain)
	must(h.t, err)
	cert, err := h.Root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: name, TrustDomain: certtest.TrustDomain, PublicKey: request.CSR.PublicKey})
	must(h.t, err)
	return cert
}

// signsAs fails unless the hub signs by that CA.
func (h *hub) signsAs(want *x509.Certificate, when string) {
	h.t.Helper()
	issuer, err := h.Issuer()
	if err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	if !issuer.Certificate().Equal(want) {
		h.t.Errorf("%s: it signs as %q", when, issuer.Certificate().Subject.CommonName)
	}
}

// changed fails unless next is the issuing CA, the former one is still one, key and all,
// and nothing of the change is left.
func (h *hub) changed(former, next *x509.Certificate, when string) {
	h.t.Helper()
	h.signsAs(next, when)
	all, err := h.List()
	must(h.t, err)
	if len(all) != 2 || all[0].State != authority.Issuing || all[1].State != authority.Former || !all[1].Certificate.Equal(former) {
		h.t.Errorf("%s: CAs %+v", when, all)
	}
	for _, ca := range all {
		if key, err := h.Key(ca); err != nil || key == nil || !key.Public().(*ecdsa.PublicKey).Equal(ca.Certificate.PublicKey) {
			h.t.Errorf("%s: the key of %q: %v", when, ca.Certificate.Subject.CommonName, err)
		}
	}
	left, err := filepath.Glob(h.file("next.*"))
	must(h.t, err)
	if len(left) > 0 {
		h.t.Errorf("%s: left behind: %v", when, left)
	}
	if !h.SendsIssuer() {
		h.t.Errorf("%s: a hub whose CA was replaced sends its leaf alone", when)
	}
	bundle, err := pemfile.ReadCertificates(filepath.Join(h.dir, "ca.crt"))
	must(h.t, err)
	if want := []*x509.Certificate{h.Root.Certificate(), next, former}; !slices.EqualFunc(bundle, want, (*x509.Certificate).Equal) {
		h.t.Errorf("%s: the trust bundle has %d certificates", when, len(bundle))
	}
}

func TestSuccessorTakesOver(t *testing.T) {
	h := newHub(t)
	former := h.Operational.Certificate()
	next := h.ask("hub-2")
	h.signsAs(former, "while the request waits")
	again, err := h.Request("hub-3", plain)
	must(t, err)
	if !again.Former || again.CSR.Subject.CommonName != "hub-2" {
		t.Errorf("a second request: %+v", again)
	}
	if h.SendsIssuer() {
		t.Error("it sends its issuer before there is another")
	}
	must(t, h.Install(next, certtest.TrustDomain, time.Now()))
	h.changed(former, next, "installed")
	must(t, h.Install(next, certtest.TrustDomain, time.Now()))
	h.changed(former, next, "installed again")
	if err := h.Install(former, certtest.TrustDomain, time.Now()); !errors.Is(err, authority.ErrMismatch) {
		t.Errorf("the former CA was installed again: %v", err)
	}
}

// A change is made or not, wherever it was interrupted, and at every moment there is a CA
// that signs by a key that belongs to it.
func TestInterruptedChangeIsCompleted(t *testing.T) {
	steps := []struct {
		name string
		do   func(h *hub, former, next *x509.Certificate) error
	}{
		{"certificate written", func(h *hub, _, next *x509.Certificate) error {
			return pemfile.WriteCertificates(h.file("next.crt"), next)
		}},
		{"bundle written", func(h *hub, former, next *x509.Certificate) error {
			return pemfile.WriteCertificates(filepath.Join(h.dir, "ca.crt"), h.Root.Certificate(), next, former)
		}},
		{"issuer to be sent", func(h *hub, _, _ *x509.Certificate) error { return pemfile.Write(h.file("send-issuer"), nil, 0o644) }},
		{"former key linked", func(h *hub, former, _ *x509.Certificate) error {
			return os.Link(h.file("operational.key"), h.file("former-"+authority.KeyID(former)+".key"))
		}},
		{"former certificate written", func(h *hub, former, _ *x509.Certificate) error {
			return pemfile.WriteCertificates(h.file("former-"+authority.KeyID(former)+".crt"), former)
		}},
		{"key in place", func(h *hub, _, _ *x509.Certificate) error {
			return os.Rename(h.file("next.key"), h.file("operational.key"))
		}},
		{"certificate in place", func(h *hub, _, next *x509.Certificate) error {
			return pemfile.WriteCertificates(h.file("operational.crt"), next)
		}},
		{"request removed", func(h *hub, _, _ *x509.Certificate) error { return os.Remove(h.file("next.csr")) }},
	}
	for n := range len(steps) + 1 {
		h := newHub(t)
		former := h.Operational.Certificate()
		next := h.ask("hub-2")
		when := "killed before the mark"
		for _, s := range steps[:n] {
			must(t, s.do(h, former, next))
			when = "killed after: " + s.name
		}
		want := former
		if n >= 6 { // the key is in its place
			want = next
		}
		h.signsAs(want, when)
		all, err := h.List()
		must(t, err)
		trusted := func(c *x509.Certificate) bool {
			return slices.ContainsFunc(all, func(ca authority.CA) bool { return ca.State.Trusted() && ca.Certificate.Equal(c) })
		}
		if !trusted(former) || trusted(next) != (n > 0) {
			t.Errorf("%s: former trusted %v, next %v", when, trusted(former), trusted(next))
		}
		finished, err := h.Finish()
		must(t, err)
		if finished != (n > 0) {
			t.Errorf("%s: finished %v", when, finished)
		}
		if n == 0 {
			h.signsAs(former, when)
			must(t, h.Install(next, certtest.TrustDomain, time.Now()))
		}
		h.changed(former, next, when)
	}
}

// Somebody may put a file where an answer of the root's would be.
func TestWhatAnswersNoRequestIsNotTakenUp(t *testing.T) {
	for name, forge := range map[string]func(h *hub) *x509.Certificate{
		"without a request": func(h *hub) *x509.Certificate {
			issuer, _ := h.IssuingCA(identity.KindOperational, "hub-2")
			return issuer.Certificate()
		},
		"for another key": func(h *hub) *x509.Certificate {
			h.ask("hub-2")
			issuer, _ := h.IssuingCA(identity.KindOperational, "hub-2")
			return issuer.Certificate()
		},
		"by another root": func(h *hub) *x509.Certificate {
			request, err := h.Request("hub-2", plain)
			must(t, err)
			cert, err := h.Foreign().Root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: "hub-2", TrustDomain: certtest.TrustDomain, PublicKey: request.CSR.PublicKey})
			must(t, err)
			return cert
		},
	} {
		h := newHub(t)
		must(t, pemfile.WriteCertificates(h.file("next.crt"), forge(h)))
		if _, err := h.Finish(); !errors.Is(err, authority.ErrMismatch) {
			t.Errorf("%s: got %v", name, err)
		}
		h.signsAs(h.Operational.Certificate(), name)
		if bundle, err := pemfile.ReadCertificates(filepath.Join(h.dir, "ca.crt")); err != nil || len(bundle) != 2 {
			t.Errorf("%s: the trust bundle has %d certificates, %v", name, len(bundle), err)
		}
	}
}

func TestSuccessorHasAKeyOfItsOwn(t *testing.T) {
	h := newHub(t)
	_, err := h.Request("hub-2", func(string) (crypto.Signer, []byte, error) { // as a token gives the same key again
		file, err := pemfile.EncodeKey(h.OperationalKey)
		return h.OperationalKey, file, err
	})
	if err == nil || !strings.Contains(err.Error(), "a key of its own") {
		t.Errorf("got %v", err)
	}
	if _, err := h.Pending(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused key left a request: %v", err)
	}
}

// Two who ask at once would mix up a key and a request.
func TestOneCommandAtATimeChangesTheFolder(t *testing.T) {
	h := newHub(t)
	next := h.ask("hub-2")
	must(t, os.Remove(h.file("next.csr")))
	_, err := h.Request("hub-2", func(path string) (crypto.Signer, []byte, error) {
		if _, err := h.Request("hub-3", plain); !errors.Is(err, authority.ErrBusy) {
			t.Errorf("a second request: %v", err)
		}
		if err := h.Install(next, certtest.TrustDomain, time.Now()); !errors.Is(err, authority.ErrBusy) {
			t.Errorf("an installation meanwhile: %v", err)
		}
		must(t, pemfile.WriteCertificates(h.file("next.crt"), next))
		if finished, err := h.Finish(); finished || err != nil { // it is left to who is at it
			t.Errorf("finished %v, %v", finished, err)
		}
		must(t, os.Remove(h.file("next.crt")))
		return plain(path)
	})
	must(t, err)
	must(t, h.Install(h.ask("hub-2"), certtest.TrustDomain, time.Now()))
}

func TestKeyInASafeStaysThere(t *testing.T) {
	h := newHub(t)
	must(t, os.Remove(h.file("operational.key")))
	if _, err := h.Issuer(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	former, next := h.Operational.Certificate(), h.ask("hub-2")
	must(t, h.Install(next, certtest.TrustDomain, time.Now()))
	h.signsAs(next, "installed")
	all, err := h.List()
	must(t, err)
	if key, err := h.Key(all[1]); key != nil || err != nil || !all[1].Certificate.Equal(former) {
		t.Errorf("the former CA has the key %v, %v", key, err)
	}
}

func TestRemovedCAIsTrustedNoMoreAndCanComeBack(t *testing.T) {
	h := newHub(t)
	former, next := h.Operational.Certificate(), h.ask("hub-2")
	must(t, h.Install(next, certtest.TrustDomain, time.Now()))
	if moved, err := h.Remove(next); len(moved) > 0 || err != nil {
		t.Errorf("the issuing CA was removed: %v %v", moved, err)
	}
	moved, err := h.Remove(former)
	must(t, err)
	if len(moved) != 2 {
		t.Errorf("moved %v", moved)
	}
	all, err := h.List()
	must(t, err)
	if len(all) != 1 || !all[0].Certificate.Equal(next) {
		t.Errorf("CAs %+v", all)
	}
	if bundle, err := pemfile.ReadCertificates(filepath.Join(h.dir, "ca.crt")); err != nil || slices.ContainsFunc(bundle, former.Equal) || len(bundle) != 2 {
		t.Errorf("the trust bundle has %d certificates, %v", len(bundle), err)
	}
	if !h.SendsIssuer() {
		t.Error("who has the first bundle can't verify the hub any more")
	}
	for _, file := range moved {
		must(t, os.Rename(file, h.file(filepath.Base(file))))
	}
	if all, err = h.List(); err != nil || len(all) != 2 {
		t.Errorf("brought back: %+v %v", all, err)
	}
}

// issued is a certificate as the issue commands put it on record.
func (h *hub) issued(by *issuance.Issuer, role identity.Role, id string) {
	h.t.Helper()
	var c certtest.Credential
	if role == identity.RoleOperator {
		c = h.Operator(id, certtest.WithIssuer(by))
	} else {
		c = h.Service(id, certtest.WithIssuer(by))
	}
	must(h.t, authority.Record(h.Dir, c.Leaf))
}

func TestDependentsAreThoseWithoutALaterCertificate(t *testing.T) {
	h := newHub(t)
	former := h.Operational
	h.issued(former, identity.RoleOperator, "ann")
	h.issued(former, identity.RoleOperator, "bob")
	h.issued(former, identity.RoleService, "backend")
	gone := h.Operator("eve", certtest.WithValidity(time.Now().Add(-48*time.Hour), time.Hour))
	must(t, authority.Record(h.Dir, gone.Leaf))
	cert := h.ask("hub-2")
	must(t, h.Install(cert, certtest.TrustDomain, time.Now()))
	next, err := h.Issuer()
	must(t, err)
	h.issued(next, identity.RoleOperator, "bob")
	h.issued(next, identity.RoleService, "new")
	for ca, want := range map[*x509.Certificate]string{
		former.Certificate(): "operator/ann service/backend",
		cert:                 "operator/bob service/new",
	} {
		dependents, err := h.Dependents(ca, time.Now())
		must(t, err)
		var names []string
		for _, id := range dependents {
			names = append(names, string(id.Role)+"/"+id.ID)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("on %q rest %q, want %q", ca.Subject.CommonName, got, want)
		}
	}
}

// A line that a power cut left half-written costs that line, and no later one.
func TestJournalGoesOnAfterATornLine(t *testing.T) {
	h := newHub(t)
	h.issued(h.Operational, identity.RoleOperator, "ann")
	path := h.file(authority.JournalFile)
	whole, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, append(bytes.Clone(whole), whole[:len(whole)/2]...), 0o600))
	h.issued(h.Operational, identity.RoleOperator, "bob")
	all, unreadable, err := authority.Journal(h.Dir)
	must(t, err)
	if len(all) != 2 || unreadable != 1 || all[1].Certificate.Subject.CommonName != "bob" {
		t.Errorf("%d certificates, %d unreadable", len(all), unreadable)
	}
}

// FuzzJournal reads what anybody may have written there.
func FuzzJournal(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"certificate":"MAA="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, authority.JournalFile), data, 0o600))
		all, unreadable, err := authority.Journal(dir)
		must(t, err)
		if lines := bytes.Count(data, []byte("\n")) + 1; len(all)+unreadable > lines {
			t.Errorf("%d certificates and %d others of %d lines", len(all), unreadable, lines)
		}
	})
}

func csr(t *testing.T, name string) *x509.CertificateRequest {
	t.Helper()
	key, err := issuance.NewKey()
	must(t, err)
	der, err := issuance.NewCSR(key, name)
	must(t, err)
	request, err := issuance.ParseCSR(der)
	must(t, err)
	return request
}

func newRoot(t *testing.T) *authority.Root {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "stick")
	if _, err := authority.MakeRoot(dir, "fleet.example", 0, plain); err != nil {
		t.Fatal(err)
	}
	root, err := authority.OpenRoot(dir, cakey.Opener{})
	must(t, err)
	return root
}

func TestRootSignsWithinItsLimitsAndRemembers(t *testing.T) {
	root := newRoot(t)
	bench := csr(t, "bench-1")
	first, err := root.Sign(bench, authority.Authority{Kind: identity.KindFactory, MaxDevices: 12, Valid: time.Hour})
	must(t, err)
	if n, err := issuance.DeviceBudget(first); err != nil || n != 12 || first.PermittedURIDomains[0] != "fleet.example" || time.Until(first.NotAfter) > time.Hour {
		t.Errorf("budget %d %v, trust domain %v, until %s", n, err, first.PermittedURIDomains, first.NotAfter)
	}
	if _, err := root.Sign(bench, authority.Authority{Kind: identity.KindFactory}); err != nil {
		t.Errorf("a renewal: %v", err)
	}
	if _, err := root.Sign(csr(t, "bench-1"), authority.Authority{Kind: identity.KindFactory}); err == nil {
		t.Error("a second station of the name was signed")
	}
	if _, err := root.Sign(csr(t, "bench-1"), authority.Authority{Kind: identity.KindFactory, Name: "bench-2"}); err != nil {
		t.Error(err)
	}
	for _, a := range []authority.Authority{{Kind: identity.KindRoot}, {Kind: identity.KindOperational, MaxDevices: 5}, {Kind: identity.KindFactory, Name: "not a name"}, {Kind: "x"}} {
		if _, err := root.Sign(csr(t, "any"), a); err == nil {
			t.Errorf("%+v was signed", a)
		}
	}
	for n := range 6 {
		if _, err := root.Sign(csr(t, fmt.Sprintf("hub-%d", n+1)), authority.Authority{Kind: identity.KindOperational}); err != nil {
			t.Fatal(err)
		}
	}
	signed, err := authority.Signed(root.Dir, root.Certificate())
	must(t, err)
	if len(signed) != 9 {
		t.Errorf("%d on record, want 9", len(signed))
	}
	// What goes along with an authority is no more than a station takes.
	bundle, err := root.Bundle(time.Now())
	must(t, err)
	if len(bundle) != 5 || !bundle[0].Equal(root.Certificate()) || bundle[1].Subject.CommonName != "hub-6" {
		t.Errorf("%d certificates go along, first %q", len(bundle), bundle[1].Subject.CommonName)
	}
	if bundle, err = root.Bundle(time.Now().AddDate(30, 0, 0)); err != nil || len(bundle) != 1 {
		t.Errorf("when all have ended %d go along, %v", len(bundle), err)
	}
}

func TestForgedRecordOfTheRootShows(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	if _, err := root.Sign(csr(t, "bench-1"), authority.Authority{Kind: identity.KindFactory}); err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Sign(csr(t, "bench-2"), authority.Authority{Kind: identity.KindFactory})
	must(t, err)
	must(t, authority.Record(root.Dir, foreign))
	if _, err := authority.Signed(root.Dir, root.Certificate()); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("got %v", err)
	}
	if _, err := root.Sign(csr(t, "bench-2"), authority.Authority{Kind: identity.KindFactory}); err != nil {
		t.Errorf("a foreign line stands in the way: %v", err)
	}
}

// Older hubs wrote lines without the issuer.
func TestLinesFromBeforeAreRead(t *testing.T) {
	h := newHub(t)
	h.issued(h.Operational, identity.RoleOperator, "ann")
	path := h.file(authority.JournalFile)
	data, err := os.ReadFile(path)
	must(t, err)
	var line map[string]any
	must(t, json.Unmarshal(data, &line))
	delete(line, "issuer")
	old, err := json.Marshal(line)
	must(t, err)
	must(t, os.WriteFile(path, append(old, '\n'), 0o600))
	if dependents, err := h.Dependents(h.Operational.Certificate(), time.Now()); err != nil || len(dependents) != 1 {
		t.Errorf("%v %v", dependents, err)
	}
}
