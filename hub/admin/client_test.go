package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
)

func TestClientNamesWhatIsWrongWithTheConnection(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	ann := h.pki.Operator("ann", certtest.WithOU("admin"))

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	h.must(err)
	nobody := "https://" + listener.Addr().String()
	h.must(listener.Close())

	impostor := h.pki.Device("pi-1") // a device playing the hub
	foreign := h.pki.Foreign().Server()
	serve := func(certificate tls.Certificate, handler http.HandlerFunc) string {
		s := httptest.NewUnstartedServer(handler)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		s.Config.ErrorLog = discardLog
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	other := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", http.StatusTeapot) }

	for _, tt := range []struct {
		name       string
		url        string
		credential certtest.Credential
		kind       error
		say        string
	}{
		{"no hub", nobody, ann, ErrUnreachable, "no hub answers at " + nobody},
		{"no hub, with a remedy", nobody, ann, ErrUnreachable, "hub serve --dir"},
		{"no such host", "https://hub.invalid:8443", ann, ErrUnreachable, "--hub"},
		{"a device's certificate", h.url, h.pki.Device("pi-2"), ErrDenied, "refused"},
		{"a service's certificate", h.url, h.pki.Service("svc"), ErrDenied, "refused"},
		{"another fleet's server", serve(foreign.Certificate, other), ann, nil, "not this fleet's hub"},
		{"a device as server", serve(impostor.Certificate, other), ann, nil, "not this fleet's hub"},
		{"some other server", serve(h.pki.Server().Certificate, other), ann, nil, "418"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := NewClient(tt.url, tt.credential.Credentials)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Devices(t.Context(), "", 0)
			if err == nil || !strings.Contains(err.Error(), tt.say) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error = %v, want %q", err, tt.say)
			}
			if tt.kind != nil && !errors.Is(err, tt.kind) {
				t.Fatalf("error = %v, want kind %v", err, tt.kind)
			}
		})
	}
}

func TestClientStopsWithItsContext(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	c := h.client(h.pki.Operator("ann", certtest.WithOU("admin")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Device(ctx, "pi-1"); !errors.Is(err, context.Canceled) {
		t.Fatalf("error = %v", err)
	}
}

func TestClientWantsAPlainHTTPSAddress(t *testing.T) {
	for _, u := range []string{"", "hub.example:8443", "http://hub.example", "https://", "https://u:p@hub.example", "https://hub.example/x", "https://hub.example?x=1", "://"} {
		if _, err := NewClient(u, certtest.New(t).Operator("ann").Credentials); err == nil || !strings.Contains(err.Error(), "https://HOST:PORT") {
			t.Errorf("%q: error = %v", u, err)
		}
	}
}
