package courier

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hub is a server of the fleet that asks for certificates of it.
func hub(t *testing.T, fleet *certtest.Fleet, h http.HandlerFunc) string {
	t.Helper()
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := fleet.Server()
	s := httptest.NewUnstartedServer(h)
	s.TLS = mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify: func(cs tls.ConnectionState) error {
			_, err := verifier.Verify(cs, "operator")
			return err
		},
	})
	s.TLS.Certificates = []tls.Certificate{server.Certificate} // or httptest brings its own
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func TestManifestReachesTheHub(t *testing.T) {
	fleet := certtest.New(t)
	var got string
	url := hub(t, fleet, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(body)
		io.WriteString(w, `{"station":"bench-1","number":3,"devices":2,"registered":1,"superseded":0,"unchanged":1}`)
	})
	c, err := New(url, fleet.Operator("ann").Credentials)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := c.Send(t.Context(), []byte("signed"))
	if err != nil || r != (Receipt{Station: "bench-1", Number: 3, Devices: 2, Registered: 1, Unchanged: 1}) || got != "POST /v1/manifests application/jose signed" {
		t.Errorf("%+v %v %q", r, err, got)
	}
}

func TestRefusalsAreToldApart(t *testing.T) {
	fleet, foreign := certtest.New(t), certtest.New(t)
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	ann := fleet.Operator("ann").Credentials
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, test := range map[string]struct {
		url  string
		cred mtls.Credentials
		is   error
		want string
	}{
		"forbidden":         {hub(t, fleet, answer(403, `{"detail":"not you"}`)), ann, ErrDenied, "not you"},
		"refused":           {hub(t, fleet, answer(422, `{"detail":"manifest rejected: entry 2"}`)), ann, nil, "entry 2"},
		"no problem":        {hub(t, fleet, answer(502, "<html>")), ann, nil, "Bad Gateway"},
		"no hub":            {hub(t, fleet, answer(200, "<html>")), ann, nil, "not as a hub does"},
		"another role":      {hub(t, fleet, answer(200, "")), fleet.Device("pi-1").Credentials, ErrDenied, "doesn't take these credentials"},
		"nobody":            {strings.Replace(gone.URL, "http:", "https:", 1), ann, ErrUnreachable, ""},
		"another fleet hub": {hub(t, foreign, answer(200, "")), ann, nil, "is no hub of this fleet"},
	} {
		c, err := New(test.url, test.cred)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Send(t.Context(), []byte("signed"))
		if err == nil || test.is != nil && !errors.Is(err, test.is) || test.is == nil && (errors.Is(err, ErrDenied) || errors.Is(err, ErrUnreachable)) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
	for _, url := range []string{"http://hub", "hub:8443", "https://hub/x", "https://u@hub"} {
		if _, err := New(url, ann); err == nil {
			t.Errorf("%s: taken", url)
		}
	}
}
