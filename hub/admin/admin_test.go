package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is the API of a real fleet over a real store, on loopback with mutual TLS.
type hub struct {
	t      *testing.T
	pki    *certtest.Fleet
	fleet  *fleet.Fleet
	url    string
	server *http.Server
	config Config
	closed atomic.Int32 // sessions that were disconnected
}

// DisconnectMany is fleet.Sessions: device "online" has one connection.
func (h *hub) DisconnectMany(_ context.Context, ids []string, _ string) (closed []fleet.Closed) {
	for _, id := range ids {
		if id == "online" {
			h.closed.Add(1)
			closed = append(closed, fleet.Closed{ID: id, Sessions: 1, At: time.Now()})
		}
	}
	return closed
}

// policy is how the TLS configuration in front of the handler treats peers.
type policy int

const (
	operatorsOnly policy = iota
	anyCertificate
	noCertificateNeeded
	certificateOptional
)

func newHub(t *testing.T, p policy, change func(*Config)) *hub {
	t.Helper()
	return newHubOver(t, p, change, nil)
}

// newHubOver is newHub with a change of what the fleet is told, too.
func newHubOver(t *testing.T, p policy, change func(*Config), tell func(*fleet.Config)) *hub {
	t.Helper()
	h := &hub{t: t, pki: certtest.New(t)}
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "hub.db"))
	h.must(err)
	told := fleet.Config{
		Store: store, Sessions: h, TrustDomain: certtest.TrustDomain,
		Roots:   func() []*x509.Certificate { return h.pki.Trust().Roots },
		Issuers: func() []*x509.Certificate { return h.pki.Trust().Issuers },
	}
	if tell != nil {
		tell(&told)
	}
	h.fleet, err = fleet.Open(told)
	h.must(err)
	verifier, err := mtls.NewVerifier(h.pki.Trust(), nil)
	h.must(err)
	server := h.pki.Server()
	options := mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify: func(cs tls.ConnectionState) error {
			if p != operatorsOnly {
				return nil
			}
			_, err := verifier.Verify(cs, identity.RoleOperator)
			return err
		},
	}
	config := mtls.ServerConfig(options)
	if p == certificateOptional {
		config.ClientAuth = tls.RequestClientCert
	}
	if p == noCertificateNeeded {
		config.ClientAuth = tls.NoClientCert
	}
	h.config = Config{Fleet: h.fleet, Verifier: verifier, Live: func(id string) (Session, bool) {
		return Session{ClientID: id, Address: "192.0.2.1:5"}, id == "online"
	}}
	if change != nil {
		change(&h.config)
	}
	h.server = NewServer(h.config, config)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	h.url = "https://" + listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- h.server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		h.server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		h.must(errors.Join(h.fleet.Close(), store.Close()))
	})
	return h
}

func (h *hub) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) client(c certtest.Credential) *Client {
	h.t.Helper()
	client, err := NewClient(h.url, c.Credentials)
	h.must(err)
	h.t.Cleanup(client.Close)
	return client
}

func (h *hub) manifest(ids ...string) []byte {
	h.t.Helper()
	m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 1, CreatedAt: time.Now()}
	for _, id := range ids {
		m.Devices = append(m.Devices, manifest.Entry{Certificate: h.pki.Device(id).Leaf.Raw, Model: "pi4"})
	}
	data, err := manifest.Sign(m, []*x509.Certificate{h.pki.Factory.Certificate()}, h.pki.FactoryKey)
	h.must(err)
	return data
}

func (h *hub) state(id string) registry.State {
	status, _ := h.fleet.Status(id)
	return status.State
}

func TestOperatorWorksTheFleet(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ctx := t.Context()

	report, err := c.Import(ctx, h.manifest("online", "pi-1", "pi-2"))
	if err != nil || report.Registered != 3 || report.Station != "bench-1" {
		t.Fatalf("import = %+v, %v", report, err)
	}
	var ids []string
	for after := ""; ; {
		page, err := c.Devices(ctx, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Devices {
			ids = append(ids, d.ID)
			if (d.Session != nil) != (d.ID == "online") || d.Certificates[0].DER != nil || d.Certificates[0].Serial == "" {
				t.Fatalf("listed device = %+v", d)
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if !slices.Equal(ids, []string{"online", "pi-1", "pi-2"}) {
		t.Fatalf("pages list %v", ids)
	}
	d, err := c.Device(ctx, "online")
	if err != nil || d.State != registry.StateRegistered || d.Model != "pi4" || d.Session == nil || d.Session.Address != "192.0.2.1:5" || len(d.Certificates[0].DER) == 0 {
		t.Fatalf("device = %+v, %v", d, err)
	}

	if receipt, err := c.Suspend(ctx, "pi-1", "lost"); err != nil || receipt.State != registry.StateSuspended {
		t.Fatalf("suspend = %+v, %v", receipt, err)
	}
	if d, err := c.Resume(ctx, "pi-1", ""); err != nil || d.State != registry.StateRegistered {
		t.Fatalf("resume = %+v, %v", d, err)
	}

	plan, err := c.PlanRevoke(ctx, "online", revocation.KeyCompromise)
	if err != nil || plan.ID != "online" || plan.Session == nil || len(plan.Serials) != 1 || h.state("online") != registry.StateRegistered {
		t.Fatalf("plan = %+v, %v", plan, err)
	}
	receipt, err := c.Revoke(ctx, "online", revocation.KeyCompromise)
	if err != nil || receipt.SessionsClosed != 1 || receipt.Reason != "keyCompromise" || receipt.DurableAt.IsZero() || h.state("online") != registry.StateRevoked || h.closed.Load() != 1 {
		t.Fatalf("receipt = %+v, %v", receipt, err)
	}
	if again, err := c.Revoke(ctx, "online", revocation.Superseded); err != nil || !again.Already || again.Reason != "keyCompromise" {
		t.Fatalf("receipt = %+v, %v", again, err)
	}

	var actions []string
	for after := uint64(0); ; {
		page, err := c.Audit(ctx, after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			actions = append(actions, r.Action)
			if r.Actor != "spiffe://fleet.example/operator/ann" || !strings.HasPrefix(r.Address, "127.0.0.1:") {
				t.Fatalf("audit record = %+v", r)
			}
		}
		if after = page.Next; after == 0 {
			break
		}
	}
	if want := []string{"manifest.import", "manifest.import", "manifest.import", "device.suspend", "device.resume", "device.revoke"}; !slices.Equal(actions, want) {
		t.Fatalf("audit log = %v, want %v", actions, want)
	}
}

func TestRefusalsReachTheClientAsTheirKind(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ctx := t.Context()
	data := h.manifest("pi-1")
	if _, err := c.Import(ctx, data); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Revoke(ctx, "pi-1", revocation.Unspecified); err != nil {
		t.Fatal(err)
	}
	other := newHub(t, operatorsOnly, nil) // another fleet's manifest
	for _, tt := range []struct {
		name   string
		do     func() error
		status int
		kind   error
		say    string
	}{
		{"show unknown", func() error { _, err := c.Device(ctx, "nobody"); return err }, 404, ErrNotFound, "nobody"},
		{"show impossible", func() error { _, err := c.Device(ctx, "../x"); return err }, 404, ErrNotFound, "../x"},
		{"revoke unknown", func() error { _, err := c.Revoke(ctx, "nobody", 0); return err }, 404, ErrNotFound, "nobody"},
		{"plan for unknown", func() error { _, err := c.PlanRevoke(ctx, "nobody", 0); return err }, 404, ErrNotFound, "nobody"},
		{"resume revoked", func() error { _, err := c.Resume(ctx, "pi-1", ""); return err }, 409, nil, "final"},
		{"suspend revoked", func() error { _, err := c.Suspend(ctx, "pi-1", ""); return err }, 409, nil, "final"},
		{"odd reason", func() error { _, err := c.Suspend(ctx, "pi-1", "a\nb"); return err }, 400, nil, "note"},
		{"no reason", func() error { _, err := c.PlanRevoke(ctx, "pi-1", revocation.Reason(99)); return err }, 400, nil, "keyCompromise"},
		{"page after no ID", func() error { _, err := c.Devices(ctx, "a/b", 0); return err }, 400, nil, "after"},
		{"truncated manifest", func() error { _, err := c.Import(ctx, data[:100]); return err }, 422, nil, "manifest"},
		{"foreign manifest", func() error { _, err := c.Import(ctx, other.manifest("pi-9")); return err }, 422, nil, "root"},
	} {
		err := tt.do()
		var p *Problem
		if !errors.As(err, &p) || p.Status != tt.status || !strings.Contains(err.Error(), tt.say) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error = %v (%+v), want status %d", tt.name, err, p, tt.status)
		}
		for _, kind := range []error{ErrNotFound, ErrDenied, ErrUnreachable} {
			if errors.Is(err, kind) != (kind == tt.kind) {
				t.Errorf("%s: errors.Is(%v, %v) = %v", tt.name, err, kind, kind != tt.kind)
			}
		}
	}
}

// everyEndpoint is one request of each kind.
var everyEndpoint = []struct{ method, path, body string }{
	{"GET", "/v1/devices", ""},
	{"GET", "/v1/devices/pi-1", ""},
	{"POST", "/v1/devices/pi-1/suspend", "{}"},
	{"POST", "/v1/devices/pi-1/resume", "{}"},
	{"POST", "/v1/devices/pi-1/revoke", `{"reason":"keyCompromise","confirm":true}`},
	{"POST", "/v1/manifests", "x"},
	{"GET", "/v1/watch", ""},
	{"GET", "/v1/audit", ""},
	{"GET", "/v1/nonsense", ""},
}

func TestOnlyOperatorsAreServedEvenBehindAWrongTLSConfig(t *testing.T) {
	for _, p := range []policy{anyCertificate, noCertificateNeeded} {
		h := newHub(t, p, nil)
		operator := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
		if p == anyCertificate {
			if _, err := operator.Import(t.Context(), h.manifest("pi-1")); err != nil {
				t.Fatal(err)
			}
		}
		expired := certtest.WithValidity(time.Now().Add(-48*time.Hour), time.Hour)
		for name, credential := range map[string]certtest.Credential{
			"device": h.pki.Device("pi-1"), "service": h.pki.Service("svc"), "hub": h.pki.Server(),
			"foreign operator": h.pki.Foreign().Operator("ann"), "expired operator": h.pki.Operator("old", expired),
		} {
			transport := &http.Transport{TLSClientConfig: credential.ClientConfig()}
			transport.TLSClientConfig.RootCAs = x509.NewCertPool()
			transport.TLSClientConfig.RootCAs.AddCert(h.pki.Root.Certificate())
			for _, e := range everyEndpoint {
				request, err := http.NewRequestWithContext(t.Context(), e.method, h.url+e.path, strings.NewReader(e.body))
				h.must(err)
				request.Header.Set("Content-Type", "application/json")
				response, err := transport.RoundTrip(request)
				h.must(err)
				problem := decodeProblem(t, response)
				if response.StatusCode != http.StatusForbidden || problem.Type != problemType+codeDenied {
					t.Errorf("policy %d: %s: %s %s: %d %+v", p, name, e.method, e.path, response.StatusCode, problem)
				}
			}
			transport.CloseIdleConnections()
		}
		if p == anyCertificate && h.state("pi-1") != registry.StateRegistered {
			t.Fatal("a stranger revoked a device")
		}
	}
}

func decodeProblem(t *testing.T, response *http.Response) Problem {
	t.Helper()
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p Problem
	if got := response.Header.Get("Content-Type"); got != problemMediaType || json.Unmarshal(data, &p) != nil || p.Status != response.StatusCode || p.Title == "" || p.Detail == "" {
		t.Fatalf("%d %s %q is no problem document", response.StatusCode, got, data)
	}
	return p
}

func TestHandlerWithoutTLSOrVerifierRefusesEverybody(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	operator := h.pki.Operator("ann", certtest.WithOU("admin"))
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{operator.Leaf}}
	for name, tt := range map[string]struct {
		config Config
		tls    *tls.ConnectionState
	}{
		"no TLS":      {h.config, nil},
		"no peer":     {h.config, &tls.ConnectionState{}},
		"no verifier": {Config{Fleet: h.fleet}, state},
		"no fleet":    {Config{Verifier: h.config.Verifier}, state},
	} {
		for _, e := range everyEndpoint {
			request := httptest.NewRequestWithContext(t.Context(), e.method, e.path, strings.NewReader(e.body))
			request.TLS = tt.tls
			answer := httptest.NewRecorder()
			New(tt.config).ServeHTTP(answer, request)
			if answer.Code != http.StatusForbidden {
				t.Errorf("%s: %s %s: %d", name, e.method, e.path, answer.Code)
			}
		}
	}
}

func TestMalformedRequestsAreProblems(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	if _, err := c.Import(t.Context(), h.manifest("pi-1")); err != nil {
		t.Fatal(err)
	}
	const revoke = "/v1/devices/pi-1/revoke"
	for _, tt := range []struct {
		method, path, contentType, body string
		header                          [2]string
		status                          int
	}{
		{"POST", revoke, "application/json", `{"reason":"keyCompromise","confirm":true,"force":1}`, [2]string{}, 400},
		{"POST", revoke, "application/json", `{"reason":"keyCompromise","confirm":"yes"}`, [2]string{}, 400},
		{"POST", revoke, "application/json", `{"reason":"keyCompromise","confirm":true}{}`, [2]string{}, 400},
		{"POST", revoke, "application/json", `{"reason":"keyCompr`, [2]string{}, 400},
		{"POST", revoke, "application/json", `{"confirm":true}`, [2]string{}, 400},
		{"POST", revoke, "application/json", "", [2]string{}, 400},
		{"POST", revoke, "text/plain", `{"reason":"keyCompromise","confirm":true}`, [2]string{}, 415},
		{"POST", revoke, "", `{"reason":"keyCompromise","confirm":true}`, [2]string{}, 415},
		{"POST", revoke, "application/json", `{"reason":"keyCompromise","confirm":true}`, [2]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"POST", revoke, "application/json", `{"reason":"keyCompromise","confirm":true}`, [2]string{"Origin", "https://evil.example"}, 403},
		{"POST", revoke, "application/json", `{"reason":"` + strings.Repeat("x", maxBody) + `"}`, [2]string{}, 413},
		{"POST", "/v1/manifests", "application/json", "x", [2]string{}, 415},
		{"POST", "/v1/manifests", ManifestMediaType, "x", [2]string{}, 422},
		{"GET", revoke, "", "", [2]string{}, 405},
		{"DELETE", "/v1/devices/pi-1", "", "", [2]string{}, 405},
		{"GET", "/v2/devices", "", "", [2]string{}, 404},
		{"GET", "/", "", "", [2]string{}, 404},
		{"GET", "/v1/devices?limit=-1", "", "", [2]string{}, 400},
		{"GET", "/v1/devices?limit=many", "", "", [2]string{}, 400},
		{"GET", "/v1/audit?after=x", "", "", [2]string{}, 400},
		{"GET", "/v1/devices/..%2Fpi-1", "", "", [2]string{}, 404},
		{"GET", "/v1/devices/pi%00", "", "", [2]string{}, 404},
	} {
		request, err := http.NewRequestWithContext(t.Context(), tt.method, h.url+tt.path, strings.NewReader(tt.body))
		h.must(err)
		if tt.contentType != "" {
			request.Header.Set("Content-Type", tt.contentType)
		}
		if tt.header[0] != "" {
			request.Header.Set(tt.header[0], tt.header[1])
		}
		response, err := c.http.Do(request)
		h.must(err)
		if p := decodeProblem(t, response); p.Status != tt.status {
			t.Errorf("%s %s %.60q: %+v, want %d", tt.method, tt.path, tt.body, p, tt.status)
		}
		if tt.status == 405 && response.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow header", tt.method, tt.path)
		}
	}
	if h.state("pi-1") != registry.StateRegistered {
		t.Fatal("a malformed request revoked the device")
	}
}

func TestManifestAtTheLimitIsRefusedBySize(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	_, err := c.Import(t.Context(), bytes.Repeat([]byte{'a'}, maxManifest+1))
	var p *Problem
	if !errors.As(err, &p) || p.Status != http.StatusRequestEntityTooLarge {
		t.Fatalf("error = %v", err)
	}
}

func TestServerHasEveryTimeout(t *testing.T) {
	s := NewServer(Config{}, nil)
	for name, d := range map[string]time.Duration{"ReadHeader": s.ReadHeaderTimeout, "Read": s.ReadTimeout, "Write": s.WriteTimeout, "Idle": s.IdleTimeout} {
		if d <= 0 {
			t.Errorf("%sTimeout = %v", name, d)
		}
	}
	if s.MaxHeaderBytes <= 0 || fmt.Sprint(s.Protocols) != "{HTTP1}" {
		t.Errorf("MaxHeaderBytes = %d, protocols %v", s.MaxHeaderBytes, s.Protocols)
	}
}

// TestOtherSitesReadNothing: a browser sends an operator's certificate whoever asks for it.
func TestOtherSitesReadNothing(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	client := h.operatorClient("ann")
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200} {
		for _, path := range []string{"/v1/devices", "/openapi.json"} {
			got := h.see(client, path, "Sec-Fetch-Site", site, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document")
			if got.status != want || got.header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
				t.Errorf("%s from %s: %d %v", path, site, got.status, got.header)
			}
		}
	}
}
