package est

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// Config is what a Handler serves. CACerts, ParseCSR and Enroll or Reenroll are
// required; an operation without its function is refused.
type Config struct {
	// CACerts returns the certificates of /cacerts: the root, and every issuing CA that a
	// client needs. Called at each request.
	CACerts func() []*x509.Certificate

	// ParseCSR decodes a request and verifies its signature and key, as
	// issuance.ParseCSR does.
	ParseCSR func(der []byte) (*x509.CertificateRequest, error)

	// Enroll returns a certificate for a client that brings a token or a TLS certificate.
	// Both may be there, and each may be anybody's: Enroll decides whom it knows. Its
	// error is a *Refusal, or a fault of the server that the client hears nothing of.
	Enroll func(context.Context, Request) (Answer, error)

	// Reenroll returns a new certificate in place of Request.Peer, which is never nil and
	// which Reenroll verifies: chain, time, revocation.
	Reenroll func(context.Context, Request) (Answer, error)

	// Attributes is the answer to /csrattrs in DER. Nil: DefaultAttributes.
	Attributes []byte

	// Challenge and EnrollAttested are the two halves of the exchange by which a TPM
	// vouches for the key of a request, in JSON that is theirs (not of the RFCs).
	// ReenrollAttested is the second half for a new certificate in place of Exchange.Peer,
	// which is never nil there and is verified by it. Nil: no TPM is asked for that.
	Challenge        func(context.Context, Exchange) ([]byte, error)
	EnrollAttested   func(context.Context, Exchange) (Answer, error)
	ReenrollAttested func(context.Context, Exchange) (Answer, error)

	Realm       string // of HTTP authentication; "": "enrolment"
	MaxBody     int64  // bytes of a request; 0: 24 KiB
	Concurrency int    // requests at a time that have come in whole; 0: 256. Others hear 503
	Requests    Rate   // of each address; zero: no limit
	Refusals    Rate   // after so many refusals an address waits; zero: 5 a second, 100 at once

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Answer is a certificate for a client.
type Answer struct {
	Certificate *x509.Certificate

	// Sent is called once the answer has been handed to the connection. It may be nil.
	Sent func()
}

// Handler serves the operations below Prefix. It is safe for concurrent use.
type Handler struct {
	config   Config
	turns    chan struct{}
	requests limiter
	refusals limiter
}

// retryBusy is what a client is told to wait when the server is at its limit.
const retryBusy = 2 * time.Second

// NewHandler returns the handler of that configuration.
func NewHandler(c Config) *Handler {
	if c.Attributes == nil {
		c.Attributes = DefaultAttributes()
	}
	if c.Realm == "" {
		c.Realm = "enrolment"
	}
	if c.MaxBody <= 0 {
		c.MaxBody = defaultMaxBody
	}
	if c.Concurrency <= 0 {
		c.Concurrency = 256
	}
	if c.Refusals == (Rate{}) {
		c.Refusals = Rate{PerSecond: 5, Burst: 100}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{
		config: c, turns: make(chan struct{}, c.Concurrency),
		requests: limiter{rate: c.Requests, now: c.Now},
		refusals: limiter{rate: c.Refusals, now: c.Now},
	}
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	address := host(r.RemoteAddr)
	wait := max(h.requests.take(address), h.refusals.ready(address))
	if wait > 0 {
		h.refuse(w, r, &Refusal{Status: http.StatusTooManyRequests, Reason: "rate", RetryAfter: wait, Detail: "too many requests, or refused requests, from " + address})
		return
	}
	if err := h.serve(w, r); err != nil {
		h.fail(w, r, address, err)
	}
}

// operation is what is at a path. Its steps: 1. admit, by headers and the connection
// alone. 2. The body is read, within bodyTime. 3. serve, in one of the handler's turns.
type operation struct {
	method string
	media  string // of the body, of at most limit bytes; "": it has none
	limit  int64
	admit  func(*http.Request) error // nil: anybody
	serve  func(http.ResponseWriter, *http.Request, []byte) error
}

// serve routes the request and answers it, unless it returns an error.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	if r.TLS == nil {
		return &Refusal{Status: http.StatusForbidden, Reason: "plain", Detail: "enrolment is over TLS only"}
	}
	name, found := strings.CutPrefix(r.URL.Path, Prefix)
	op := h.route(name)
	switch {
	case !found || op.serve == nil:
		return &Refusal{Status: http.StatusNotFound, Reason: "path", Detail: fmt.Sprintf("there is nothing at %.120q", r.URL.Path)}
	case r.Method != op.method:
		w.Header().Set("Allow", op.method)
		return &Refusal{Status: http.StatusMethodNotAllowed, Reason: "method", Detail: "use " + op.method + " here"}
	}
	// Of a refused request the server reads on, to keep the connection: within that, too.
	readUntil(w, time.Now().Add(bodyTime))
	if op.admit != nil {
		if err := op.admit(r); err != nil {
			return err
		}
	}
	var body []byte
	if op.media != "" {
		var err error
		if body, err = op.body(w, r); err != nil {
			return err
		}
	}
	readUntil(w, time.Time{}) // signing may take longer, and the server takes the deadline for a client that is gone
	select {
	case h.turns <- struct{}{}:
		defer func() { <-h.turns }()
	default:
		return &Refusal{Status: http.StatusServiceUnavailable, Reason: "busy", RetryAfter: retryBusy, Detail: "the server has as many requests as it takes at a time"}
	}
	return op.serve(w, r, body)
}

func (h *Handler) route(name string) operation {
	request := operation{method: http.MethodPost, media: typeRequest, limit: h.config.MaxBody}
	exchange := operation{method: http.MethodPost, media: typeExchange, limit: maxExchange}
	by := func(o operation, admit func(*http.Request) error, serve func(http.ResponseWriter, *http.Request, []byte) error) operation {
		o.admit, o.serve = admit, serve
		return o
	}
	switch name {
	case opCACerts:
		return operation{method: http.MethodGet, serve: h.caCerts}
	case opCSRAttrs:
		return operation{method: http.MethodGet, serve: h.csrAttrs}
	case opEnroll:
		return by(request, h.mayEnroll, h.enroll)
	case opReenroll:
		return by(request, h.mayReenroll, h.reenroll)
	case opServerKeygen:
		return operation{method: http.MethodPost, serve: h.serverKeygen}
	case opChallenge:
		return by(exchange, h.mayChallenge, h.challenge)
	case opAttested:
		return by(exchange, h.mayEnrollAttested, h.enrollAttested)
	case opReattested:
		return by(exchange, h.mayReenrollAttested, h.reenrollAttested)
	}
	return operation{}
}

func (h *Handler) caCerts(w http.ResponseWriter, _ *http.Request, _ []byte) error {
	certs := h.config.CACerts()
	if len(certs) == 0 {
		return &Refusal{Status: http.StatusServiceUnavailable, Reason: "no-ca", RetryAfter: retryBusy, Detail: "the server has no authority yet"}
	}
	der, err := encodeCerts(certs...)
	if err != nil {
		return err
	}
	h.answer(w, typeCerts, der)
	return nil
}

func (h *Handler) csrAttrs(w http.ResponseWriter, _ *http.Request, _ []byte) error {
	if len(h.config.Attributes) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	h.answer(w, typeAttrs, h.config.Attributes)
	return nil
}

func (h *Handler) serverKeygen(http.ResponseWriter, *http.Request, []byte) error {
	return &Refusal{Status: http.StatusForbidden, Reason: "serverkeygen", Detail: "a device's private key is made on the device and never leaves it, so none is made here: make one, and use simpleenroll"}
}

func (h *Handler) mayEnroll(r *http.Request) error {
	if h.config.Enroll == nil {
		return &Refusal{Status: http.StatusForbidden, Reason: "enroll", Detail: "devices are enrolled at a factory station, not here"}
	}
	return credential(r)
}

func (h *Handler) enroll(w http.ResponseWriter, r *http.Request, body []byte) error {
	request, err := h.parse(r, body)
	if err != nil {
		return err
	}
	answer, err := h.config.Enroll(r.Context(), request)
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

func (h *Handler) mayReenroll(r *http.Request) error {
	if h.config.Reenroll == nil {
		return &Refusal{Status: http.StatusForbidden, Reason: "reenroll", Detail: "certificates are not renewed here"}
	}
	return certificate(r)
}

func (h *Handler) reenroll(w http.ResponseWriter, r *http.Request, body []byte) error {
	request, err := h.parse(r, body)
	if err == nil {
		err = checkNames(request.CSR, request.Peer)
	}
	if err != nil {
		return err
	}
	answer, err := h.config.Reenroll(r.Context(), request)
	if err != nil {
		return err
	}
	return h.deliver(w, answer)
}

// parse takes the request apart.
func (h *Handler) parse(r *http.Request, body []byte) (Request, error) {
	der, err := decodeBase64(body)
	if err != nil {
		return Request{}, err
	}
	csr, err := h.config.ParseCSR(der)
	if err != nil {
		return Request{}, fmt.Errorf("%w: %w", errRequest, err)
	}
	if err := checkRequest(csr); err != nil {
		return Request{}, err
	}
	request := Request{CSR: csr, Token: token(r), Address: r.RemoteAddr}
	if peers := r.TLS.PeerCertificates; len(peers) > 0 {
		request.Peer = peers[0]
	}
	return request, nil
}
