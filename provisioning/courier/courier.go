// Package courier carries manifests to a hub over HTTPS. It knows of the hub only the
// URL of its API, as the hub's documents have it.
package courier

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The kinds of error that callers tell apart. Others are the hub's refusal of the
// manifest itself.
var (
	ErrUnreachable = errors.New("no hub answers")
	ErrDenied      = errors.New("denied")
)

const (
	path        = "/v1/manifests"
	mediaType   = "application/jose"
	dialTimeout = 5 * time.Second
	sendTimeout = 5 * time.Minute // a large manifest over a slow line, and its import
	maxAnswer   = 1 << 20
)

// Receipt is what the hub says of a manifest that it has.
type Receipt struct {
	Station    string `json:"station"`
	Number     uint64 `json:"number"`
	Devices    int    `json:"devices"`
	Registered int    `json:"registered"` // new to the hub
	Superseded int    `json:"superseded"` // given a new certificate in place of the old
	Unchanged  int    `json:"unchanged"`  // known with that certificate
}

// Courier sends manifests to one hub. It is safe for concurrent use.
type Courier struct {
	base string
	http *http.Client
}

// New returns a courier to the hub at an URL such as https://hub.example:8443, with the
// credentials of an operator or a station. It connects at the first manifest.
func New(hub string, credentials mtls.Credentials) (*Courier, error) {
	u, err := url.Parse(hub)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("the hub's URL %.200q is not of the form https://HOST:PORT", hub)
	}
	return &Courier{
		base: "https://" + u.Host,
		http: &http.Client{
			Timeout: sendTimeout,
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment,
				DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
				TLSHandshakeTimeout:    2 * dialTimeout,
				MaxResponseHeaderBytes: 16 << 10,
				TLSClientConfig: mtls.ClientConfig(mtls.ClientOptions{
					Certificate: credentials.Certificate, Roots: credentials.Roots, ServerName: u.Hostname(),
				}),
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes idle connections.
func (c *Courier) Close() { c.http.CloseIdleConnections() }

// Send hands a signed manifest over. The same one again changes nothing at the hub.
func (c *Courier) Send(ctx context.Context, manifest []byte) (Receipt, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(manifest))
	if err != nil {
		return Receipt{}, err
	}
	request.Header.Set("Content-Type", mediaType)
	response, err := c.http.Do(request)
	if err != nil {
		return Receipt{}, c.explain(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return Receipt{}, c.explain(err)
	}
	if response.StatusCode != http.StatusOK {
		return Receipt{}, c.problem(response.StatusCode, body)
	}
	var r Receipt
	if err := json.Unmarshal(body, &r); err != nil || r.Number == 0 {
		return Receipt{}, fmt.Errorf("%s answers, but not as a hub does", c.base)
	}
	return r, nil
}

// problem turns the hub's problem details (RFC 9457) into an error.
func (c *Courier) problem(status int, body []byte) error {
	var p struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		p.Detail = http.StatusText(status)
	}
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		return fmt.Errorf("%w by the hub at %s: %.400s", ErrDenied, c.base, p.Detail)
	}
	return fmt.Errorf("the hub at %s refused it (%d): %.400s", c.base, status, p.Detail)
}

// explain names what is the matter with the line.
func (c *Courier) explain(err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok && !errors.Is(err, context.Canceled) {
		err = failed.Err
	}
	// Of those that refuse our certificate, TLS says "remote error"; whom we refuse answers.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return fmt.Errorf("%w by the hub at %s: it doesn't take these credentials (%w)", ErrDenied, c.base, err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("what answers at %s is no hub of this fleet: %w", c.base, err)
	}
	return fmt.Errorf("%w at %s (%w)", ErrUnreachable, c.base, err)
}
