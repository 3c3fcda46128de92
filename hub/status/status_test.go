package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is a registry: every serial number in it was issued.
type book struct {
	mu     sync.Mutex
	issued map[string]*revocation.Entry // nil: good
	broken error
}

func (b *book) set(serial *big.Int, e *revocation.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.issued[serial.String()] = e
}

func (b *book) Lookup(_ context.Context, _ *x509.Certificate, serial *big.Int) (revocation.Entry, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, known := b.issued[serial.String()]
	switch {
	case b.broken != nil:
		return revocation.Entry{}, false, b.broken
	case !known:
		return revocation.Entry{}, false, registry.ErrUnknown
	case e == nil:
		return revocation.Entry{}, false, nil
	}
	return *e, true, nil
}

func (b *book) Revoked(context.Context, *x509.Certificate) (all []revocation.Entry, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.issued {
		if e != nil {
			all = append(all, *e)
		}
	}
	return all, b.broken
}

// desk is a publisher with its registry and clock.
type desk struct {
	*status.Publisher
	t       testing.TB
	pki     *certtest.Fleet
	book    *book
	dir     string
	now     time.Time
	keyAway bool
}

func newDesk(t testing.TB) *desk {
	d := &desk{t: t, pki: certtest.New(t), book: &book{issued: make(map[string]*revocation.Entry)}, dir: t.TempDir(), now: time.Now().UTC().Truncate(time.Second)}
	d.open()
	return d
}

// open opens the publisher, again perhaps.
func (d *desk) open() {
	d.t.Helper()
	p, err := status.New(status.Config{
		Dir: d.dir, Registry: d.book, Now: func() time.Time { return d.now },
		Authorities: func() ([]status.Authority, error) {
			a := status.Authority{Certificate: d.pki.Operational.Certificate(), Key: d.pki.OperationalKey}
			if d.keyAway {
				a.Key = nil
			}
			return []status.Authority{a}, nil
		},
		Responder: func(a status.Authority, pub crypto.PublicKey) (*x509.Certificate, error) {
			return d.pki.Operational.At(func() time.Time { return d.now }).IssueResponder(pub)
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Publisher = p
}

func (d *desk) refresh() {
	d.t.Helper()
	if err := d.Refresh(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) do(method, path string, body []byte) *http.Response {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	if body != nil {
		r.Header.Set("Content-Type", "application/ocsp-request")
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w.Result()
}

func (d *desk) listPath() string {
	return status.ListPath + status.KeyID(d.pki.Operational.Certificate()) + ".crl"
}

// served returns the list as it is served.
func (d *desk) served() revocation.List {
	d.t.Helper()
	response := d.do(http.MethodGet, d.listPath(), nil)
	der, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/pkix-crl" {
		d.t.Fatalf("the list is answered with %s: %s", response.Status, der)
	}
	l, err := revocation.ReadList(der, d.pki.Operational.Certificate())
	if err != nil {
		d.t.Fatal(err)
	}
	return l
}

func (d *desk) ask(leaf *x509.Certificate, issuer *x509.Certificate) []byte {
	d.t.Helper()
	der, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return der
}

func revoked(c *x509.Certificate, at time.Time) *revocation.Entry {
	return &revocation.Entry{Serial: c.SerialNumber, At: at, Reason: revocation.KeyCompromise}
}

func TestListIsSignedOnChangeAndOnScheduleAndNotOtherwise(t *testing.T) {
	d := newDesk(t)
	leaf := d.pki.Service("billing").Leaf
	d.book.set(leaf.SerialNumber, nil)
	d.refresh()
	first := d.served()
	if len(first.Entries) != 0 || !first.NextUpdate.After(d.now) {
		t.Errorf("the first list is %+v", first)
	}
	d.refresh()
	if again := d.served(); again.Number.Cmp(first.Number) != 0 {
		t.Errorf("a list was signed without need: %s, then %s", first.Number, again.Number)
	}
	d.book.set(leaf.SerialNumber, revoked(leaf, d.now))
	d.refresh() // within the same second
	second := d.served()
	if second.Number.Cmp(first.Number) <= 0 || len(second.Entries) != 1 || second.Entries[0].Serial.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("after a revocation: %+v", second)
	}
	d.now = d.now.Add(13 * time.Hour) // beyond half of a day
	d.refresh()
	if third := d.served(); third.Number.Cmp(second.Number) <= 0 || !third.NextUpdate.After(second.NextUpdate) {
		t.Errorf("on schedule: %+v", third)
	}
}

func TestNumbersGrowThroughRestartsAndLosses(t *testing.T) {
	d := newDesk(t)
	d.refresh()
	last := d.served().Number
	for name, step := range map[string]func(){
		"restart": d.open,
		"list lost": func() {
			os.Remove(filepath.Join(d.dir, status.KeyID(d.pki.Operational.Certificate())+".crl"))
			d.open()
		},
		"list damaged": func() {
			os.WriteFile(filepath.Join(d.dir, status.KeyID(d.pki.Operational.Certificate())+".crl"), []byte("x"), 0o600)
			d.open()
		},
	} {
		d.now = d.now.Add(time.Minute)
		leaf := d.pki.Service("s").Leaf
		d.book.set(leaf.SerialNumber, revoked(leaf, d.now))
		step()
		d.refresh()
		next := d.served().Number
		if next.Cmp(last) <= 0 {
			t.Errorf("%s: number %s follows %s", name, next, last)
		}
		last = next
	}
	d.now = d.now.Add(-30 * time.Minute) // the clock was wrong
	leaf := d.pki.Service("s").Leaf
	d.book.set(leaf.SerialNumber, revoked(leaf, d.now))
	d.refresh()
	if next := d.served().Number; next.Cmp(last) <= 0 {
		t.Errorf("after the clock went back number %s follows %s", next, last)
	}
}

func TestListOutOfDateIsNotServed(t *testing.T) {
	d := newDesk(t)
	d.refresh()
	d.keyAway = true
	d.now = d.now.Add(13 * time.Hour)
	if err := d.Refresh(t.Context()); err == nil {
		t.Error("a list that couldn't be signed is no error")
	}
	d.served() // the old one is still good
	d.now = d.now.Add(12 * time.Hour)
	if response := d.do(http.MethodGet, d.listPath(), nil); response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a list out of date is answered with %s", response.Status)
	}
	d.keyAway = false
	d.refresh()
	d.served()
}

func TestHubThatNeverHadTheKeyPublishesNothing(t *testing.T) {
	d := newDesk(t)
	d.keyAway = true
	d.refresh()
	if response := d.do(http.MethodGet, d.listPath(), nil); response.StatusCode == http.StatusOK {
		t.Error("a list that nobody signed is served")
	}
}

func TestOCSPAnswersByGetAndPost(t *testing.T) {
	d := newDesk(t)
	d.refresh()
	good, bad, strange := d.pki.Service("good").Leaf, d.pki.Service("bad").Leaf, d.pki.Service("strange").Leaf
	d.book.set(good.SerialNumber, nil)
	d.book.set(bad.SerialNumber, revoked(bad, d.now))
	issuer := d.pki.Operational.Certificate()
	for _, c := range []struct {
		leaf *x509.Certificate
		want int
	}{{good, ocsp.Good}, {bad, ocsp.Revoked}, {strange, ocsp.Unknown}} {
		request := d.ask(c.leaf, issuer)
		text := base64.StdEncoding.EncodeToString(request)
		for name, response := range map[string]*http.Response{
			"POST":                d.do(http.MethodPost, "/ocsp", request),
			"GET":                 d.do(http.MethodGet, "/ocsp/"+url.PathEscape(text), nil),
			"GET, slashes as are": d.do(http.MethodGet, "/ocsp/"+text, nil),
		} {
			der, _ := io.ReadAll(response.Body)
			got, err := ocsp.ParseResponseForCert(der, c.leaf, issuer)
			if err != nil || response.Header.Get("Content-Type") != "application/ocsp-response" {
				t.Fatalf("%s: %v, %s", name, err, response.Header.Get("Content-Type"))
			}
			if got.Status != c.want {
				t.Errorf("%s: status %d, want %d", name, got.Status, c.want)
			}
			if cache := response.Header.Get("Cache-Control"); (name == "POST") != (cache == "no-store") {
				t.Errorf("%s: Cache-Control %q", name, cache)
			}
		}
	}
}

func TestOCSPNeverGuesses(t *testing.T) {
	d := newDesk(t)
	d.refresh()
	leaf := d.pki.Service("good").Leaf
	d.book.set(leaf.SerialNumber, nil)
	fails := func(name string, request []byte, want ocsp.ResponseStatus) {
		t.Helper()
		der, _ := io.ReadAll(d.do(http.MethodPost, "/ocsp", request).Body)
		_, err := ocsp.ParseResponse(der, nil)
		if e, ok := errors.AsType[ocsp.ResponseError](err); !ok || e.Status != want {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	fails("a factory's certificate", d.ask(d.pki.Device("pi-1").Leaf, d.pki.Factory.Certificate()), ocsp.Unauthorized)
	fails("another fleet's", d.ask(leaf, d.pki.Foreign().Operational.Certificate()), ocsp.Unauthorized)
	fails("nonsense", []byte("?"), ocsp.Malformed)
	d.book.broken = errors.New("the disk is gone")
	fails("a registry that can't be read", d.ask(leaf, d.pki.Operational.Certificate()), ocsp.InternalError)
	d.book.broken = nil
	d.now = d.now.AddDate(0, 2, 0)
	fails("a signer past its end", d.ask(leaf, d.pki.Operational.Certificate()), ocsp.TryLater)
	d.refresh()
	der, _ := io.ReadAll(d.do(http.MethodPost, "/ocsp", d.ask(leaf, d.pki.Operational.Certificate())).Body)
	if _, err := ocsp.ParseResponse(der, d.pki.Operational.Certificate()); err != nil {
		t.Errorf("after the signer was replaced: %v", err)
	}
}

func TestOtherPathsAndMethodsAreRefused(t *testing.T) {
	d := newDesk(t)
	d.refresh()
	for path, want := range map[string]int{
		"/crl/../status/known.json": http.StatusNotFound, "/crl/": http.StatusNotFound, "/crl/00.crl": http.StatusNotFound, "/other": http.StatusNotFound, "/ocsp": http.StatusMethodNotAllowed,
	} {
		if response := d.do(http.MethodGet, path, nil); response.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, response.Status, want)
		}
	}
	if response := d.do(http.MethodDelete, d.listPath(), nil); response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %s", response.Status)
	}
	if response := d.do(http.MethodPost, "/ocsp", make([]byte, revocation.MaxRequestSize+1)); response.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a request too large: %s", response.Status)
	}
}

func TestRunPublishesWhatHasChanged(t *testing.T) {
	d := newDesk(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { d.Run(ctx) })
	defer running.Wait()
	defer stop()
	entries := func() int {
		for _, l := range d.Lists() {
			if l.Number != nil {
				return l.Entries
			}
		}
		return -1
	}
	wait := func(n int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); entries() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the list has %d entries, want %d", entries(), n)
			}
		}
	}
	wait(0)
	leaf := d.pki.Service("bad").Leaf
	d.book.set(leaf.SerialNumber, revoked(leaf, d.now))
	d.Changed()
	wait(1)
}

// OCSP is to answer 5,000 questions a second.
func BenchmarkOCSP(b *testing.B) {
	d := newDesk(b)
	d.refresh()
	leaf := d.pki.Service("good").Leaf
	d.book.set(leaf.SerialNumber, nil)
	request := d.ask(leaf, d.pki.Operational.Certificate())
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if response := d.do(http.MethodPost, "/ocsp", request); response.StatusCode != http.StatusOK || response.ContentLength == 5 {
				b.Error(response.Status)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
}
