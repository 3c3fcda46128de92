package listener

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// Reasons of refusals that arise here. Those of certificates and admission come
// from Config.Verify, as the Reason of a *mtls.Refusal.
const (
	ReasonTooMany          = "too-many-connections"
	ReasonAddressLimit     = "address-limit" // of connections that have proved nothing
	ReasonIssuerLimit      = "issuer-limit"  // of full handshakes
	ReasonDeviceLimit      = "device-limit"  // likewise
	ReasonQueueFull        = "queue-full"
	ReasonQueueTimeout     = "queue-timeout"
	ReasonHandshakeTimeout = "handshake-timeout"
	ReasonHandshakeAborted = "handshake-aborted" // the peer went away
	ReasonHandshakeFailed  = "handshake-failed"  // no common version, suite or curve; a malformed message
	ReasonHelloTooLarge    = "hello-too-large"
	ReasonTooLarge         = "handshake-too-large"
	ReasonChainTooLong     = "chain-too-long"
	ReasonNotTLS           = "not-tls"
	ReasonPeerAlert        = "peer-alert" // the peer refused us
	ReasonPanic            = "panic"
)

var (
	errPanic       = errors.New("the hub's own error, see its log")
	errIssuerLimit = errors.New("the devices of that issuer make too many full handshakes")
	errDeviceLimit = errors.New("that device makes too many full handshakes")
	errTooLarge    = errors.New("the client sent more than a handshake has")
)

// ownReasons are those of the listener's own errors.
var ownReasons = []struct {
	err    error
	reason string
}{
	{errPanic, ReasonPanic},
	{errNotTLS, ReasonNotTLS},
	{errHelloTooLarge, ReasonHelloTooLarge},
	{errTooLarge, ReasonTooLarge},
	{errQueueFull, ReasonQueueFull},
	{errQueueTimeout, ReasonQueueTimeout},
	{errIssuerLimit, ReasonIssuerLimit},
	{errDeviceLimit, ReasonDeviceLimit},
}

// overload reports whether err says that the hub has no room now, and nothing about
// the peer.
func overload(err error) bool {
	return errors.Is(err, errQueueFull) || errors.Is(err, errQueueTimeout) || errors.Is(err, errIssuerLimit) || errors.Is(err, errDeviceLimit)
}

// explain turns a handshake's error into a reason, the identity claimed, and a
// sentence.
func explain(err error, c *Conn) (reason, id, detail string) {
	id, detail = c.claimed, err.Error()
	if len(id) > 64 {
		id = id[:64]
	}
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok {
		return string(refusal.Reason), id, refusal.Detail
	}
	for _, own := range ownReasons {
		if errors.Is(err, own.err) {
			return own.reason, id, detail
		}
	}
	var (
		alert  tls.AlertError
		header tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &header):
		return ReasonNotTLS, id, "the first bytes are no TLS record"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ReasonHandshakeTimeout, id, "the handshake was not completed in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.EPIPE):
		return ReasonHandshakeAborted, id, "the connection was closed during the handshake"
	case errors.As(err, &alert):
		return ReasonPeerAlert, id, "the client refused the handshake: " + detail
	case strings.Contains(detail, "remote error"):
		return ReasonPeerAlert, id, "the client refused the handshake: " + detail
	case strings.Contains(detail, "didn't provide a certificate"):
		return string(mtls.ReasonNoCertificate), id, "the client presented no certificate"
	case strings.Contains(detail, "exceeds maximum of"): // crypto/tls saw it in the length, before our count did
		return ReasonTooLarge, id, detail
	}
	return ReasonHandshakeFailed, id, detail
}

// What the log takes of each reason; Config.Observer is told of all.
var refusalLines = quota{burst: 20, rate: 1}

// summaryEvery is how often the log is told how many lines it was spared.
const summaryEvery = 10 * time.Second

// refusals logs refusals, so many of each reason that a storm of them doesn't fill a
// disk, and how many it kept to itself.
type refusals struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows; not held while logging
	reasons map[string]*refusalCount
	summary *time.Timer // nil: nothing is to be told
	total   uint64      // lines not logged
	closed  bool
}

// refusalCount is one reason's. The reasons are words of our own code, so there are few.
type refusalCount struct {
	lines      bucket
	suppressed uint64
}

// add logs one refusal, or counts it.
func (r *refusals) add(remote net.Addr, reason, id, detail string) {
	if r.pass(reason, time.Now()) {
		r.log.Warn("connection refused", "reason", reason, "id", id, "remote", remote, "detail", detail)
	}
}

func (r *refusals) pass(reason string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.reasons[reason]
	if !ok {
		if r.reasons == nil {
			r.reasons = make(map[string]*refusalCount)
		}
		c = &refusalCount{}
		r.reasons[reason] = c
	}
	if c.lines.take(refusalLines, now) {
		return true
	}
	c.suppressed++
	r.total++
	if r.summary == nil && !r.closed {
		r.summary = time.AfterFunc(summaryEvery, r.summarize)
	}
	return false
}

// summarize logs what was not, by reason.
func (r *refusals) summarize() {
	spared := make(map[string]uint64)
	r.mu.Lock()
	for reason, c := range r.reasons {
		if c.suppressed > 0 {
			spared[reason], c.suppressed = c.suppressed, 0
		}
	}
	r.summary = nil
	r.mu.Unlock()
	for reason, n := range spared {
		r.log.Warn("connections refused, without a line each", "reason", reason, "count", n)
	}
}

// close logs what is still to be told.
func (r *refusals) close() {
	r.mu.Lock()
	r.closed = true
	if r.summary != nil {
		r.summary.Stop()
	}
	r.mu.Unlock()
	r.summarize() // a second one, if it has just begun, has nothing left to say
}

func (r *refusals) suppressed() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}
