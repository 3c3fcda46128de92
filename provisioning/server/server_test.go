package server

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a station that serves on loopback.
type bench struct {
	t       testing.TB
	fleet   *certtest.Fleet
	station *station.Station
	server  *Server
	url     string
	now     atomic.Pointer[time.Time] // nil: the real time

	events chan Event
}

func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	b := &bench{t: t, fleet: certtest.New(t), events: make(chan Event, 1000)}
	dir := t.TempDir()
	if _, err := station.Init(dir, certtest.StationName); err != nil {
		t.Fatal(err)
	}
	csr, err := pemfile.ReadCSR(filepath.Join(dir, "station.csr"))
	if err != nil {
		t.Fatal(err)
	}
	request, err := issuance.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := b.fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: request.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	authority := filepath.Join(t.TempDir(), "authority.crt")
	if err := pemfile.WriteCertificates(authority, append([]*x509.Certificate{ca}, b.fleet.Bundle()...)...); err != nil {
		t.Fatal(err)
	}
	b.station, err = station.Open(dir, func() time.Time {
		if now := b.now.Load(); now != nil {
			return *now
		}
		return time.Now()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.station.Close() })
	if _, err := b.station.Accept(authority); err != nil {
		t.Fatal(err)
	}
	config := Config{Station: b.station, OnEvent: func(e Event) { b.events <- e }}
	if change != nil {
		change(&config)
	}
	if b.server, err = New(config); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.url = "https://" + listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return b
}

// order opens an order that lists the IDs.
func (b *bench) order(a ledger.Attributes, ids ...string) string {
	b.t.Helper()
	o, err := b.station.Ledger().OpenOrder(time.Now(), ledger.Order{Kind: ledger.Imported, Name: "order-" + ids[0]}, ledger.Line{IDs: ids, Attributes: a})
	if err != nil {
		b.t.Fatal(err)
	}
	return o.Name
}

// tokens makes so many for an order.
func (b *bench) tokens(order string, n int) []string {
	b.t.Helper()
	made, err := b.station.MakeTokens(station.TokenOrder{Order: order, Count: n, Valid: time.Hour})
	if err != nil {
		b.t.Fatal(err)
	}
	return made.Tokens
}

// client is one that knows the station and brings a token, a certificate, or nothing.
func (b *bench) client(token string, cert *tls.Certificate) *est.Client {
	b.t.Helper()
	pin := est.PinOf(b.server.Certificate())
	c, err := est.NewClient(est.ClientConfig{URL: b.url, Pin: &pin, Token: token, Certificate: cert})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// board is a key and a request for it.
type board struct {
	key crypto.Signer
	csr []byte
}

func newBoard(t testing.TB, name string) board {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuance.NewCSR(key, name)
	if err != nil {
		t.Fatal(err)
	}
	return board{key, csr}
}

func (b board) with(cert *x509.Certificate) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: b.key, Leaf: cert}
}

func (b *bench) enroll(token string, d board) *x509.Certificate {
	b.t.Helper()
	cert, err := b.client(token, nil).Enroll(b.t.Context(), d.csr, d.key.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	return cert
}

func TestBoardWithATokenGetsWhatTheOrderSays(t *testing.T) {
	b := newBench(t, nil)
	until := time.Now().AddDate(3, 0, 0).UTC().Truncate(time.Second)
	token := b.tokens(b.order(ledger.Attributes{OU: []string{"press"}, Model: "m1", Labels: map[string]string{"site": "bern"}, NotAfter: until}, "pi-1"), 1)[0]
	d := newBoard(t, "hub")
	cert := b.enroll(token, d)
	id, err := identity.FromCertificate(cert)
	if err != nil || id.String() != "spiffe://fleet.example/device/pi-1" || len(id.OU) != 1 || id.OU[0] != "press" || cert.NotAfter.After(until) || cert.NotAfter.Before(until.Add(-time.Minute)) {
		t.Errorf("%v %v until %s", id, err, cert.NotAfter)
	}
	if again := b.enroll(token, d); !again.Equal(cert) {
		t.Error("the same request again gave another certificate")
	}
	if _, err := b.client(token, nil).Enroll(t.Context(), newBoard(t, "").csr, d.key.Public()); !errors.Is(err, est.ErrDenied) {
		t.Errorf("a second board with the token: %v", err)
	}
	cas, err := b.client("", nil).CACerts(t.Context())
	if err != nil || len(cas) != 3 {
		t.Error(cas, err)
	}
	record, _, err := b.station.Ledger().Device("pi-1")
	if err != nil || record.State != ledger.Delivered || record.Protection != ledger.Software || record.Model != "m1" || record.Labels["site"] != "bern" {
		t.Errorf("%+v %v", record, err)
	}
	told := make(map[string]int)
	for range 3 { // a success is told once the certificate is on its way, so in any order
		e := <-b.events
		told[fmt.Sprint(e.ID, e.Repeated, e.Reason)]++
	}
	if told["pi-1false"] != 1 || told["pi-1true"] != 1 || told["falsecredential"] != 1 {
		t.Errorf("%v", told)
	}
}

func TestOneTokenUsedAHundredTimesAtOnceGivesOneCertificate(t *testing.T) {
	b := newBench(t, nil)
	token := b.tokens(b.order(ledger.Attributes{}, "a", "b", "c"), 1)[0]
	boards := make([]board, 100)
	for i := range boards {
		boards[i] = newBoard(t, "x")
	}
	var mu sync.Mutex
	got := make(map[string]bool) // serial numbers
	var wait sync.WaitGroup
	start := make(chan struct{})
	for _, d := range boards {
		c := b.client(token, nil)
		wait.Go(func() {
			<-start
			cert, err := c.Enroll(t.Context(), d.csr, d.key.Public())
			if err == nil {
				mu.Lock()
				got[identity.SerialString(cert.SerialNumber)] = true
				mu.Unlock()
			} else if refusal, ok := errors.AsType[*est.ServerError](err); !ok || refusal.Status != 401 && refusal.Status != 503 {
				t.Error(err)
			}
		})
	}
	close(start)
	wait.Wait()
	n, err := b.station.Ledger().Unexported()
	if len(got) != 1 || n != 1 || err != nil {
		t.Errorf("%d certificates were handed out, the ledger has %d %v", len(got), n, err)
	}
}

func TestReenrolmentIsForTheCurrentCertificateAndAnOpenReplacement(t *testing.T) {
	b := newBench(t, nil)
	tokens := b.tokens(b.order(ledger.Attributes{}, "a", "b", "brief"), 3)
	a, other := newBoard(t, "a"), newBoard(t, "b")
	certA, certB := b.enroll(tokens[0], a), b.enroll(tokens[1], other)
	renew := func(holder board, cert *x509.Certificate, next board) (*x509.Certificate, error) {
		return b.client("", holder.with(cert)).Reenroll(t.Context(), next.csr, next.key.Public())
	}
	next := newBoard(t, "a")
	if _, err := renew(a, certA, next); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "provisioning replace") {
		t.Errorf("without an order: %v", err)
	}
	if _, err := b.station.OrderReplacement("a", "test"); err != nil {
		t.Fatal(err)
	}
	foreign := b.fleet.Foreign().Device("a")
	sibling := b.fleet.Device("a") // of another station under the same root
	for name, test := range map[string]struct {
		holder board
		cert   *x509.Certificate
		next   board
		want   string
	}{
		"another CA's certificate":      {board{key: foreign.Key}, foreign.Leaf, next, "not the newest"},
		"another station's certificate": {board{key: sibling.Key}, sibling.Leaf, next, "not the newest"},
		"another device's certificate":  {other, certB, newBoard(t, "b"), "provisioning replace"},
		"another device's name":         {other, certB, newBoard(t, "a"), "it asks for the common name"},
		"unknown device's certificate":  {board{key: sibling.Key}, b.fleet.Device("nobody").Leaf, newBoard(t, "nobody"), ""},
		"the old key":                   {a, certA, a, "has had that key"},
		"another device's key":          {a, certA, board{other.key, mustCSR(t, other.key, "a")}, "is the key of b"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "unknown device's certificate" {
				unknown := b.fleet.Device("nobody")
				test.holder, test.cert, test.want = board{key: unknown.Key}, unknown.Leaf, "issued none to"
			}
			if _, err := renew(test.holder, test.cert, test.next); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		past := certA.NotAfter.Add(time.Second)
		b.now.Store(&past)
		defer b.now.Store(nil)
		if _, err := renew(a, certA, next); err == nil {
			t.Error("renewed")
		}
	})
	renewed, err := renew(a, certA, next)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := renew(a, certA, next); err != nil || !again.Equal(renewed) { // its answer was lost
		t.Errorf("the same request again: %v", err)
	}
	// certA is superseded, which is the revocation a station knows of.
	if _, err := b.station.OrderReplacement("a", "test again"); err != nil {
		t.Fatal(err)
	}
	if _, err := renew(a, certA, newBoard(t, "a")); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "not the newest") {
		t.Errorf("with the superseded certificate: %v", err)
	}
	if _, err := renew(next, renewed, newBoard(t, "a")); err != nil {
		t.Errorf("with the newest: %v", err)
	}
	record, _, err := b.station.Ledger().Device("a")
	if err != nil || record.Supersedes != identity.SerialString(renewed.SerialNumber) {
		t.Errorf("%+v %v", record, err)
	}
}

func mustCSR(t testing.TB, key crypto.Signer, name string) []byte {
	t.Helper()
	csr, err := issuance.NewCSR(key, name)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func TestExpiredCertificateIsNotRenewedThoughTheAuthorityIsGood(t *testing.T) {
	b := newBench(t, nil)
	until := time.Now().Add(24 * time.Hour)
	d := newBoard(t, "brief")
	cert := b.enroll(b.tokens(b.order(ledger.Attributes{NotAfter: until}, "brief"), 1)[0], d)
	if _, err := b.station.OrderReplacement("brief", "test"); err != nil {
		t.Fatal(err)
	}
	later := until.Add(time.Hour)
	b.now.Store(&later)
	next := newBoard(t, "brief")
	if _, err := b.client("", d.with(cert)).Reenroll(t.Context(), next.csr, next.key.Public()); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "it is good from") {
		t.Error(err)
	}
}

func TestStationWhoseClockIsWrongByYearsIssuesNothingAndSaysSo(t *testing.T) {
	b := newBench(t, nil)
	token := b.tokens(b.order(ledger.Attributes{}, "a"), 1)[0]
	d := newBoard(t, "a")
	for _, years := range []int{-30, 7} {
		now := time.Now().AddDate(years, 0, 0)
		b.now.Store(&now)
		_, err := b.client(token, nil).Enroll(t.Context(), d.csr, d.key.Public())
		refusal, ok := errors.AsType[*est.ServerError](err)
		if !ok || refusal.Status != 503 || refusal.RetryAfter == 0 || !strings.Contains(err.Error(), "clock") {
			t.Errorf("%d years: %v", years, err)
		}
	}
	b.now.Store(nil)
	if n, err := b.station.Ledger().Count(); n != 0 || err != nil {
		t.Errorf("%d IDs were spent %v", n, err)
	}
	b.enroll(token, d)
}

func TestClaimCertificateEnrolsOnceABoardAndDoesNothingElse(t *testing.T) {
	b := newBench(t, nil)
	order := b.order(ledger.Attributes{}, "a", "b", "c")
	out := filepath.Join(t.TempDir(), "claim")
	claim, err := b.station.MakeClaim(station.ClaimOrder{Order: order, Name: "line-2", Max: 2, Valid: time.Hour, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	key, err := pemfile.ReadKey(filepath.Join(out, "claim.key"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pemfile.ReadCertificates(filepath.Join(out, "claim.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := identity.FromCertificate(certs[0]); err == nil || certs[0].CheckSignatureFrom(b.fleet.Factory.Certificate()) == nil {
		t.Error("a hub could take the claim certificate for somebody's")
	}
	with := board{key: key}.with(certs[0])
	enroll := func(d board) (*x509.Certificate, error) {
		return b.client("", with).Enroll(t.Context(), d.csr, d.key.Public())
	}
	first := newBoard(t, "")
	one, err := enroll(first)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := enroll(first); err != nil || !again.Equal(one) {
		t.Errorf("the same board again: %v", err)
	}
	if _, err := enroll(newBoard(t, "")); err != nil {
		t.Error(err)
	}
	if _, err := enroll(newBoard(t, "")); !errors.Is(err, est.ErrDenied) {
		t.Errorf("the third board of two: %v", err)
	}
	if _, err := b.client("", with).Reenroll(t.Context(), newBoard(t, certs[0].Subject.CommonName).csr, key.Public()); !errors.Is(err, est.ErrDenied) {
		t.Errorf("renewed: %v", err)
	}
	foreign := newBoard(t, "")
	if _, err := b.client("", foreign.with(b.fleet.Device("a").Leaf)).Enroll(t.Context(), first.csr, first.key.Public()); err == nil {
		t.Error("enrolled with a certificate that isn't ours, and whose key was not proved")
	}
	device := b.fleet.Device("x")
	if _, err := b.client("", &device.Certificate).Enroll(t.Context(), first.csr, first.key.Public()); !errors.Is(err, est.ErrDenied) {
		t.Errorf("enrolled with a device's certificate: %v", err)
	}
	if _, err := b.station.RevokeClaim(claim.Fingerprint); err != nil {
		t.Fatal(err)
	}
	if again, err := enroll(first); err != nil || !again.Equal(one) {
		t.Errorf("revoking the claim took a board what it has: %v", err)
	}
}

func TestOrderAndBudgetBoundWhatIsIssued(t *testing.T) {
	b := newBench(t, nil)
	order := b.order(ledger.Attributes{Protection: ledger.TPM}, "guarded")
	d := newBoard(t, "")
	if _, err := b.client(b.tokens(order, 1)[0], nil).Enroll(t.Context(), d.csr, d.key.Public()); !errors.Is(err, est.ErrDenied) || !strings.Contains(err.Error(), "demands a key in a tpm") {
		t.Errorf("a software key for a TPM order: %v", err)
	}
	open := b.order(ledger.Attributes{}, "last")
	tokens := append(b.tokens(open, 1), b.tokens(open, 1)...) // as if the first was lost
	if _, err := b.station.MakeTokens(station.TokenOrder{Order: open, Count: 2, Valid: time.Hour}); err == nil || !strings.Contains(err.Error(), "1 of its 1 left") {
		t.Errorf("two tokens at once for an order of one: %v", err)
	}
	b.enroll(tokens[0], newBoard(t, ""))
	if _, err := b.client(tokens[1], nil).Enroll(t.Context(), d.csr, d.key.Public()); !errors.Is(err, est.ErrDenied) {
		t.Errorf("a second device of an order of one: %v", err)
	}
	if _, err := b.station.MakeTokens(station.TokenOrder{Order: open, Count: 1, Valid: time.Hour}); err == nil {
		t.Error("a token was made for an order that is fulfilled")
	}
}

func TestServerKeyOutlivesItsCertificate(t *testing.T) {
	b := newBench(t, nil)
	if got := b.server.String(); !strings.Contains(got, certtest.StationName) {
		t.Error(got)
	}
	cert, err := b.station.ServerCertificate()
	if err != nil || !cert.Leaf.Equal(b.server.Certificate()) {
		t.Errorf("the server's certificate was made anew: %v", err)
	}
	more, err := b.station.ServerCertificate("station.example", "192.0.2.7")
	if err != nil || est.PinOf(more.Leaf) != est.PinOf(cert.Leaf) || more.Leaf.VerifyHostname("192.0.2.7") != nil || more.Leaf.VerifyHostname("localhost") != nil {
		t.Errorf("with more names the pin changed, or a name is missing: %v", err)
	}
}
