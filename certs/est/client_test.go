package est

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

// serve runs a TLS server that asks for client certificates and takes whichever come.
func serve(t testing.TB, h http.Handler) (url string, cert *x509.Certificate) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, s.Certificate()
}

func client(t testing.TB, c ClientConfig) *Client {
	t.Helper()
	made, err := NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.Close)
	return made
}

func pinOf(cert *x509.Certificate) *Pin {
	pin := PinOf(cert)
	return &pin
}

func TestClientAndHandlerUnderstandEachOther(t *testing.T) {
	a, config := newAuthority(t)
	url, server := serve(t, NewHandler(config))
	device := a.fleet.Device("any")
	c := client(t, ClientConfig{URL: url, Pin: pinOf(server), Token: secret, Certificate: &device.Certificate})
	ctx := t.Context()
	cas, err := c.CACerts(ctx)
	if err != nil || len(cas) != 3 {
		t.Fatal(cas, err)
	}
	if attributes, err := c.CSRAttrs(ctx); err != nil || string(attributes) != string(DefaultAttributes()) {
		t.Errorf("%x %v", attributes, err)
	}
	der, csr := newCSR(t)
	for name, enroll := range map[string]func() (*x509.Certificate, error){
		"enroll":   func() (*x509.Certificate, error) { return c.Enroll(ctx, der, csr.PublicKey) },
		"reenroll": func() (*x509.Certificate, error) { return c.Reenroll(ctx, der, csr.PublicKey) },
	} {
		cert, err := enroll()
		if err != nil || cert.Subject.CommonName != "board-7" {
			t.Errorf("%s: %v %v", name, cert, err)
		}
	}
	if binding, err := c.ServerBinding(ctx); err != nil || string(binding) != string(Binding(server)) {
		t.Errorf("%x %v", binding, err)
	}
}

func TestClientTellsItsTokenToThePinnedServerOnly(t *testing.T) {
	told := false
	url, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { told = told || token(r) != "" }))
	other := certtest.New(t)
	der, csr := newCSR(t)
	for name, config := range map[string]ClientConfig{
		"another pin":   {URL: url, Pin: pinOf(other.Root.Certificate()), Token: secret},
		"another fleet": {URL: url, TLS: mtls.ClientConfig(mtls.ClientOptions{Roots: other.Bundle()}), Token: secret},
	} {
		_, err := client(t, config).Enroll(t.Context(), der, csr.PublicKey)
		if !errors.Is(err, ErrUntrusted) || told {
			t.Errorf("%s: %v, told %t", name, err, told)
		}
	}
}

func TestClientRefusesAnswersThatAreNone(t *testing.T) {
	a, _ := newAuthority(t)
	der, csr := newCSR(t)
	certs := func(list ...*x509.Certificate) string {
		message, err := encodeCerts(list...)
		if err != nil {
			t.Fatal(err)
		}
		return string(encodeBase64(message))
	}
	for name, c := range map[string]struct {
		status          int
		mediaType, body string
		want            string
		is              error
	}{
		"another key":     {200, typeResponse, certs(a.fleet.Device("any").Leaf), "another key", ErrMalformed},
		"no certificate":  {200, typeResponse, certs(), "0 certificates", ErrMalformed},
		"a web page":      {200, "text/html", "<html>", "is it an EST server?", ErrMalformed},
		"not base64":      {200, typeResponse, "<html>", "base64", ErrMalformed},
		"no CMS":          {200, typeResponse, encoded([]byte{0x30, 0}), "no CMS message", ErrMalformed},
		"too long":        {200, typeResponse, strings.Repeat("A", maxAnswer+1), "more than", ErrMalformed},
		"denied":          {403, "text/plain", "not you\nsecond line", "not you", ErrDenied},
		"no such token":   {401, "text/plain", "\x1b[31mno\x00", "?[31mno?", ErrDenied},
		"a long story":    {403, "text/plain", strings.Repeat("long ", 10_000), "long long", ErrDenied},
		"a redirect":      {302, "text/plain", "elsewhere", "302", nil},
		"accepted, later": {202, "text/plain", "later", "has not decided yet: later", nil},
	} {
		t.Run(name, func(t *testing.T) {
			url, server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.mediaType)
				w.Header().Set("Location", "https://elsewhere.example/")
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}))
			_, err := client(t, ClientConfig{URL: url, Pin: pinOf(server)}).Enroll(t.Context(), der, csr.PublicKey)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) || len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\x00\x1b\n") {
				t.Errorf("%v", err)
			}
			if refusal, ok := errors.AsType[*ServerError](err); ok && (refusal.RetryAfter != 7*time.Second || refusal.Temporary() != (c.status == 202)) {
				t.Errorf("%+v", refusal)
			}
		})
	}
}

func TestClientSaysThatNobodyAnswers(t *testing.T) {
	url, server := serve(t, http.NotFoundHandler())
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, url := range []string{strings.Replace(gone.URL, "http:", "https:", 1), "https://no-such-host.invalid:1"} {
		if _, err := client(t, ClientConfig{URL: url, Pin: pinOf(server)}).CACerts(t.Context()); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", url, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client(t, ClientConfig{URL: url, Pin: pinOf(server)}).CACerts(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestClientTakesHTTPSURLsOnly(t *testing.T) {
	for _, url := range []string{"", "http://a:1", "https://", "https://a/x", "https://u@a", "https://a?x", "a:9443", "https://a:1#x"} {
		if _, err := NewClient(ClientConfig{URL: url}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestTokenIsReadAsItIsWritten(t *testing.T) {
	cert := certtest.New(t).Root.Certificate()
	token := NewToken(cert)
	for _, text := range []string{token.String(), strings.ToUpper(token.String()), " " + token.String() + "\n"} {
		if read, err := ParseToken(text); err != nil || read != token || !read.Pin.admits(cert) {
			t.Errorf("%q: %v %v", text, read, err)
		}
	}
	if NewToken(cert).Secret == token.Secret || len(token.Secret) != 26 {
		t.Error("secrets repeat, or are short")
	}
	text := token.String()
	for _, bad := range []string{"", text[1:], text[:len(text)-1], text + "a", strings.Replace(text, ".", ":", 1), strings.Replace(text, "fh1", "fh2", 1), "fh1." + token.Secret} {
		if _, err := ParseToken(bad); !errors.Is(err, ErrMalformed) || strings.Contains(err.Error(), token.Secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// BenchmarkEnroll is the protocol alone: no ledger, and a certificate that is there.
func BenchmarkEnroll(b *testing.B) {
	a, config := newAuthority(b)
	der, csr := newCSR(b)
	ready, err := a.issue(Request{CSR: csr})
	if err != nil {
		b.Fatal(err)
	}
	ready.Sent = nil
	config.Enroll = func(context.Context, Request) (Answer, error) { return ready, nil }
	url, server := serve(b, NewHandler(config))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c, err := NewClient(ClientConfig{URL: url, Pin: pinOf(server), Token: secret})
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		for pb.Next() {
			if _, err := c.Enroll(context.Background(), der, csr.PublicKey); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "enrolments/s")
}
