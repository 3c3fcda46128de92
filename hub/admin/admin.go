// Package admin is the operator's HTTPS API and its client.
//
//	GET  /v1/devices?after=&limit=        a page of records with live sessions
//	GET  /v1/devices/{id}
//	POST /v1/devices/{id}/suspend         {"reason": "…"} → receipt
//	POST /v1/devices/{id}/resume          {"reason": "…"} → record
//	POST /v1/devices/{id}/revoke          {"reason": "keyCompromise", "confirm": true} → plan, or receipt if confirmed
//	POST /v1/manifests                    a signed manifest → import report
//	GET  /v1/watch?filter=                messages as they arrive, one JSON object a line
//	GET  /v1/audit?after=&limit=
//	GET  /v1/backup                       a tar file of everything but keys
//	GET  /v1/issuers                      issuing CAs trusted now
//	GET  /v1/issuers/{name}/removal       who would break without it
//	POST /v1/issuers/{name}/remove        {"reason": "…", "confirm": true} → plan, or receipt if confirmed
//	GET  /v1/tickets                      TLS ticket keys and what became of tickets
//	POST /v1/tickets/rotate               {"drop": true} → the same, after
//
// Every request is made by an operator's certificate: the handler verifies the peer of
// each request itself, whatever the TLS configuration in front of it admits. Errors are
// problem details (RFC 9457).
package admin

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// Limits of one request and of the server.
const (
	maxBody     = 64 << 10         // of a JSON body, in bytes
	maxManifest = manifest.MaxSize // of a manifest, in bytes
	maxWatches  = 64               // streams at a time

	readHeaderTimeout = 10 * time.Second
	readTimeout       = 2 * time.Minute // a large manifest over a slow line
	writeTimeout      = 4 * time.Minute // its import included
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
)

// ManifestMediaType is the content type of a manifest in a request.
const ManifestMediaType = "application/jose"

// Config is what the API serves. Fleet and Verifier are required: without them every
// request is refused.
type Config struct {
	Fleet    *fleet.Fleet
	Verifier *mtls.Verifier // decides whose certificate is an operator's

	// Watch calls deliver for each message that matches an MQTT topic filter, from
	// any goroutine, until ctx ends; then it returns. Deliver doesn't block; the
	// payload must not change after it was delivered. Nil: there is nothing to watch.
	Watch func(ctx context.Context, filter string, deliver func(Message)) error

	// Live returns the session of a device that is connected now. Nil: none is.
	Live func(id string) (Session, bool)

	// Handshakes returns the account of a device's handshakes, false if it has made
	// none. Nil: none is kept.
	Handshakes func(id string) (Handshakes, bool)

	// Backup writes a backup of the hub. Nil: there is nothing under /v1/backup.
	Backup func(ctx context.Context, w io.Writer) error

	Issuers Issuers // nil: there is nothing under /v1/issuers

	Tickets     *ticket.Ring  // nil: there is nothing under /v1/tickets
	TicketStats *ticket.Stats // required with Tickets
	Started     time.Time     // when TicketStats began to count

	Log       *slog.Logger  // nil: nothing is logged
	Heartbeat time.Duration // of a watch without messages; 0: 15 seconds
}

// api is the handler. Its fields are set once.
type api struct {
	config  Config
	mux     *http.ServeMux
	handler http.Handler // mux behind what every request passes
	watches chan struct{}
	drain   context.Context // ends when the server shuts down
}

// New returns the API as a handler. Streams end with their requests; use NewServer to
// have them end when the server shuts down, too.
func New(config Config) http.Handler { return newAPI(config, context.Background()) }

// NewServer returns an HTTP/1.1 server of the API with every timeout set, ready for
// ServeTLS(listener, "", ""). Shutdown ends the streams and waits for other requests.
// TLS should demand a certificate of this fleet, as mtls.ServerConfig does; if it lets
// every role of the fleet in, those who aren't operators get a problem that says so
// instead of a bare alert.
func NewServer(config Config, tlsConfig *tls.Config) *http.Server {
	drain, stop := context.WithCancel(context.Background())
	a := newAPI(config, drain)
	var protocols http.Protocols
	protocols.SetHTTP1(true) // one request a connection at a time, so its deadlines are its own
	s := &http.Server{
		Handler:           a,
		TLSConfig:         tlsConfig,
		Protocols:         &protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(a.config.Log.Handler(), slog.LevelDebug),
	}
	s.RegisterOnShutdown(stop)
	return s
}

func newAPI(config Config, drain context.Context) *api {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Heartbeat <= 0 {
		config.Heartbeat = 15 * time.Second
	}
	if config.Live == nil {
		config.Live = func(string) (Session, bool) { return Session{}, false }
	}
	if config.Handshakes == nil {
		config.Handshakes = func(string) (Handshakes, bool) { return Handshakes{}, false }
	}
	a := &api{config: config, mux: http.NewServeMux(), watches: make(chan struct{}, maxWatches), drain: drain}
	a.mux.HandleFunc("GET /v1/devices", a.listDevices)
	a.mux.HandleFunc("GET /v1/devices/{id}", a.showDevice)
	a.mux.HandleFunc("POST /v1/devices/{id}/suspend", a.suspendDevice)
	a.mux.HandleFunc("POST /v1/devices/{id}/resume", a.resumeDevice)
	a.mux.HandleFunc("POST /v1/devices/{id}/revoke", a.revokeDevice)
	a.mux.HandleFunc("POST /v1/manifests", a.importManifest)
	a.mux.HandleFunc("GET /v1/watch", a.watch)
	a.mux.HandleFunc("GET /v1/audit", a.listAudit)
	if config.Backup != nil {
		a.mux.HandleFunc("GET /v1/backup", a.backup)
	}
	if config.Issuers != nil {
		a.mux.HandleFunc("GET /v1/issuers", a.listIssuers)
		a.mux.HandleFunc("GET /v1/issuers/{name}/removal", a.planIssuerRemoval)
		a.mux.HandleFunc("POST /v1/issuers/{name}/remove", a.removeIssuer)
	}
	if config.Tickets != nil {
		a.mux.HandleFunc("GET /v1/tickets", a.showTickets)
		a.mux.HandleFunc("POST /v1/tickets/rotate", a.rotateTickets)
	}

	// A browser that holds an operator's certificate must not lend it to other sites.
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problem(http.StatusForbidden, "cross-origin", "the request comes from another web site"))
	}))
	a.handler = crossOrigin.Handler(http.HandlerFunc(a.route))
	return a
}

// peerKey is the context key of the verified operator.
type peerKey struct{}

// ServeHTTP admits operators and nobody else.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if a.config.Fleet == nil || a.config.Verifier == nil || r.TLS == nil {
		a.deny(w, r, "the API is not set up to recognize operators")
		return
	}
	peer, err := a.config.Verifier.Verify(*r.TLS, identity.RoleOperator)
	if err != nil {
		a.deny(w, r, err.Error())
		return
	}
	a.handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
}

func (a *api) deny(w http.ResponseWriter, r *http.Request, why string) {
	a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "reason", why)
	writeProblem(w, problem(http.StatusForbidden, codeDenied, "an operator's certificate is required: "+why))
}

// route serves the request, with the mux's own refusals as problems, too.
func (a *api) route(w http.ResponseWriter, r *http.Request) {
	handler, pattern := a.mux.Handler(r)
	if pattern != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	said := &statusRecorder{header: make(http.Header)}
	handler.ServeHTTP(said, r)
	p := problem(http.StatusNotFound, "no-such-path", "the API has no "+r.URL.Path)
	if said.status == http.StatusMethodNotAllowed {
		allowed := said.header.Get("Allow")
		w.Header().Set("Allow", allowed)
		p = problem(http.StatusMethodNotAllowed, "method", "use "+allowed+" here, not "+r.Method)
	}
	writeProblem(w, p)
}

// statusRecorder takes what the mux says about a request it doesn't route.
type statusRecorder struct {
	header http.Header
	status int
}

func (s *statusRecorder) Header() http.Header         { return s.header }
func (s *statusRecorder) WriteHeader(status int)      { s.status = status }
func (s *statusRecorder) Write(p []byte) (int, error) { return len(p), nil }

// actor is who the audit log names for the request.
func actor(r *http.Request) fleet.Actor {
	peer := r.Context().Value(peerKey{}).(mtls.Peer) // set by ServeHTTP, or we aren't here
	return fleet.Actor{Name: peer.Identity.String(), Address: r.RemoteAddr}
}

// Session is a device's live connection.
type Session struct {
	ClientID    string    `json:"client_id"`
	Address     string    `json:"address"`
	ConnectedAt time.Time `json:"connected_at"`
	TLS         string    `json:"tls,omitempty"`   // such as "TLS 1.3"
	Suite       string    `json:"suite,omitempty"` // such as TLS_AES_128_GCM_SHA256
	Curve       string    `json:"curve,omitempty"` // of the key agreement, such as CurveP256
	Resumed     bool      `json:"resumed,omitempty"`
}

// Device is a device's record and, if it is connected, its session. Handshakes is in
// the answer for one device only.
type Device struct {
	registry.Device
	Session    *Session    `json:"session,omitempty"`
	Handshakes *Handshakes `json:"handshakes,omitempty"`
}

// DevicePage is one page of devices in order of ID, without their certificates' DER.
// Next is the after of the following page, empty on the last.
type DevicePage struct {
	Devices []Device `json:"devices"`
	Next    string   `json:"next,omitempty"`
}

// RevokePlan is what a revocation would do, the session it would close included.
type RevokePlan struct {
	fleet.Plan
	Session *Session `json:"session,omitempty"`
}

// Revocation is the answer to a revoke request: a plan without confirmation, a
// receipt with it.
type Revocation struct {
	Plan    *RevokePlan    `json:"plan,omitempty"`
	Receipt *fleet.Receipt `json:"receipt,omitempty"`
}

// AuditPage is one page of the audit log, oldest first. Next is the after of the
// following page, which is empty at the log's end; 0 if this one is.
type AuditPage struct {
	Records []registry.AuditRecord `json:"records"`
	Next    uint64                 `json:"next,omitempty"`
}

// change is the body of suspend, resume, revoke and remove.
type change struct {
	Reason  string `json:"reason,omitempty"`
	Confirm bool   `json:"confirm,omitempty"`
}
