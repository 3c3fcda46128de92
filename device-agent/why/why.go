// Package why asks the hub, as the device and about the device, whether it may connect, and
// if not, why not: GET /v1/why at the hub's HTTPS door, which answers a device in any
// state, as long as its certificate is of the fleet and hasn't expired for good. It
// changes nothing and keeps nothing.
package why

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The kinds of error that a caller tells apart.
var (
	ErrUnreachable = errors.New("nobody answers")
	ErrUntrusted   = errors.New("the server is not this fleet's hub")
	ErrDenied      = errors.New("denied")
	ErrNoHub       = errors.New("that is not a hub's HTTPS address") // a hub too old to be asked, for one
)

// Answer is what the hub says of the device.
type Answer struct {
	ID         string    `json:"id"`
	State      string    `json:"state,omitempty"` // "": not registered
	MayConnect bool      `json:"may_connect"`
	Verdict    string    `json:"verdict"` // one sentence
	Online     bool      `json:"online"`
	Clock      string    `json:"clock,omitempty"` // how far this machine's clock is off, if it is
	Since      time.Time `json:"since"`           // from when on the hub remembers events
	Events     []Event   `json:"events"`          // newest first
}

// Event is one thing that became of the device's connections.
type Event struct {
	At      time.Time `json:"at"`
	First   time.Time `json:"first,omitzero"`  // if it happened several times in a row
	Times   int       `json:"times,omitempty"` // likewise
	Kind    string    `json:"kind"`
	Words   string    `json:"words"`
	Address string    `json:"address,omitempty"`
}

// For good reports whether no waiting helps: the device is out, and needs another
// certificate at least.
func (a Answer) ForGood() bool {
	return a.State == "revoked" || a.State == "retired" || a.State == "replaced"
}

// Bounds of a question.
const (
	timeout   = 20 * time.Second
	maxAnswer = 64 << 10 // the hub tells twelve events
)

// Ask asks the hub at an https://HOST:PORT. An error matches one of the kinds above, if it
// is of one.
func Ask(ctx context.Context, server string, cred mtls.Credentials) (Answer, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return Answer{}, fmt.Errorf("the hub's URL %.200q is not of the form https://HOST:8443", server)
	}
	transport := &http.Transport{
		TLSClientConfig:     mtls.ClientConfig(mtls.ClientOptions{Certificate: cred.Certificate, Roots: cred.Roots, ServerName: u.Hostname()}),
		TLSHandshakeTimeout: timeout, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
	}
	client := &http.Client{
		Transport: transport, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+u.Host+"/v1/why", nil)
	if err != nil {
		return Answer{}, err
	}
	request.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat)) // the hub says how far it is off
	response, err := client.Do(request)
	if err != nil {
		return Answer{}, explain(u.Host, err)
	}
	defer response.Body.Close()
	return read(u.Host, response)
}

func read(host string, response *http.Response) (a Answer, err error) {
	body := io.LimitReader(response.Body, maxAnswer)
	media, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case response.StatusCode == http.StatusOK && media == "application/json":
		if err := json.NewDecoder(body).Decode(&a); err != nil {
			return Answer{}, fmt.Errorf("the answer of the hub at %s can't be read: %w", host, err)
		}
		return a, nil
	case media == "application/problem+json":
		var p struct {
			Detail string `json:"detail"`
		}
		if err := json.NewDecoder(body).Decode(&p); err != nil || p.Detail == "" {
			p.Detail = response.Status
		}
		if response.StatusCode == http.StatusForbidden {
			return Answer{}, fmt.Errorf("%w: the hub at %s says: %s", ErrDenied, host, p.Detail)
		}
		return Answer{}, fmt.Errorf("the hub at %s says: %s", host, p.Detail)
	}
	return Answer{}, fmt.Errorf("%w: %s answered %s", ErrNoHub, host, response.Status)
}

// explain gives a failed request its kind.
func explain(host string, err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok && !errors.Is(err, context.Canceled) {
		err = e.Err
	}
	op, isOp := errors.AsType[*net.OpError](err)
	_, isName := errors.AsType[*net.DNSError](err)
	verification, isCert := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case isCert:
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](verification); ok && invalid.Reason == x509.Expired {
			return fmt.Errorf("%w: the certificate of %s is out of date, or this machine's clock is wrong (it is %s by it)", ErrUntrusted, host, time.Now().UTC().Format(time.RFC3339))
		}
		return fmt.Errorf("%w: %s: %w", ErrUntrusted, host, verification.Err)
	case isOp && op.Op == "remote error": // a TLS alert
		return fmt.Errorf("%w: the hub at %s doesn't take this device's certificate (%w): it is of another fleet, its issuer is no longer trusted, or it expired long ago; `hub why` at the hub says which", ErrDenied, host, op.Err)
	case isName, isOp && op.Op == "dial", isOp && op.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w at %s (%w)", ErrUnreachable, host, err)
	case errors.Is(err, http.ErrSchemeMismatch), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: %s gave no answer in HTTPS; the port is 8443 unless the hub has another, and not that for MQTT", ErrNoHub, host)
	}
	if strings.Contains(err.Error(), "malformed HTTP") {
		return fmt.Errorf("%w: %s speaks something else", ErrNoHub, host)
	}
	return fmt.Errorf("%s: %w", host, err)
}
