// Package admin is the operator's HTTPS API and its client.
//
// Every endpoint is a row of the table in table.go: method and path, the role that it takes,
// its parameters, the Go types of what it takes and gives, and the function that does the
// work. The mux, the check of the role, the strictness about parameters and the OpenAPI 3.1
// document (GET /openapi.json, which is where to read what there is) are all made from that
// row. What holds for every endpoint:
//
//   - A request is made by an operator's certificate, or by a token of the OpenID provider that
//     the hub is told of (POST /v1/manifests also by the certificate of the station that made
//     the manifest, GET /v1/why by a device's). The handler verifies that for each request
//     itself, whatever the TLS configuration in front of it admits, and each endpoint demands
//     a role (Role).
//   - Errors are problem details (RFC 9457).
//   - What changes something for good is rehearsed without "confirm": true.
//   - Lists come in pages: after, limit, and next in the body and in the Link header (RFC 8288).
//   - The answer to a GET has a strong entity tag. An order for one device may say by If-Match
//     which record it is about: of two operators who have seen the same, one is first, and the
//     other is told so (412).
//   - A POST may have an Idempotency-Key, under which it is carried out once (see api.once).
package admin

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/ticket"
)

// Limits of one request and of the server.
const (
	maxBody     = 64 << 10                       // of a JSON body, in bytes
	maxManifest = manifest.MaxSize               // of a manifest, in bytes
	maxList     = revocation.MaxListSize * 3 / 2 // of a revocation list, of which PEM is a third longer
	maxWatches  = 64                             // streams at a time
	eachWatches = 8                              // of them, of one caller

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

	// Tokens judges bearer tokens instead of certificates. Nil: none are taken.
	Tokens *Tokens

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

	Consumers *consumer.Consumers // nil: there is nothing under /v1/messages and /v1/consumers
	Sinks     *consumer.Sinks     // nil: there are none

	// Why says why a device's connections failed. Nil: there is nothing under
	// /v1/devices/{id}/why.
	Why func(ctx context.Context, id string) (Why, error)

	// Anomalies returns the latest anomalies of a device, or of all if id is empty, and
	// that device's scores. Nil: there is nothing under /v1/anomalies.
	Anomalies func(id string) Anomalies

	Lists Lists // nil: there is nothing under /v1/crls

	Issuers Issuers // nil: there is nothing under /v1/issuers

	Policies Policies // nil: there is nothing under /v1/policy

	Tickets     *ticket.Ring  // nil: there is nothing under /v1/tickets
	TicketStats *ticket.Stats // required with Tickets
	Started     time.Time     // when TicketStats began to count

	// Answers keeps what was answered under idempotency keys. Nil: it is kept in memory,
	// and a restart of the hub forgets it.
	Answers Answers

	Now       func() time.Time // nil: time.Now
	Log       *slog.Logger     // nil: nothing is logged
	Heartbeat time.Duration    // of a watch without messages; 0: 15 seconds
}

// api is the handler. Its fields are set once.
type api struct {
	config  Config
	mux     *http.ServeMux
	routes  []route      // of the mux, for those who must know them all
	handler http.Handler // mux behind what every request passes

	description func() ([]byte, error) // the OpenAPI document of routes, made when it is asked for first

	keys    *keyring
	watches *shares
	reads   chan struct{}   // one for each request for messages
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
	if config.Now == nil {
		config.Now = time.Now
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
	a := &api{config: config, mux: http.NewServeMux(), watches: newShares(maxWatches, eachWatches), reads: make(chan struct{}, maxReads), drain: drain}
	a.keys = newKeyring(config)
	a.add(a.table())
	a.description = sync.OnceValues(a.describeRoutes)

	// A browser that holds an operator's certificate must not lend it to other sites.
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, problem(http.StatusForbidden, "cross-origin", "the request comes from another web site"))
	}))
	a.handler = crossOrigin.Handler(http.HandlerFunc(a.dispatch))
	return a
}

// dispatch serves the request, with the mux's own refusals as problems, too.
func (a *api) dispatch(w http.ResponseWriter, r *http.Request) {
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

// RevokePlan is what a revocation, or another end, would do, the session it would close
// included.
type RevokePlan struct {
	fleet.Plan
	Session *Session `json:"session,omitempty"`
}

// Revocation is the answer to a request that takes a device out for good: a plan without confirmation, a
// receipt with it.
type Revocation struct {
	Plan    *RevokePlan    `json:"plan,omitempty"`
	Receipt *fleet.Receipt `json:"receipt,omitempty"`
}

// Reinstatement is the answer to a request for the leave to come back.
type Reinstatement struct {
	DryRun bool   `json:"dry_run,omitempty"`
	Device Device `json:"device"`
}

// change is the body of what is done to one device, and to an issuer.
type change struct {
	ID      string `json:"id,omitempty"`     // of the receipt
	Reason  string `json:"reason,omitempty"` // of revoke: RFC 5280 §5.3.1; elsewhere a note
	Note    string `json:"note,omitempty"`
	By      string `json:"by,omitempty"` // of replace
	Confirm bool   `json:"confirm,omitempty"`
}

// words is why, where there is no reason to choose.
func (c change) words() string {
	if c.Note != "" {
		return c.Note
	}
	return c.Reason
}
