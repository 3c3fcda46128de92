package consumer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// SinkConfig is a webhook as hub.yaml has it: messages that match Filter are posted to URL, in order, each at least
// once. Files are relative to the hub's folder.
type SinkConfig struct {
	Name       string        `yaml:"name"`        // also of its consumer
	URL        string        `yaml:"url"`         // https; http on this machine only
	Filter     string        `yaml:"filter"`      // of topics; "": all
	SecretFile string        `yaml:"secret_file"` // signs what is posted; nobody else may read it
	CAFile     string        `yaml:"ca_file"`     // who may vouch for URL's host; "": the machine's list
	Batch      int           `yaml:"batch"`       // messages posted at a time; 0: 100
	MaxWait    time.Duration `yaml:"max_wait"`    // of a message for others to be posted with; 0: 1 s
	Timeout    time.Duration `yaml:"timeout"`     // of one request; 0: 10 s
}

// Bounds of a sink's settings.
const (
	defaultBatch   = 100
	maxBatch       = 10_000
	defaultMaxWait = time.Second
	defaultTimeout = 10 * time.Second
	maxTimeout     = 5 * time.Minute
	minSecret      = 16 // bytes
	maxSecret      = 4096
)

func (c SinkConfig) withDefaults() SinkConfig {
	if c.Filter == "" {
		c.Filter = "#"
	}
	if c.Batch == 0 {
		c.Batch = defaultBatch
	}
	if c.MaxWait == 0 {
		c.MaxWait = defaultMaxWait
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	return c
}

// CheckSinks returns an error that names the first setting that can't be used. It opens no file.
func CheckSinks(sinks []SinkConfig) error {
	names := make(map[string]bool)
	for i, c := range sinks {
		if !ValidName(c.Name) {
			return fmt.Errorf("sinks[%d].name: %.80q is not 1 to 64 of a-z, 0-9 and -", i, c.Name)
		}
		if names[c.Name] {
			return fmt.Errorf("sinks[%d].name: there are two sinks of the name %s", i, c.Name)
		}
		names[c.Name] = true
		if err := c.check(); err != nil {
			return fmt.Errorf("sink %s: %w", c.Name, err)
		}
	}
	return nil
}

func (c SinkConfig) check() error {
	c = c.withDefaults()
	if _, err := parseURL(c.URL); err != nil {
		return err
	}
	switch {
	case !ValidFilter(c.Filter):
		return fmt.Errorf("filter: %.80q is no topic filter such as d/+/tele/#", c.Filter)
	case c.SecretFile == "":
		return errors.New("secret_file: it must name a file with the secret that signs what is posted; make one with `openssl rand -hex 32`")
	case c.Batch < 1 || c.Batch > maxBatch:
		return fmt.Errorf("batch: %d is not between 1 and %d", c.Batch, maxBatch)
	case c.MaxWait < time.Millisecond || c.MaxWait > maxTimeout:
		return fmt.Errorf("max_wait: %s is not between 1ms and %s", c.MaxWait, maxTimeout)
	case c.Timeout < 100*time.Millisecond || c.Timeout > maxTimeout:
		return fmt.Errorf("timeout: %s is not between 100ms and %s", c.Timeout, maxTimeout)
	}
	return nil
}

// parseURL accepts https URLs, and http ones of this machine. Their text is in no error: a token may be in the query.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "":
		return nil, errors.New("url: it is not of the form https://HOST/PATH")
	case u.User != nil:
		return nil, errors.New("url: it has a password in it, which logs and process lists show; the signature says who posts")
	case u.Fragment != "":
		return nil, errors.New("url: it has a fragment (#…), which is never sent")
	case u.Scheme == "https", u.Scheme == "http" && local(u.Hostname()):
		return u, nil
	case u.Scheme == "http":
		return nil, fmt.Errorf("url: http is for this machine only (127.0.0.1, ::1, localhost): %s needs https", u.Hostname())
	}
	return nil, fmt.Errorf("url: the scheme %.20q is neither https nor http", u.Scheme)
}

func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// target is a sink's configuration with what its files say. It is never changed.
type target struct {
	SinkConfig
	url    *url.URL
	secret []byte
	roots  []byte // PEM, to see whether it changed
	pool   *x509.CertPool
}

// load reads a sink's files; dir is the hub's folder.
func (c SinkConfig) load(dir string) (*target, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	t := &target{SinkConfig: c.withDefaults()}
	var err error
	if t.url, err = parseURL(c.URL); err != nil {
		return nil, err
	}
	if t.secret, err = readSecret(within(dir, c.SecretFile)); err != nil {
		return nil, fmt.Errorf("secret_file: %w", err)
	}
	if c.CAFile == "" {
		return t, nil
	}
	certificates, err := pemfile.ReadCertificates(within(dir, c.CAFile))
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	t.pool, t.roots = x509.NewCertPool(), pemfile.EncodeCertificates(certificates...)
	for _, ca := range certificates {
		t.pool.AddCert(ca)
	}
	return t, nil
}

func within(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

// readSecret reads a file that nobody but its owner may read, without the white space at its ends.
func readSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 on it, or make another secret if others had access", path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	secret := []byte(strings.TrimSpace(string(data)))
	if len(secret) < minSecret || len(data) > maxSecret {
		return nil, fmt.Errorf("%s has a secret of %d bytes, not %d to %d: make one with `openssl rand -hex 32`", path, len(secret), minSecret, maxSecret)
	}
	return secret, nil
}

// errNotLocal is for a name of this machine that leads elsewhere.
var errNotLocal = errors.New("http is for this machine only, and the address is another's")

// client returns an HTTP client for the target: TLS 1.2 or newer, no redirects, one connection kept.
func (t *target) client() *http.Client {
	dialer := &net.Dialer{Timeout: t.Timeout}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.pool},
		TLSHandshakeTimeout:    t.Timeout,
		MaxConnsPerHost:        1,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	if t.url.Scheme == "http" {
		transport.Proxy = nil
		dialer.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
			if host, _, err := net.SplitHostPort(address); err != nil || !local(host) {
				return errNotLocal
			}
			return nil
		}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// shown is the URL for people: without its query, which may hold a token.
func (t *target) shown() string {
	u := *t.url
	u.RawQuery, u.ForceQuery = "", false
	return u.String()
}
