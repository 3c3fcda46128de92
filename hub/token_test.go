package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

// login is an OpenID provider on loopback.
type login struct {
	t   *testing.T
	web *httptest.Server
	key *ecdsa.PrivateKey
}

func newLogin(t *testing.T) *login {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	l := &login{t: t, key: key}
	l.web = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"issuer": l.web.URL, "jwks_uri": l.web.URL + "/keys"})
	}))
	l.web.Config.ErrorLog = log.New(io.Discard, "", 0)
	l.web.StartTLS()
	t.Cleanup(l.web.Close)
	return l
}

// token is for that group, until then.
func (l *login) token(group string, until time.Time) string {
	l.t.Helper()
	maker, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: l.key, KeyID: "k"}}, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	claims, err := json.Marshal(map[string]any{"iss": l.web.URL, "aud": "hub", "sub": "u1", "exp": until.Unix(), "realm_access": map[string]any{"roles": []string{group}}})
	if err != nil {
		l.t.Fatal(err)
	}
	signed, err := maker.Sign(claims)
	if err != nil {
		l.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		l.t.Fatal(err)
	}
	return text
}

func TestOperatorComesWithAToken(t *testing.T) {
	l := newLogin(t)
	h := hubtest.Start(t, func(c *server.Config) {
		c.OIDC = server.OIDCConfig{
			Issuer: l.web.URL, Audience: "hub", RoleClaim: "realm_access.roles", CAFile: "login.pem",
			Roles: map[string]string{"readers": "viewer", "fleet": "operator"},
		}
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.web.Certificate().Raw})
		if err := os.WriteFile(filepath.Join(c.Dir, "login.pem"), ca, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	h.Device("pi-1")
	file := func(name, token string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hour := time.Now().Add(time.Hour)
	reader, fleet := file("reader", l.token("readers", hour)), file("fleet", l.token("fleet", hour)+"\n")
	says(t, h, "device list --token-file "+reader, `^pi-1 `)
	if _, err := hub(t, h, "device", "suspend", "pi-1", "--token-file", reader); command.Code(err) != command.Denied || !strings.Contains(err.Error(), "fleet") {
		t.Errorf("a reader suspends: %v", err)
	}
	says(t, h, "device suspend pi-1 --token-file "+fleet, "suspended")
	says(t, h, "audit list --token-file "+reader, `device\.suspend .*oidc:`+l.web.URL+`#u1|oidc:`+l.web.URL+`#u1.*device\.suspend`)

	// The environment comes before the operator in --dir, and after the flags.
	t.Setenv(server.TokenVariable, l.token("readers", hour))
	if _, err := hub(t, h, "device", "resume", "pi-1"); command.Code(err) != command.Denied {
		t.Errorf("a reader resumes: %v", err)
	}
	says(t, h, "device resume pi-1 --token-file "+fleet, "pi-1")
	says(t, h, "device suspend pi-1 --credentials "+filepath.Join(h.Dir, "operator"), "suspended")
	if _, err := server.LoadConfig(initHub(t), os.Environ()); err != nil {
		t.Errorf("a token in the environment is taken for a setting: %v", err)
	}

	open := file("open", l.token("fleet", hour))
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file string
		code int
		say  string
	}{
		"expired":            {file("expired", l.token("fleet", time.Now().Add(-time.Minute))), command.Denied, "expired"},
		"of nobody here":     {file("guest", l.token("guests", hour)), command.Denied, "realm_access.roles"},
		"empty":              {file("empty", " \n"), command.Usage, "empty"},
		"no token":           {file("note", "call me"), command.Usage, "JWT"},
		"readable by others": {open, command.Usage, "chmod"},
		"missing":            {filepath.Join(t.TempDir(), "none"), command.Failure, "none"},
	} {
		_, err := hub(t, h, "device", "list", "--token-file", tt.file)
		if command.Code(err) != tt.code || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v (%d)", name, err, command.Code(err))
		}
	}
	if strings.Contains(h.Log(), strings.Split(l.token("fleet", hour), ".")[0]) {
		t.Error("a token is in the log")
	}
}
