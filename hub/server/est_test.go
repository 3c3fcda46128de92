package server_test

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
)

// issuing returns a hub with its issuing key, by which devices can renew.
func issuing(t *testing.T, options ...hubtest.Option) *hubtest.Hub {
	t.Helper()
	h := hubtest.Start(t, options...)
	must(t, pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey))
	return h
}

// estClient returns a client that presents that credential, whose hub is of its fleet
// whatever the credential is of.
func estClient(t *testing.T, h *hubtest.Hub, c certtest.Credential) *est.Client {
	t.Helper()
	c.Roots = h.Fleet.Bundle()
	client, err := est.NewClient(est.ClientConfig{URL: "https://" + h.HTTPSAddr(), TLS: c.ClientConfig(), Certificate: &c.Certificate})
	must(t, err)
	t.Cleanup(client.Close)
	return client
}

// renew asks for a certificate for that key with the credential, and returns the new one.
func renew(t *testing.T, h *hubtest.Hub, with certtest.Credential, key crypto.Signer) (certtest.Credential, error) {
	t.Helper()
	csr, err := issuance.NewCSR(key, with.Identity.ID)
	must(t, err)
	leaf, err := estClient(t, h, with).Reenroll(t.Context(), csr, key.Public())
	if err != nil {
		return certtest.Credential{}, err
	}
	next := with
	next.Key, next.Leaf, next.Issuer = key, leaf, h.Fleet.Operational.Certificate()
	next.Certificate = tls.Certificate{Certificate: [][]byte{leaf.Raw, next.Issuer.Raw}, PrivateKey: key, Leaf: leaf}
	return next, nil
}

func mustRenew(t *testing.T, h *hubtest.Hub, with certtest.Credential) certtest.Credential {
	t.Helper()
	next, err := renew(t, h, with, newKey(t))
	must(t, err)
	return next
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := issuance.NewKey()
	must(t, err)
	return key
}

// admitted reports whether the hub lets a device in with that certificate. The CONNECT it
// tries with is refused for another reason, so it changes nothing.
func admitted(h *hubtest.Hub, c certtest.Credential) bool {
	conn, err := dial(h.MQTTAddr(), c.ClientConfig())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// usable returns how many certificates of a device are usable, by its record.
func usable(t *testing.T, h *hubtest.Hub, id string) (n int) {
	t.Helper()
	d, err := h.Server().Fleet().Device(t.Context(), id)
	must(t, err)
	for _, c := range d.Certificates {
		if c.Usable() {
			n++
		}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until ok holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// curl and openssl, and nothing of ours, renew a device's certificate.
func TestForeignClientRenews(t *testing.T) {
	h := issuing(t)
	device := h.Device("pi-1")
	dir := device.WriteTo(t.TempDir(), "device")
	file := func(name string) string { return filepath.Join(dir, name) }
	url := "https://" + h.HTTPSAddr() + est.Prefix
	tool := func(stdin, name string, args ...string) string {
		t.Helper()
		out, err := run(t, stdin, name, args...)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, args, err, out)
		}
		return out
	}
	unwrap := func(base64 string) string { // the certificates of a certs-only CMS
		der := tool(base64, "base64", "-d", "-i")
		return tool(der, "openssl", "pkcs7", "-inform", "DER", "-print_certs")
	}
	curl := func(args ...string) string {
		return tool("", "curl", append([]string{"--silent", "--show-error", "--fail", "--cacert", file("ca.crt")}, args...)...)
	}

	// Whoever has no certificate at all may fetch the CAs.
	cas := unwrap(curl(url + "cacerts"))
	if n := strings.Count(cas, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("/cacerts has %d certificates, want the root and the hub's issuing CA:\n%s", n, cas)
	}
	attrs := tool(curl(url+"csrattrs"), "base64", "-d", "-i")
	if tool(attrs, "openssl", "asn1parse", "-inform", "DER") == "" {
		t.Error("/csrattrs is no ASN.1")
	}

	tool("", "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", file("next.key"))
	request := tool("", "openssl", "req", "-new", "-key", file("next.key"), "-subj", "/CN=pi-1", "-outform", "DER")
	must(t, os.WriteFile(file("request"), []byte(base64.StdEncoding.EncodeToString([]byte(request))), 0o600))
	answer := curl("--cert", file("device.crt"), "--key", file("device.key"), "-H", "Content-Type: application/pkcs10", "-H", "Content-Transfer-Encoding: base64",
		"--data-binary", "@"+file("request"), "-D", file("headers"), url+"simplereenroll")
	headers, err := os.ReadFile(file("headers"))
	must(t, err)
	for _, want := range []string{"application/pkcs7-mime; smime-type=certs-only", "base64"} {
		if !strings.Contains(string(headers), want) {
			t.Errorf("the answer's header has no %q:\n%s", want, headers)
		}
	}
	must(t, os.WriteFile(file("next.crt"), []byte(unwrap(answer)), 0o600))
	tool("", "openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", file("ca.crt"), file("next.crt"))
	text := tool("", "openssl", "x509", "-in", file("next.crt"), "-noout", "-text")
	for _, want := range []string{"CN=pi-1", "URI:spiffe://fleet.example/device/pi-1", "OU=hub, CN=hub", "TLS Web Client Authentication"} {
		if !strings.Contains(strings.ReplaceAll(text, " = ", "="), want) {
			t.Errorf("the certificate doesn't say %q:\n%s", want, text)
		}
	}

	// It connects by it: CONNECT, CONNACK, DISCONNECT.
	connectWith := func(cert, key string) string {
		out, _ := run(t, "\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04pi-1\xe0\x00", "openssl", "s_client", "-connect", h.MQTTAddr(), "-ign_eof", "-quiet",
			"-CAfile", file("ca.crt"), "-cert", file(cert), "-key", file(key))
		return out
	}
	if out := connectWith("device.crt", "device.key"); !strings.Contains(out, "\x20\x02\x00\x00") {
		t.Errorf("the former certificate is not good any more, before the new one has connected: %q", out)
	}
	if out := connectWith("next.crt", "next.key"); !strings.Contains(out, "\x20\x02\x00\x00") {
		t.Fatalf("no CONNACK with the new certificate: %q", out)
	}
}

func TestOldCertificateStaysUntilTheNewOneHasConnected(t *testing.T) {
	h := issuing(t)
	old := h.Device("pi-1")
	next := mustRenew(t, h, old)
	if next.Leaf.Subject.CommonName != "pi-1" || next.Leaf.SerialNumber.Cmp(old.Leaf.SerialNumber) == 0 {
		t.Fatalf("got %v", next.Leaf.Subject)
	}
	both := func(when string) {
		t.Helper()
		for name, c := range map[string]certtest.Credential{"old": old, "new": next} {
			if !admitted(h, c) {
				t.Errorf("%s: the %s certificate is refused", when, name)
			}
		}
	}
	both("after the renewal")
	h.Restart() // between issue and first connect
	both("after a restart")

	client, err := connect(t, h.MQTTAddr(), old, nil)
	must(t, err)
	both("while the old one is connected")
	newer, err := connect(t, h.MQTTAddr(), next, nil)
	must(t, err)
	defer newer.Disconnect(100)
	waitFor(t, "the old certificate refused", func() bool { return !admitted(h, old) })
	waitFor(t, "the old connection cut", func() bool { return !client.IsConnectionOpen() })
	if !admitted(h, next) || !newer.IsConnectionOpen() {
		t.Error("the new certificate is refused, too")
	}
	h.Restart()
	if admitted(h, old) {
		t.Error("a restart brought the superseded certificate back")
	}
	page, err := h.Server().Fleet().Audit(t.Context(), registry.AuditQuery{Device: "pi-1", Limit: 100})
	must(t, err)
	var actions []string
	for _, r := range page.Records {
		actions = append(actions, r.Action+" by "+r.Actor)
	}
	log := strings.Join(actions, "\n")
	for _, want := range []string{"device.renew by spiffe://fleet.example/device/pi-1", "device.supersede by hub"} {
		if strings.Count(log, want) != 1 {
			t.Errorf("the audit log doesn't have %q once:\n%s", want, log)
		}
	}
}

// Expired devices reach their renewal, for a while, and nothing else.
func TestExpiredDeviceReachesItsRenewalOnly(t *testing.T) {
	h := issuing(t, func(c *server.Config) { c.Renewal.Grace = 48 * time.Hour })
	device := h.Fleet.Device("pi-1", certtest.WithValidity(time.Now().Add(-time.Hour), 2*time.Hour))
	h.Register(device)
	h.Advance(24 * time.Hour)
	if admitted(h, device) {
		t.Error("an expired device is let in at the device door")
	}
	api := &http.Client{Transport: &http.Transport{TLSClientConfig: device.ClientConfig()}, Timeout: patience}
	defer api.CloseIdleConnections()
	answer, err := api.Get("https://" + h.HTTPSAddr() + "/v1/devices")
	must(t, err)
	answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden {
		t.Errorf("the API answers %s", answer.Status)
	}
	next := mustRenew(t, h, device)
	if !admitted(h, next) {
		t.Error("the renewed certificate is refused")
	}
	h.Advance(25 * time.Hour)
	if _, err := renew(t, h, device, newKey(t)); err == nil {
		t.Error("renewed beyond the grace")
	}
}

func TestRepeatedRequestHearsTheSameCertificate(t *testing.T) {
	h := issuing(t)
	device := h.Device("pi-1")
	key := newKey(t)
	const clients = 20
	serials := make(chan string, clients)
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			next, err := renew(t, h, device, key)
			if err != nil {
				t.Error(err)
				return
			}
			serials <- identity.SerialString(next.Leaf.SerialNumber)
		})
	}
	group.Wait()
	close(serials)
	seen := make(map[string]int)
	for s := range serials {
		seen[s]++
	}
	if n := usable(t, h, "pi-1"); len(seen) != 1 || n != 2 {
		t.Errorf("%d requests with one key got %v; %d certificates are usable, want the old and the new", clients, seen, n)
	}
	// A lost draft: another key takes the place of the one that never connected.
	first, err := renew(t, h, device, key)
	must(t, err)
	second := mustRenew(t, h, device)
	if admitted(h, first) || !admitted(h, second) || !admitted(h, device) {
		t.Error("what was renewed again is not what is good now")
	}
	// Using the new one to renew is using it.
	third := mustRenew(t, h, second)
	if admitted(h, device) || !admitted(h, second) || !admitted(h, third) {
		t.Error("the certificate that was used to renew has not superseded the one before it")
	}
}

func TestRenewalsAreBounded(t *testing.T) {
	h := issuing(t)
	device := h.Device("pi-1")
	for n := 0; ; n++ {
		_, err := renew(t, h, device, newKey(t))
		if answer, ok := errors.AsType[*est.ServerError](err); ok && answer.Status == http.StatusTooManyRequests {
			if n < 2 || answer.RetryAfter <= 0 {
				t.Errorf("refused after %d renewals, to be asked again in %s", n, answer.RetryAfter)
			}
			break
		}
		must(t, err)
		if n > 20 {
			t.Fatal("more than 20 certificates within a minute")
		}
	}
	h.Advance(25 * time.Hour)
	mustRenew(t, h, device)
}

// Whoever is faster, afterwards the device has no certificate that is good.
func TestRevocationRacingARenewalWins(t *testing.T) {
	h := issuing(t)
	for i := range 20 {
		id := fmt.Sprintf("pi-%d", i)
		device := h.Device(id)
		key := newKey(t)
		csr, err := issuance.NewCSR(key, id)
		must(t, err)
		client, operator := estClient(t, h, device), h.Operator()
		var group sync.WaitGroup
		var leaf *x509.Certificate
		group.Go(func() { leaf, _ = client.Reenroll(t.Context(), csr, key.Public()) })
		group.Go(func() {
			if _, err := operator.Revoke(t.Context(), id, revocation.KeyCompromise); err != nil {
				t.Error(err)
			}
		})
		group.Wait()
		if n := usable(t, h, id); n != 0 {
			t.Fatalf("%s is revoked and has %d usable certificates", id, n)
		}
		if leaf != nil && bytes.Equal(leaf.Raw, device.Leaf.Raw) {
			t.Fatal("the renewal is the certificate it renews")
		}
	}
}

// BenchmarkRenewal is whole renewals, each with its own TLS handshake, by many devices at
// once: issue and durable record, over loopback.
func BenchmarkRenewal(b *testing.B) {
	h := hubtest.Start(b)
	if err := pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey); err != nil {
		b.Fatal(err)
	}
	const devices = 400
	var all []certtest.Credential
	for i := range devices {
		all = append(all, h.Fleet.Device(fmt.Sprintf("pi-%d", i)))
	}
	h.Register(all...)
	for b.Loop() {
		work := make(chan certtest.Credential)
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				for c := range work {
					client, err := est.NewClient(est.ClientConfig{URL: "https://" + h.HTTPSAddr(), TLS: c.ClientConfig(), Certificate: &c.Certificate})
					if err != nil {
						b.Error(err)
						continue
					}
					key, _ := issuance.NewKey()
					csr, err := issuance.NewCSR(key, c.Identity.ID)
					if err == nil {
						_, err = client.Reenroll(b.Context(), csr, key.Public())
					}
					client.Close()
					if err != nil {
						b.Error(err)
					}
				}
			})
		}
		for _, c := range all {
			work <- c
		}
		close(work)
		group.Wait()
		h.Advance(25 * time.Hour) // past the bound on renewals
	}
	b.ReportMetric(float64(devices*b.N)/b.Elapsed().Seconds(), "renewals/s")
}
