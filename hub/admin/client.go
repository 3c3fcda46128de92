package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/fleet"
)

// The kinds of error that a caller of the client tells apart. Other errors are
// failures of the request itself.
var (
	ErrUnreachable = errors.New("no hub answers")
	ErrDenied      = errors.New("denied")
	ErrNotFound    = errors.New("not found")
	ErrInvalid     = errors.New("invalid request")
	ErrCount       = errors.New("the count differs") // from what the operator meant
	ErrMoved       = errors.New("moved meanwhile")   // a consumer, by somebody else
)

// Timeouts of the client.
const (
	dialTimeout    = 5 * time.Second
	requestTimeout = 30 * time.Second
	importTimeout  = readTimeout + writeTimeout
	silenceTimeout = 60 * time.Second // of a watch: four heartbeats
	progressPause  = time.Second      // before it is asked again for the answer to a request under way
)

// Limits of what the client reads.
const (
	maxAnswer = 64 << 20
	maxLine   = 16 << 20
)

// Client talks to a hub's API with an operator's credentials. It is safe for
// concurrent use.
type Client struct {
	base    string
	token   string // beside no certificate; "": there is a certificate
	http    *http.Client
	silence time.Duration
}

// NewClient returns a client of the hub at an URL such as https://hub.example:8443. It
// connects at the first request.
func NewClient(baseURL string, credentials mtls.Credentials) (*Client, error) {
	return newClient(baseURL, mtls.ClientOptions{Certificate: credentials.Certificate, Roots: credentials.Roots})
}

// NewTokenClient is NewClient for an operator with a token of the OpenID provider that the hub
// is told of, in place of a certificate. Roots are what it holds the hub against.
func NewTokenClient(baseURL string, roots []*x509.Certificate, token string) (*Client, error) {
	if token == "" || strings.Trim(token, compact) != "" {
		return nil, errors.New("the token is no JWT in compact form: three parts of letters, digits, - and _, joined by dots")
	}
	c, err := newClient(baseURL, mtls.ClientOptions{Roots: roots})
	if err != nil {
		return nil, err
	}
	c.token = token
	return c, nil
}

func newClient(baseURL string, options mtls.ClientOptions) (*Client, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("the hub's URL %.200q is not of the form https://HOST:PORT", baseURL)
	}
	options.ServerName = u.Hostname()
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        mtls.ClientConfig(options),
		TLSHandshakeTimeout:    2 * dialTimeout,
		ResponseHeaderTimeout:  writeTimeout,
		IdleConnTimeout:        requestTimeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return &Client{
		base:    "https://" + u.Host,
		silence: silenceTimeout,
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Import sends a signed manifest.
func (c *Client) Import(ctx context.Context, manifest []byte) (fleet.ImportReport, error) {
	return exchange[fleet.ImportReport](ctx, c, call{
		method: http.MethodPost, path: "/v1/manifests", body: manifest, contentType: ManifestMediaType, timeout: importTimeout,
	})
}

// Issuers returns the issuing CAs that the hub trusts, in order of name.
func (c *Client) Issuers(ctx context.Context) ([]Issuer, error) {
	return all(ctx, c, "/v1/issuers", nil, func(l IssuerList) ([]Issuer, string) { return l.Issuers, l.Next })
}

// PlanIssuerRemoval returns what RemoveIssuer would do, and changes nothing. An unknown
// name is an error that matches ErrNotFound.
func (c *Client) PlanIssuerRemoval(ctx context.Context, name string) (IssuerPlan, error) {
	return get[IssuerPlan](ctx, c, issuerPath(name, "/removal"), nil)
}

// RemoveIssuer takes the hub's trust from an issuing CA and cuts off whoever is
// connected by it.
func (c *Client) RemoveIssuer(ctx context.Context, name, reason string) (IssuerReceipt, error) {
	answer, err := post[IssuerRemoval](ctx, c, issuerPath(name, "/remove"), change{Reason: reason, Confirm: true})
	if err == nil && answer.Receipt == nil {
		err = fmt.Errorf("the hub at %s answered without a receipt", c.base)
	}
	if err != nil {
		return IssuerReceipt{}, err
	}
	return *answer.Receipt, nil
}

// Tickets returns the hub's ticket keys and what became of tickets.
func (c *Client) Tickets(ctx context.Context) (TicketState, error) {
	return get[TicketState](ctx, c, "/v1/tickets", nil)
}

// RotateTickets makes a new ticket key; tickets already made stay good.
func (c *Client) RotateTickets(ctx context.Context, reason string) (TicketState, error) {
	return post[TicketState](ctx, c, "/v1/tickets/rotate", rotation{Reason: reason})
}

// DropTickets makes a new ticket key and every ticket already made worthless.
func (c *Client) DropTickets(ctx context.Context, reason string) (TicketState, error) {
	return post[TicketState](ctx, c, "/v1/tickets/rotate", rotation{Reason: reason, Drop: true})
}

// Watch calls deliver for each message that matches the topic filter, until it
// returns an error, which Watch returns, or ctx ends, or the hub goes silent or away.
// It never returns nil.
func (c *Client) Watch(ctx context.Context, filter string, deliver func(Message) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := fmt.Errorf("%w at %s: it went silent", ErrUnreachable, c.base)
	alarm := time.AfterFunc(c.silence, func() { cancel(silent) })
	defer alarm.Stop()
	response, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/watch", query: url.Values{"filter": {filter}}})
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		alarm.Reset(c.silence)
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("the hub at %s sent a line that is no event: %w", c.base, err)
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause // what the hub says about that we left is no news
		}
		if e.Error != "" {
			return fmt.Errorf("the hub at %s ended the stream: %s", c.base, e.Error)
		}
		if e.Message == nil {
			continue
		}
		if err := deliver(*e.Message); err != nil {
			return err
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w any more at %s: %w", ErrUnreachable, c.base, err)
	}
	return fmt.Errorf("%w any more at %s: it closed the stream", ErrUnreachable, c.base)
}

func issuerPath(name, verb string) string { return "/v1/issuers/" + url.PathEscape(name) + verb }

func devicePath(id, verb string) string { return "/v1/devices/" + url.PathEscape(id) + verb }

// call is one request.
type call struct {
	method, path string
	query        url.Values
	body         []byte
	contentType  string
	header       http.Header // more of it; nil: none
	timeout      time.Duration
	key          string // of idempotency; "": none
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	return exchange[T](ctx, c, call{method: http.MethodGet, path: path, query: query, timeout: requestTimeout})
}

func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	return postWithin[T](ctx, c, requestTimeout, path, body)
}

// postWithin is post for what may take longer.
func postWithin[T any](ctx context.Context, c *Client, timeout time.Duration, path string, body any) (T, error) {
	data, err := json.Marshal(body)
	if err != nil {
		var none T
		return none, err
	}
	return exchange[T](ctx, c, call{method: http.MethodPost, path: path, body: data, contentType: "application/json", timeout: timeout})
}

func exchange[T any](ctx context.Context, c *Client, request call) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, request.timeout)
	defer cancel()
	if request.method == http.MethodPost {
		request.key = rand.Text()
	}
	answer, err := exchangeOnce[T](ctx, c, request)
	if wasCut(err) { // while the answer was read
		answer, err = exchangeOnce[T](ctx, c, request)
	}
	return answer, err
}

func exchangeOnce[T any](ctx context.Context, c *Client, request call) (answer T, err error) {
	response, err := c.send(ctx, request)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("the answer of the hub at %s can't be read: %w", c.base, err)
	}
	return answer, nil
}

// wasCut reports whether the connection ended under a request.
func wasCut(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// send returns the response if it is a success; the caller closes its body.
//
// A connection that was cut is tried once more, since every verb may be repeated (a POST
// has an idempotency key, under which it is carried out once, and a PUT or DELETE says what it
// expects to find): the hub was restarted, or, in
// TLS 1.3, it refuses our certificate and closes while we write the request, and
// the write may fail before the alert that says why is read. If the hub is still at the
// first of the two, the second waits for its answer.
func (c *Client) send(ctx context.Context, r call) (*http.Response, error) {
	response, err := c.roundTrip(ctx, r)
	if wasCut(err) {
		response, err = c.roundTrip(ctx, r)
	}
	for {
		if err != nil {
			return nil, c.explain(ctx, err)
		}
		refusal := c.refusal(response)
		if refusal == nil {
			return response, nil
		}
		if p, ok := errors.AsType[*Problem](refusal); !ok || p.Type != problemType+codeInProgress {
			return nil, refusal
		}
		select {
		case <-time.After(progressPause):
		case <-ctx.Done():
			return nil, refusal
		}
		response, err = c.roundTrip(ctx, r)
	}
}

// refusal is the error that a response is, nil if it is a success. It closes the body of the
// former.
func (c *Client) refusal(response *http.Response) error {
	if response.StatusCode == http.StatusOK {
		return nil
	}
	defer response.Body.Close()
	var p Problem
	media, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if media == problemMediaType && json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(&p) == nil && p.Detail != "" {
		p.Status = response.StatusCode
		return &p
	}
	return fmt.Errorf("%s answered %s, not as a hub does; name the hub's HTTPS address with --hub", c.base, response.Status)
}

func (c *Client) roundTrip(ctx context.Context, r call) (*http.Response, error) {
	target := c.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, r.header)
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	if r.key != "" {
		request.Header.Set(keyHeader, `"`+r.key+`"`)
	}
	if r.contentType != "" {
		request.Header.Set("Content-Type", r.contentType)
	}
	return c.http.Do(request)
}

// explain turns a transport's error into one sentence of the right kind.
func (c *Client) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" { // a TLS alert
		return fmt.Errorf("%w: the hub at %s refused this operator certificate (%w): its log says why, and whether that is its HTTPS port", ErrDenied, c.base, e.Err)
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](e.Err); ok && invalid.Reason == x509.Expired {
			return fmt.Errorf("the server certificate of the hub at %s is expired or not yet valid, or this machine's clock is wrong: %w", c.base, e.Err)
		}
		return fmt.Errorf("the server at %s is not this fleet's hub, or not under that name: %w", c.base, e.Err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w at %s in time", ErrUnreachable, c.base)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%w at %s, and what listens there doesn't speak TLS: is it another port than the hub's for HTTPS (8443)?", ErrUnreachable, c.base)
	}
	return fmt.Errorf("%w at %s (%w); start it with `hub serve --dir DIR` or name another with --hub", ErrUnreachable, c.base, err)
}
