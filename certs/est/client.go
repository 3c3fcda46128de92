package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The kinds of error that a caller of Client tells apart, with errors.Is. Others are
// failures of the request, or of the server.
var (
	ErrUnreachable = errors.New("nobody answers")
	ErrUntrusted   = errors.New("the server is not the one expected")
	ErrDenied      = errors.New("denied")
)

// Timeouts of the client.
const (
	dialTimeout    = 10 * time.Second
	requestTimeout = 60 * time.Second
)

// ClientConfig says whom a Client talks to, and as whom.
type ClientConfig struct {
	URL string // https://HOST:PORT, without a path

	// TLS is the policy, with Roots and the name to expect for a server that has a
	// certificate by a CA the client knows. With a Pin only its versions and curves count.
	TLS *tls.Config

	// Pin is the key of a server that is known by nothing else, as a station is to a new
	// board. Its certificate's names and dates don't matter then: the board's clock may
	// never have been set.
	Pin *Pin

	Token       string           // the secret of an enrolment token, or ""
	Certificate *tls.Certificate // a claim certificate, or the one to be renewed; nil: none
}

// Client enrols a device. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// NewClient returns a client of that server. It connects at the first request.
func NewClient(c ClientConfig) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%w: the URL %.200q is not of the form https://HOST:PORT", ErrMalformed, c.URL)
	}
	policy := c.TLS.Clone()
	if policy == nil {
		policy = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if policy.ServerName == "" {
		policy.ServerName = u.Hostname()
	}
	if c.Certificate != nil {
		certificate := *c.Certificate
		policy.Certificates = nil
		// Whatever CAs the server names: a claim certificate is by none.
		policy.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	if c.Pin != nil {
		pin := *c.Pin
		policy.InsecureSkipVerify = true // VerifyConnection holds the server to the pinned key instead
		policy.VerifyConnection = func(cs tls.ConnectionState) error {
			if !pin.admits(cs.PeerCertificates[0]) {
				return fmt.Errorf("%w: %s has another key than the pin says; somebody may be in between", ErrUntrusted, u.Host)
			}
			return nil
		}
	}
	return &Client{
		base: "https://" + u.Host, token: c.Token,
		http: &http.Client{
			Timeout: requestTimeout,
			Transport: &http.Transport{
				DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
				TLSClientConfig:        policy,
				TLSHandshakeTimeout:    dialTimeout,
				MaxResponseHeaderBytes: 16 << 10,
				IdleConnTimeout:        requestTimeout,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// otherPort is what is meant if a server is there and doesn't answer as one of EST does.
const otherPort = "is it another port than that for HTTPS (8443 of a hub, 9443 of a station), such as that for MQTT?"

// WithToken returns a client that brings another token over the same connections.
func (c *Client) WithToken(secret string) *Client {
	return &Client{base: c.base, token: secret, http: c.http}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CACerts returns the server's CA certificates.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	der, err := c.exchange(ctx, http.MethodGet, opCACerts, "", nil, typeCerts)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCerts(der)
	if err != nil {
		return nil, fmt.Errorf("the CA certificates of %s: %w", c.base, err)
	}
	return certs, nil
}

// CSRAttrs returns what the server would have in a request, in DER; nil for nothing.
func (c *Client) CSRAttrs(ctx context.Context) ([]byte, error) {
	return c.exchange(ctx, http.MethodGet, opCSRAttrs, "", nil, typeAttrs)
}

// Enroll sends a certificate request in DER and returns the certificate, which has the
// key pub. Everything else about it is the caller's to check.
func (c *Client) Enroll(ctx context.Context, csr []byte, pub crypto.PublicKey) (*x509.Certificate, error) {
	return c.certificate(ctx, opEnroll, typeRequest, base64Body(csr), pub)
}

// Reenroll is Enroll for a client that has a certificate, which its connection presents.
func (c *Client) Reenroll(ctx context.Context, csr []byte, pub crypto.PublicKey) (*x509.Certificate, error) {
	return c.certificate(ctx, opReenroll, typeRequest, base64Body(csr), pub)
}

// Challenge begins the exchange by which a TPM vouches for a key: it sends the request
// in JSON and returns the challenge.
func (c *Client) Challenge(ctx context.Context, request []byte) ([]byte, error) {
	body, _, err := c.do(ctx, http.MethodPost, opChallenge, typeExchange, request)
	return body, err
}

// EnrollAttested ends that exchange with the answer in JSON, as Enroll does.
func (c *Client) EnrollAttested(ctx context.Context, answer []byte, pub crypto.PublicKey) (*x509.Certificate, error) {
	return c.certificate(ctx, opAttested, typeExchange, answer, pub)
}

// ReenrollAttested is EnrollAttested for a client that has a certificate, which its
// connection presents and the new one takes the place of.
func (c *Client) ReenrollAttested(ctx context.Context, answer []byte, pub crypto.PublicKey) (*x509.Certificate, error) {
	return c.certificate(ctx, opReattested, typeExchange, answer, pub)
}

// ServerBinding returns the SHA-256 of the server's certificate (RFC 5929 §4.1), which
// binds an answer of a TPM to the server that was asked. It makes a request.
func (c *Client) ServerBinding(ctx context.Context) ([]byte, error) {
	_, state, err := c.do(ctx, http.MethodGet, opCACerts, "", nil)
	if err != nil {
		return nil, err
	}
	return Binding(state.PeerCertificates[0]), nil
}

func base64Body(der []byte) []byte { return base64.StdEncoding.AppendEncode(nil, der) }

func (c *Client) certificate(ctx context.Context, op, mediaType string, body []byte, pub crypto.PublicKey) (*x509.Certificate, error) {
	der, err := c.exchange(ctx, http.MethodPost, op, mediaType, body, typeCerts)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCerts(der)
	if err != nil {
		return nil, fmt.Errorf("the answer of %s: %w", c.base, err)
	}
	key, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	for _, cert := range certs {
		if ok && key.Equal(cert.PublicKey) {
			return cert, nil
		}
	}
	return nil, fmt.Errorf("%w: the certificate of %s is for another key than was sent", ErrMalformed, c.base)
}

// exchange returns the DER of an answer of that media type, nil of an empty one.
func (c *Client) exchange(ctx context.Context, method, op, mediaType string, body []byte, want string) ([]byte, error) {
	answer, _, err := c.do(ctx, method, op, mediaType, body)
	if err != nil || len(answer) == 0 && want == typeAttrs {
		return nil, err
	}
	der, err := decodeBase64(answer)
	if err != nil {
		return nil, fmt.Errorf("the answer of %s to %s: %w", c.base, op, err)
	}
	return der, nil
}

func (c *Client) do(ctx context.Context, method, op, mediaType string, body []byte) ([]byte, *tls.ConnectionState, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+Prefix+op, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if mediaType != "" {
		request.Header.Set("Content-Type", mediaType)
	}
	if c.token != "" && method == http.MethodPost {
		request.SetBasicAuth("enrolment", c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, nil, c.explain(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, c.explain(err)
	}
	if len(answer) > maxAnswer {
		return nil, nil, fmt.Errorf("%w: the answer of %s to %s has more than %d bytes", ErrMalformed, c.base, op, maxAnswer)
	}
	if err := c.check(response, op, answer); err != nil {
		return nil, nil, err
	}
	return answer, response.TLS, nil
}

// check turns an answer that isn't what was asked for into an error.
func (c *Client) check(response *http.Response, op string, answer []byte) error {
	switch code := response.StatusCode; {
	case code == http.StatusOK:
		want := map[string]string{opCACerts: typeCerts, opCSRAttrs: typeAttrs, opChallenge: typeExchange}[op]
		if want == "" {
			want = typeCerts
		}
		if media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || media != want {
			return fmt.Errorf("%w: the answer of %s to %s has the content type %.80q, not %s; is it an EST server?", ErrMalformed, c.base, op, response.Header.Get("Content-Type"), want)
		}
		return nil
	case op == opCSRAttrs && (code == http.StatusNoContent || code == http.StatusNotFound): // RFC 7030 §4.5.2
		return nil
	default:
		return &ServerError{Status: code, Detail: sentence(answer), RetryAfter: retryAfter(response)}
	}
}

// ServerError is a server's refusal as a client sees it. ErrDenied matches 401 and 403.
type ServerError struct {
	Status     int
	Detail     string        // what the server said, one line at most
	RetryAfter time.Duration // 0: it didn't say
}

// Error returns what the server said.
func (e *ServerError) Error() string {
	text := fmt.Sprintf("the server refused (%d %s)", e.Status, http.StatusText(e.Status))
	if e.Status == http.StatusAccepted {
		text = "the server has not decided yet"
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// Is matches ErrDenied.
func (e *ServerError) Is(target error) bool {
	return target == ErrDenied && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden)
}

// Temporary reports whether the same request may succeed later.
func (e *ServerError) Temporary() bool {
	switch e.Status {
	case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// sentence returns the first line of a stranger's text, fit to be printed.
func sentence(text []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '?'
		}
		return r
	}, line)
	if len(line) > 400 {
		line = strings.ToValidUTF8(line[:400], "") + "…"
	}
	return line
}

// maxRetryAfter bounds how long a server makes a client wait.
const maxRetryAfter = 24 * time.Hour

func retryAfter(response *http.Response) time.Duration {
	header := response.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(header); err == nil && seconds >= 0 {
		return min(time.Duration(min(seconds, 1<<20))*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(header); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	return 0
}

// explain gives a failed connection its kind.
//
// The other doors of a hub speak TLS, too: a request on that for MQTT ends in silence.
func (c *Client) explain(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok && !errors.Is(err, context.Canceled) {
		err = failed.Err
	}
	host := strings.TrimPrefix(c.base, "https://")
	_, isName := errors.AsType[*net.DNSError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, ErrUntrusted):
		return err
	case isCert:
		return fmt.Errorf("%w: %s: %w", ErrUntrusted, host, err)
	case isName, errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, context.DeadlineExceeded), isOp && (op.Op == "dial" || op.Timeout()):
		return fmt.Errorf("%w at %s (%w)", ErrUnreachable, host, err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("what listens at %s doesn't speak TLS: %s", host, otherPort)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%s ended the connection without an answer: %s", host, otherPort)
	}
	return fmt.Errorf("%s: %w", host, err)
}
