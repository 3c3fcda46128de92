package admin

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/ticket"
)

// noPolicies is a hub's policy that nobody asks anything.
type noPolicies struct{ Policies }

func (noPolicies) State() PolicyState { return PolicyState{} }

// everything is a hub with every endpoint there is.
func everything(t *testing.T) *hub {
	ring, err := ticket.OpenRing(filepath.Join(t.TempDir(), "tickets.json"), ticket.Config{})
	if err != nil {
		t.Fatal(err)
	}
	consumers := newMessages(t).config.Consumers
	return newHub(t, anyCertificate, func(c *Config) {
		c.Consumers, c.Policies = consumers, noPolicies{}
		c.Issuers, c.Tickets, c.TicketStats = &fakeIssuers{}, ring, new(ticket.Stats)
		c.Backup = func(context.Context, io.Writer) error { return nil }
		c.Watch = func(ctx context.Context, _ string, _ func(Message)) error { <-ctx.Done(); return nil }
	})
}

// demanded is what each endpoint takes. An endpoint that isn't here fails the test: think
// about who may, then add it.
var demanded = map[string]Role{
	"GET /v1/devices":                  Viewer,
	"GET /v1/devices/{id}":             Viewer,
	"POST /v1/devices/{id}/suspend":    Operator,
	"POST /v1/devices/{id}/resume":     Operator,
	"POST /v1/devices/{id}/revoke":     Operator,
	"POST /v1/devices/{id}/retire":     Operator,
	"POST /v1/devices/{id}/replace":    Operator,
	"POST /v1/devices/{id}/reinstate":  Admin,
	"POST /v1/devices/{id}/label":      Operator,
	"POST /v1/selections/suspend":      Operator,
	"POST /v1/selections/resume":       Operator,
	"POST /v1/selections/revoke":       Operator,
	"POST /v1/selections/retire":       Operator,
	"POST /v1/selections/label":        Operator,
	"GET /v1/proposals":                Viewer,
	"POST /v1/proposals/{id}/approve":  Operator,
	"POST /v1/proposals/{id}/withdraw": Operator,
	"GET /v1/receipts":                 Viewer,
	"GET /v1/receipts/{id}":            Viewer,
	"GET /v1/receipts/{id}/signed":     Viewer,
	"POST /v1/manifests":               Operator,
	"GET /v1/watch":                    Viewer,
	"GET /v1/audit":                    Viewer,
	"GET /v1/audit/head":               Viewer,
	"GET /v1/audit/verify":             Viewer,
	"GET /v1/audit/export":             Viewer,
	"GET /v1/messages":                 Viewer,
	"GET /v1/consumers":                Viewer,
	"GET /v1/consumers/{name}":         Viewer,
	"PUT /v1/consumers/{name}":         Operator,
	"DELETE /v1/consumers/{name}":      Operator,
	"GET /v1/sinks":                    Viewer,
	"GET /v1/policy":                   Viewer,
	"GET /v1/policy/explain":           Viewer,
	"POST /v1/policy/reload":           Admin,
	"GET /v1/backup":                   Admin,
	"GET /v1/issuers":                  Viewer,
	"GET /v1/issuers/{name}/removal":   Viewer,
	"POST /v1/issuers/{name}/remove":   Admin,
	"POST /v1/issuers/{name}/revoke":   Admin,
	"GET /v1/tickets":                  Viewer,
	"POST /v1/tickets/rotate":          Admin,
}

// TestRoleMatrix asks every endpoint of the API in every role, with no body and none that
// could do anything, and with certificates that are no operator's.
func TestRoleMatrix(t *testing.T) {
	h := everything(t)
	routes := newAPI(h.config, t.Context()).routes
	if len(routes) != len(demanded) {
		t.Errorf("the API has %d endpoints, %d are demanded", len(routes), len(demanded))
	}
	type caller struct {
		name       string
		credential certtest.Credential
		role       Role // -1: none
	}
	callers := []caller{
		{"no role", h.pki.Operator("zoe"), Viewer},
		{"viewer", h.pki.Operator("vic", certtest.WithOU("viewer")), Viewer},
		{"something else", h.pki.Operator("sue", certtest.WithOU("Admin", "root", "administrator")), Viewer},
		{"operator", h.pki.Operator("oli", certtest.WithOU("operator")), Operator},
		{"admin", h.pki.Operator("ann", certtest.WithOU("admin")), Admin},
		{"all", h.pki.Operator("all", certtest.WithOU("viewer", "operator", "admin")), Admin},
		{"a service that calls itself admin", h.pki.Service("svc", certtest.WithOU("admin")), -1},
		{"a device that calls itself admin", h.pki.Device("pi-1", certtest.WithOU("admin")), -1},
		{"another fleet's admin", h.pki.Foreign().Operator("ann", certtest.WithOU("admin")), -1},
	}
	for _, c := range callers {
		transport := &http.Transport{TLSClientConfig: c.credential.ClientConfig()}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		transport.TLSClientConfig.RootCAs.AddCert(h.pki.Root.Certificate())
		for _, route := range routes {
			want, known := demanded[route.pattern]
			if !known || want != route.role {
				t.Errorf("%s takes the role %v, demanded %v (known %v)", route.pattern, route.role, want, known)
			}
			method, path, _ := strings.Cut(route.pattern, " ")
			path = strings.NewReplacer("{id}", "nobody", "{name}", "nobody").Replace(path)
			ctx, cancel := context.WithCancel(t.Context())
			// A body of the wrong type gets past the role and no further.
			request, err := http.NewRequestWithContext(ctx, method, h.url+path, strings.NewReader("x"))
			h.must(err)
			response, err := transport.RoundTrip(request)
			h.must(err)
			refused := false
			if response.StatusCode == http.StatusForbidden {
				var p Problem
				data, err := io.ReadAll(response.Body)
				h.must(err)
				h.must(json.Unmarshal(data, &p))
				refused = p.Type == problemType+codeRole || p.Type == problemType+codeDenied
				if (p.Type == problemType+codeRole) != (c.role >= 0) {
					t.Errorf("%s, %s: refused with %s", c.name, route.pattern, p.Type)
				}
			}
			if refused != (c.role < want) {
				t.Errorf("%s, %s: status %d, want refused %v", c.name, route.pattern, response.StatusCode, c.role < want)
			}
			cancel()
			response.Body.Close()
		}
		transport.CloseIdleConnections()
	}
}

func TestRoleIsTheHighestThatIsNamed(t *testing.T) {
	for _, tt := range []struct {
		ou   []string
		want Role
	}{
		{nil, Viewer}, {[]string{"viewer"}, Viewer}, {[]string{"operator"}, Operator}, {[]string{"viewer", "admin"}, Admin},
		{[]string{"operator", "admin", "x"}, Admin}, {[]string{"ADMIN"}, Viewer}, {[]string{"admin "}, Viewer},
	} {
		if got := RoleOf(identity.Identity{OU: tt.ou}); got != tt.want {
			t.Errorf("%v is %s, want %s", tt.ou, got, tt.want)
		}
	}
	if !slices.IsSorted([]Role{Viewer, Operator, Admin}) {
		t.Error("the roles are out of order")
	}
}
