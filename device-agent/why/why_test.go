package why_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/device-agent/why"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDeviceHearsHowItStands(t *testing.T) {
	h := hubtest.Start(t)
	url := "https://" + h.HTTPSAddr()
	device, stranger := h.Device("pi-1"), h.Fleet.Device("pi-2")
	ask := func(c certtest.Credential) why.Answer {
		t.Helper()
		a, err := why.Ask(t.Context(), url, c.Credentials)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask(device); a.ID != "pi-1" || !a.MayConnect || a.ForGood() || a.State != "registered" || a.Since.IsZero() || a.Clock != "" {
		t.Errorf("registered: %+v", a)
	}
	if a := ask(stranger); a.MayConnect || a.ForGood() || a.State != "" || !strings.Contains(a.Verdict, "not registered") {
		t.Errorf("not registered: %+v", a)
	}
	if _, err := h.Operator().Suspend(t.Context(), "pi-1", "secret words"); err != nil {
		t.Fatal(err)
	}
	if a := ask(device); a.MayConnect || a.ForGood() || a.State != "suspended" || !strings.Contains(a.Verdict, "suspended since") {
		t.Errorf("suspended: %+v", a)
	}
	if _, err := h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	if a := ask(device); a.MayConnect || !a.ForGood() || a.State != "revoked" || !strings.Contains(a.Verdict, "keyCompromise") {
		t.Errorf("revoked: %+v", a)
	}
	h.Advance(72 * time.Hour)
	if a := ask(stranger); a.Clock != "its clock is 3 days slow" {
		t.Errorf("with a slow clock: %+v", a)
	}
}

func TestWhatIsNoAnswerIsSaidInASentenceOfItsKind(t *testing.T) {
	h := hubtest.Start(t)
	device, foreign := h.Device("pi-1"), certtest.New(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	stolen := foreign.Device("pi-1")
	stolen.Roots = h.Fleet.Bundle()
	stranger := device.Credentials
	stranger.Roots = foreign.Bundle()
	closed := silent.Addr().String()
	silent.Close()
	for name, tt := range map[string]struct {
		server string
		cred   mtls.Credentials
		kind   error // nil: none of them
		says   string
	}{
		"the port for MQTT":        {"https://" + h.MQTTAddr(), device.Credentials, why.ErrNoHub, "not that for MQTT"},
		"the port for metrics":     {"https://" + h.MetricsAddr(), device.Credentials, why.ErrNoHub, "8443"},
		"plain HTTP":               {plain.URL, device.Credentials, nil, "https://HOST:8443"},
		"no URL":                   {"hub:8443", device.Credentials, nil, "https://HOST:8443"},
		"nobody there":             {"https://" + closed, device.Credentials, why.ErrUnreachable, closed},
		"no such name":             {"https://hub.invalid:8443", device.Credentials, why.ErrUnreachable, "hub.invalid"},
		"a certificate of a thief": {"https://" + h.HTTPSAddr(), stolen.Credentials, why.ErrDenied, "hub why"},
		"a service":                {"https://" + h.HTTPSAddr(), h.Fleet.Service("pi-1").Credentials, why.ErrDenied, "for devices"},
		"another fleet's hub":      {"https://" + h.HTTPSAddr(), stranger, why.ErrUntrusted, h.HTTPSAddr()},
	} {
		_, err := why.Ask(t.Context(), tt.server, tt.cred)
		if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnswersOfSomethingElseAreNotBelieved(t *testing.T) {
	fleet := certtest.New(t)
	for name, answer := range map[string]http.HandlerFunc{
		"another program": func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) },
		"not found":       func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"a redirection":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"half an answer": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(`{"id":"pi-1"`))
		},
		"without end": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(`{"verdict":"` + strings.Repeat("x", 1<<20)))
		},
		"an error": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusInternalServerError)
			w.Write([]byte(`{"detail":"the disk is broken"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(answer)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{fleet.Server().Certificate}}
			server.StartTLS()
			defer server.Close()
			if a, err := why.Ask(t.Context(), server.URL, fleet.Device("pi-1").Credentials); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}
