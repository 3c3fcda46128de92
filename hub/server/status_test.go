package server_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
	"github.com/fleethub/fleethub/hub/status"
)

// publishing is a hub with its issuing key, and a plain HTTP door for certificate status.
type publishing struct {
	*hubtest.Hub
	t *testing.T
}

func startPublishing(t *testing.T) *publishing {
	t.Helper()
	h := &publishing{hubtest.Start(t, func(c *server.Config) { c.Status.Addr = "127.0.0.1:0" }), t}
	h.must(pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey))
	h.Restart()
	return h
}

func (h *publishing) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *publishing) url(path string) string { return "http://" + h.Server().Endpoint().Status + path }

// renewed returns a device whose certificate is by the hub's own CA, and that before.
func (h *publishing) renewed(id string) (former certtest.Credential, now *x509.Certificate) {
	h.t.Helper()
	former = h.Device(id)
	key, err := issuance.NewKey()
	h.must(err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	h.must(err)
	leaf, err := h.Server().Fleet().Renew(h.t.Context(), fleet.Renewal{Device: id, Presented: former.Leaf, Key: spki}, func() (*x509.Certificate, error) {
		return h.Fleet.Operational.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: former.Identity, PublicKey: key.Public()})
	})
	h.must(err)
	return former, leaf
}

// list returns the hub's own list, as the plain door serves it.
func (h *publishing) list() (der []byte, entries int) {
	h.t.Helper()
	response, err := http.Get(h.url(status.ListPath + status.KeyID(h.Fleet.Operational.Certificate()) + ".crl"))
	h.must(err)
	defer response.Body.Close()
	der, err = io.ReadAll(response.Body)
	h.must(err)
	if response.StatusCode != http.StatusOK {
		return nil, -1
	}
	l, err := revocation.ReadList(der, h.Fleet.Operational.Certificate())
	h.must(err)
	return der, len(l.Entries)
}

// untilList waits until the list has so many entries, and returns it.
func (h *publishing) untilList(n int) (der []byte) {
	h.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		der, entries := h.list()
		if entries == n {
			return der
		}
		if time.Now().After(end) {
			h.t.Fatalf("the list has %d entries, want %d", entries, n)
		}
	}
}

func (h *publishing) file(name string, data []byte) string {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), name)
	h.must(os.WriteFile(path, data, 0o600))
	return path
}

func (h *publishing) crt(certs ...*x509.Certificate) string {
	return h.file("c.crt", pemfile.EncodeCertificates(certs...))
}

// openssl returns what the command says, whatever its exit status: both are looked at.
func (h *publishing) openssl(args ...string) string {
	h.t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		h.t.Fatalf("%v; install the Debian package openssl", err)
	}
	out, _ := exec.CommandContext(h.t.Context(), "openssl", args...).CombinedOutput()
	return string(out)
}

// ocsp asks with openssl, which verifies the delegated signer and the nonce.
func (h *publishing) ocsp(leaf *x509.Certificate, more ...string) string {
	args := []string{"ocsp", "-issuer", h.crt(h.Fleet.Operational.Certificate()), "-cert", h.crt(leaf), "-url", h.url("/ocsp"),
		"-CAfile", h.crt(h.Fleet.Root.Certificate(), h.Fleet.Operational.Certificate())}
	return h.openssl(append(args, more...)...)
}

func (h *publishing) says(out string, wants ...string) {
	h.t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			h.t.Errorf("openssl doesn't say %q but:\n%s", want, out)
		}
	}
}

func TestOpensslAsksTheHubByOCSP(t *testing.T) {
	h := startPublishing(t)
	_, good := h.renewed("pi-1")
	_, bad := h.renewed("pi-2")
	_, held := h.renewed("pi-3")
	h.untilList(0)
	h.says(h.ocsp(bad), "Response verify OK", "good")
	if _, err := h.Operator().Revoke(t.Context(), "pi-2", revocation.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Operator().Suspend(t.Context(), "pi-3", "rented out"); err != nil {
		t.Fatal(err)
	}
	for _, nonce := range []string{"-nonce", "-no_nonce"} {
		h.says(h.ocsp(good, nonce), "Response verify OK", ": good")
		h.says(h.ocsp(bad, nonce), "Response verify OK", ": revoked", "Reason: keyCompromise")
		h.says(h.ocsp(held, nonce), "Response verify OK", ": revoked", "Reason: certificateHold")
		h.says(h.ocsp(h.Fleet.Device("stranger", certtest.WithIssuer(h.Fleet.Operational)).Leaf, nonce), "Response verify OK", ": unknown")
	}
	if out := h.ocsp(good, "-nonce"); strings.Contains(strings.ToLower(out), "nonce") {
		t.Errorf("openssl has something to say about the nonce:\n%s", out)
	}
	// A station's certificates are not the hub's to vouch for.
	device := h.Device("pi-4")
	h.says(h.openssl("ocsp", "-issuer", h.crt(device.Issuer), "-cert", h.crt(device.Leaf), "-url", h.url("/ocsp"), "-CAfile", h.crt(h.Fleet.Root.Certificate())), "unauthorized")
	h.Restart()
	h.says(h.ocsp(bad), "Response verify OK", ": revoked")
	if _, err := h.Operator().Resume(t.Context(), "pi-3", ""); err != nil {
		t.Fatal(err)
	}
	h.says(h.ocsp(held), "Response verify OK", ": good")
}

func TestOpensslVerifiesAgainstTheHubsList(t *testing.T) {
	h := startPublishing(t)
	_, good := h.renewed("pi-1")
	_, bad := h.renewed("pi-2")
	check := func(leaf *x509.Certificate, list []byte) string {
		pemList := h.file("list.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list}))
		return h.openssl("verify", "-x509_strict", "-crl_check", "-CAfile", h.crt(h.Fleet.Root.Certificate()), "-untrusted", h.crt(h.Fleet.Operational.Certificate()),
			"-CRLfile", pemList, h.crt(leaf))
	}
	list := h.untilList(0)
	h.says(check(bad, list), ": OK")
	if _, err := h.Operator().Revoke(t.Context(), "pi-2", revocation.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	list = h.untilList(1)
	h.says(check(good, list), ": OK")
	h.says(check(bad, list), "certificate revoked")
	// The HTTPS address has it for anybody, too.
	transport := &http.Transport{TLSClientConfig: certtest.Credential{Credentials: mtls.Credentials{Roots: h.Fleet.Bundle()}}.ClientConfig()}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("https://" + h.HTTPSAddr() + status.ListPath + status.KeyID(h.Fleet.Operational.Certificate()) + ".crl")
	h.must(err)
	defer response.Body.Close()
	if der, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(der, list) {
		t.Errorf("by HTTPS: %s, %v", response.Status, err)
	}
	h.Restart()
	if again := h.untilList(1); !bytes.Equal(again, list) {
		t.Error("a restart has signed another list, though nothing has changed")
	}
}

func TestCertificatesNameWhereTheirStatusIsPublishedIfSo(t *testing.T) {
	config := server.DefaultConfig(t.TempDir()).Status
	pki := certtest.New(t)
	ca := pki.Operational.Certificate()
	if p := config.Publication(ca); p != (issuance.Publication{}) {
		t.Errorf("by default certificates name %+v", p)
	}
	config.URL = "http://status.fleet.example"
	id, err := identity.New(certtest.TrustDomain, identity.RoleService, "billing")
	if err != nil {
		t.Fatal(err)
	}
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.Operational.Publishing(config.Publication(ca)).At(time.Now).Issue(issuance.Request{Profile: issuance.ServiceProfile(), Identity: id, PublicKey: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.CRLDistributionPoints) != 1 || leaf.CRLDistributionPoints[0] != "http://status.fleet.example/crl/"+status.KeyID(ca)+".crl" ||
		len(leaf.OCSPServer) != 1 || leaf.OCSPServer[0] != "http://status.fleet.example/ocsp" {
		t.Errorf("it names %v and %v", leaf.CRLDistributionPoints, leaf.OCSPServer)
	}
}

// factoryList is a list by the station.
func (h *publishing) factoryList(number int64, at time.Time, entries ...revocation.Entry) []byte {
	h.t.Helper()
	l := revocation.List{Number: big.NewInt(number), ThisUpdate: at, NextUpdate: at.Add(time.Hour), Entries: entries}
	der, err := l.Sign(h.Fleet.Factory.Certificate(), h.Fleet.FactoryKey)
	h.must(err)
	return der
}

func TestForeignListCutsOffWhomItRevokesForGood(t *testing.T) {
	h := &publishing{hubtest.Start(t), t}
	now := time.Now().UTC().Truncate(time.Second)
	good, bad, held := h.Device("pi-1"), h.Device("pi-2"), h.Device("pi-3")
	later := h.Fleet.Device("pi-4") // on the list before it is registered
	client, err := connect(t, h.MQTTAddr(), bad, nil)
	h.must(err)
	defer client.Disconnect(100)
	receipt, err := h.Operator().ImportList(t.Context(), h.factoryList(5, now,
		revocation.Entry{Serial: bad.Leaf.SerialNumber, At: now, Reason: revocation.KeyCompromise},
		revocation.Entry{Serial: held.Leaf.SerialNumber, At: now, Reason: revocation.Hold},
		revocation.Entry{Serial: later.Leaf.SerialNumber, At: now}))
	h.must(err)
	if len(receipt.Cut) != 2 || receipt.Entries != 3 || receipt.Number != "5" {
		t.Errorf("receipt %+v", receipt)
	}
	for end := time.Now().Add(patience); client.IsConnectionOpen(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its session is still open")
		}
	}
	h.Register(later)
	check := func(when string) {
		t.Helper()
		for id, want := range map[string]registry.State{"pi-1": registry.StateRegistered, "pi-2": registry.StateRevoked, "pi-3": registry.StateSuspended} {
			if s, _ := h.Server().Fleet().Status(id); s.State != want && !(id == "pi-1" && s.State == registry.StateActive) {
				t.Errorf("%s: %s is %s, want %s", when, id, s.State, want)
			}
		}
		for device, admitted := range map[*certtest.Credential]bool{&good: true, &bad: false, &held: false, &later: false} {
			conn, err := dial(h.MQTTAddr(), device.ClientConfig())
			if err == nil {
				conn.Close()
			}
			if (err == nil) != admitted {
				t.Errorf("%s: %s is answered with %v", when, device.Identity.ID, err)
			}
		}
	}
	check("after the import")
	h.Restart()
	check("after a restart")
	h.Advance(48 * time.Hour)
	h.Restart()
	check("with a list that is out of date")
	lists, err := h.Operator().Lists(t.Context())
	h.must(err)
	if len(lists) != 1 || !strings.Contains(lists[0].Problem, "newer list was due") {
		t.Errorf("lists %+v", lists)
	}
	if _, err := h.Operator().ImportList(t.Context(), h.factoryList(4, now.Add(48*time.Hour))); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older list: %v", err)
	}
	if !strings.Contains(h.Log(), "foreign revocation list is refused") {
		t.Error("no alarm about the older list")
	}
	// The registry, not the file, decides: without the file nobody comes back.
	h.must(os.Remove(filepath.Join(h.Dir, "status", "foreign", status.KeyID(h.Fleet.Factory.Certificate())+".crl")))
	h.Restart()
	if conn, err := dial(h.MQTTAddr(), bad.ClientConfig()); err == nil {
		conn.Close()
		t.Error("a revoked device came back because a file was lost")
	}
	if _, err := h.Operator().ImportList(t.Context(), []byte("x")); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("nonsense: %v", err)
	}
}
