// Package admin is the operator's HTTPS API and its client.
//
//	GET  /v1/devices?select=&after=&limit=  a page of records with live sessions
//	GET  /v1/devices/{id}
//	GET  /v1/devices/{id}/why              why its connections failed, in words
//	GET  /v1/anomalies?device=             devices that behaved as devices don't, newest first
//	GET  /v1/why                           the same to the device itself (see WhyHandler)
//	POST /v1/devices/{id}/suspend          {"note": "…"} → receipt
//	POST /v1/devices/{id}/resume           {"note": "…"} → record
//	POST /v1/devices/{id}/revoke           {"reason": "keyCompromise", "confirm": true} → plan, or receipt if confirmed
//	POST /v1/devices/{id}/retire           {"confirm": true} → likewise
//	POST /v1/devices/{id}/replace          {"by": "pi-2", "confirm": true} → likewise
//	POST /v1/devices/{id}/reinstate        {"note": "…", "confirm": true} → record with the leave to come back
//	POST /v1/devices/{id}/label            {"labels": {"site": "north"}} → how many were changed
//	POST /v1/selections/{verb}             {"select": "…", "confirm": true, "count": 240} → plan, receipt or proposal;
//	                                       suspend, resume, revoke, retire, label
//	GET  /v1/proposals                     orders that wait for a second operator
//	POST /v1/proposals/{id}/approve        {"count": 240} → receipt
//	POST /v1/proposals/{id}/withdraw       {"note": "…"} → what was withdrawn
//	GET  /v1/receipts?after=&limit=
//	GET  /v1/receipts/{id}
//	GET  /v1/receipts/{id}/signed          the same as a JWS
//	POST /v1/manifests                     a signed manifest → import report
//	GET  /v1/watch?filter=                 messages as they arrive, one JSON object a line
//	GET  /v1/audit?after=&limit=&device=&actor=&action=&subject=&outcome=&receipt=&since=&until=
//	GET  /v1/audit/head                    the log's end, to keep elsewhere
//	GET  /v1/audit/verify                  the whole log, held against its hashes and the receipts
//	GET  /v1/audit/export?after=           the log with its hashes, one JSON object a line
//	GET  /v1/messages?filter=&from=&limit=&wait=  a page of what devices sent; 410 says from where on it is kept
//	GET  /v1/consumers                     the named places in what devices sent
//	GET  /v1/consumers/{name}
//	PUT  /v1/consumers/{name}              {"next": 1234, "filter": "d/#"} or {"from": "-1h"}; If-Match: "NEXT", or
//	                                       If-None-Match: * for a new one
//	DELETE /v1/consumers/{name}            If-Match: "NEXT"
//	GET  /v1/sinks                         webhooks, how far they have come and what keeps them
//	GET  /v1/backup                        a tar file of everything but keys
//	GET  /v1/issuers                       issuing CAs trusted now
//	GET  /v1/issuers/{name}/removal        who would break without it
//	POST /v1/issuers/{name}/remove         {"reason": "…", "confirm": true} → plan, or receipt if confirmed
//	POST /v1/issuers/{name}/revoke         {"reason": "cACompromise", "confirm": true, "count": 240}: its devices, too
//	GET  /v1/policy                        which policy is in force
//	POST /v1/policy/reload                 {"reason": "…"} → which, and the subscriptions that it removed; 422 for a bad file
//	GET  /v1/policy/explain?role=&id=&action=&topic=  a decision, and why it is so
//	GET  /v1/crls                          revocation lists, the hub's own and foreign issuers'
//	GET  /v1/crls/{name}                   one of the hub's own as it is signed
//	POST /v1/crls                          a foreign issuer's list → whom it cut off
//	GET  /v1/tickets                       TLS ticket keys and what became of tickets
//	POST /v1/tickets/rotate                {"drop": true} → the same, after
//
// Every request is made by an operator's certificate (POST /v1/manifests also by that of
// the station that made the manifest): the handler verifies the peer of
// each request itself, whatever the TLS configuration in front of it admits, and each
// endpoint demands a role (Role) of it. Errors are problem details (RFC 9457).
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
	"github.com/fleethub/fleethub/hub/consumer"
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

	Log       *slog.Logger  // nil: nothing is logged
	Heartbeat time.Duration // of a watch without messages; 0: 15 seconds
}

// api is the handler. Its fields are set once.
type api struct {
	config  Config
	mux     *http.ServeMux
	routes  []route      // of the mux, for those who must know them all
	handler http.Handler // mux behind what every request passes
	watches chan struct{}
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
	if config.Heartbeat <= 0 {
		config.Heartbeat = 15 * time.Second
	}
	if config.Live == nil {
		config.Live = func(string) (Session, bool) { return Session{}, false }
	}
	if config.Handshakes == nil {
		config.Handshakes = func(string) (Handshakes, bool) { return Handshakes{}, false }
	}
	a := &api{config: config, mux: http.NewServeMux(), watches: make(chan struct{}, maxWatches), reads: make(chan struct{}, maxReads), drain: drain}
	a.handle("GET /v1/devices", Viewer, a.listDevices)
	a.handle("GET /v1/devices/{id}", Viewer, a.showDevice)
	a.handle("POST /v1/devices/{id}/suspend", Operator, a.suspendDevice)
	a.handle("POST /v1/devices/{id}/resume", Operator, a.resumeDevice)
	a.handle("POST /v1/devices/{id}/revoke", Operator, a.end(fleet.VerbRevoke))
	a.handle("POST /v1/devices/{id}/retire", Operator, a.end(fleet.VerbRetire))
	a.handle("POST /v1/devices/{id}/replace", Operator, a.end(fleet.VerbReplace))
	a.handle("POST /v1/devices/{id}/reinstate", Admin, a.reinstateDevice)
	a.handle("POST /v1/devices/{id}/label", Operator, a.labelDevice)
	for _, verb := range []fleet.Verb{fleet.VerbSuspend, fleet.VerbResume, fleet.VerbRevoke, fleet.VerbRetire} {
		a.handle("POST /v1/selections/"+string(verb), Operator, a.selection(verb))
	}
	a.handle("POST /v1/selections/label", Operator, a.labelSelection)
	a.handle("GET /v1/proposals", Viewer, a.listProposals)
	a.handle("POST /v1/proposals/{id}/approve", Operator, a.approveProposal)
	a.handle("POST /v1/proposals/{id}/withdraw", Operator, a.withdrawProposal)
	a.handle("GET /v1/receipts", Viewer, a.listReceipts)
	a.handle("GET /v1/receipts/{id}", Viewer, a.showReceipt)
	a.handle("GET /v1/receipts/{id}/signed", Viewer, a.signedReceipt)
	a.handle("POST /v1/manifests", Operator, a.importManifest)
	a.handle("GET /v1/watch", Viewer, a.watch)
	a.handle("GET /v1/audit", Viewer, a.listAudit)
	a.handle("GET /v1/audit/head", Viewer, a.auditHead)
	a.handle("GET /v1/audit/verify", Viewer, a.verifyAudit)
	a.handle("GET /v1/audit/export", Viewer, a.exportAudit)
	if config.Consumers != nil {
		a.handle("GET /v1/messages", Viewer, a.listMessages)
		a.handle("GET /v1/consumers", Viewer, a.listConsumers)
		a.handle("GET /v1/consumers/{name}", Viewer, a.showConsumer)
		a.handle("PUT /v1/consumers/{name}", Operator, a.putConsumer)
		a.handle("DELETE /v1/consumers/{name}", Operator, a.deleteConsumer)
		a.handle("GET /v1/sinks", Viewer, a.listSinks)
	}
	if config.Backup != nil {
		a.handle("GET /v1/backup", Admin, a.backup)
	}
	if config.Issuers != nil {
		a.handle("GET /v1/issuers", Viewer, a.listIssuers)
		a.handle("GET /v1/issuers/{name}/removal", Viewer, a.planIssuerRemoval)
		a.handle("POST /v1/issuers/{name}/remove", Admin, a.removeIssuer)
		a.handle("POST /v1/issuers/{name}/revoke", Admin, a.revokeIssuer)
	}
	if config.Policies != nil {
		a.handle("GET /v1/policy", Viewer, a.showPolicy)
		a.handle("GET /v1/policy/explain", Viewer, a.explainPolicy)
		a.handle("POST /v1/policy/reload", Admin, a.reloadPolicy)
	}
	if config.Why != nil {
		a.handle("GET /v1/devices/{id}/why", Viewer, a.why)
	}
	if config.Anomalies != nil {
		a.handle("GET /v1/anomalies", Viewer, a.listAnomalies)
	}
	if config.Lists != nil {
		a.handle("GET /v1/crls", Viewer, a.showLists)
		a.handle("GET /v1/crls/{name}", Viewer, a.showList)
		a.handle("POST /v1/crls", Operator, a.importList)
	}
	if config.Tickets != nil {
		a.handle("GET /v1/tickets", Viewer, a.showTickets)
		a.handle("POST /v1/tickets/rotate", Admin, a.rotateTickets)
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

// ServeHTTP admits operators, and stations with their manifests, and nobody else.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if a.config.Fleet == nil || a.config.Verifier == nil || r.TLS == nil {
		a.deny(w, r, "the API is not set up to recognize operators")
		return
	}
	if a.serveStation(w, r) {
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
