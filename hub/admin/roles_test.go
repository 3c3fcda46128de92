package admin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/ticket"
)

// noPolicies is a hub's policy that nobody asks anything.
type noPolicies struct{ Policies }

func (noPolicies) State() PolicyState { return PolicyState{} }

// noLists is a hub's revocation lists: none.
type noLists struct{}

func (noLists) Lists(context.Context) ([]CRL, error) { return nil, nil }

func (noLists) List(context.Context, string) ([]byte, error) { return nil, ErrNoList }

func (noLists) ImportList(context.Context, []byte, fleet.Actor) (CRLReceipt, error) {
	return CRLReceipt{}, revocation.ErrMalformed
}

// everything is a hub with every endpoint there is.
func everything(t *testing.T, changes ...func(*Config)) *hub {
	ring, err := ticket.OpenRing(filepath.Join(t.TempDir(), "tickets.json"), ticket.Config{})
	if err != nil {
		t.Fatal(err)
	}
	consumers := newMessages(t).config.Consumers
	return newHub(t, certificateOptional, func(c *Config) {
		c.Consumers, c.Policies = consumers, noPolicies{}
		c.Issuers, c.Tickets, c.TicketStats = &fakeIssuers{}, ring, new(ticket.Stats)
		c.Why = func(_ context.Context, id string) (Why, error) { return Why{ID: id}, nil }
		c.Anomalies = func(string) Anomalies { return Anomalies{} }
		c.Lists = noLists{}
		c.Backup = func(context.Context, io.Writer) error { return nil }
		c.Watch = func(ctx context.Context, _ string, _ func(Message)) error { <-ctx.Done(); return nil }
		for _, change := range changes {
			change(c)
		}
	})
}

// demanded is what each endpoint takes. An endpoint that isn't here fails the test: think
// about who may, then add it.
var demanded = map[string]Role{
	"GET /v1/devices":                  Viewer,
	"GET /v1/devices/{id}":             Viewer,
	"POST /v1/devices/{id}/suspend":    Operator,
	"POST /v1/devices/{id}/resume":     Operator,
	"POST /v1/devices/{id}/approve":    Operator,
	"POST /v1/devices/{id}/revoke":     Operator,
	"POST /v1/devices/{id}/retire":     Operator,
	"POST /v1/devices/{id}/replace":    Operator,
	"POST /v1/devices/{id}/reinstate":  Admin,
	"POST /v1/devices/{id}/label":      Operator,
	"GET /v1/devices/{id}/why":         Viewer,
	"GET /v1/anomalies":                Viewer,
	"GET /v1/crls":                     Viewer,
	"GET /v1/crls/{name}":              Viewer,
	"POST /v1/crls":                    Operator,
	"POST /v1/selections/suspend":      Operator,
	"POST /v1/selections/resume":       Operator,
	"POST /v1/selections/approve":      Operator,
	"POST /v1/selections/revoke":       Operator,
	"POST /v1/selections/retire":       Operator,
	"POST /v1/selections/label":        Operator,
	"GET /openapi.json":                Viewer,
	"GET /v1/proposals":                Viewer,
	"GET /v1/proposals/{id}":           Viewer,
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

// caller of the matrix: what it shows, and what it is by that; -1 is nobody.
type matrixCaller struct {
	name       string
	credential *certtest.Credential
	token      string
	role       Role
}

// TestRoleMatrix asks every endpoint of the API in every role, by certificate and by token, with
// no body and none that could do anything, and with certificates and tokens that are no
// operator's. Everybody else is refused before a body is looked at.
func TestRoleMatrix(t *testing.T) {
	tokens := newTokenHub(t, nil)
	h := everything(t, func(c *Config) { c.Tokens = tokens.tokens })
	var routes []route
	for _, r := range newAPI(h.config, t.Context()).routes {
		if !r.elsewhere {
			routes = append(routes, r)
		}
	}
	if len(routes) != len(demanded) {
		t.Errorf("the API has %d endpoints, %d are demanded", len(routes), len(demanded))
	}
	by := func(name string, c certtest.Credential, role Role) matrixCaller {
		return matrixCaller{name: name, credential: &c, role: role}
	}
	for _, c := range []matrixCaller{
		by("no role", h.pki.Operator("zoe"), Viewer),
		by("viewer", h.pki.Operator("vic", certtest.WithOU("viewer")), Viewer),
		by("something else", h.pki.Operator("sue", certtest.WithOU("Admin", "root", "administrator")), Viewer),
		by("operator", h.pki.Operator("oli", certtest.WithOU("operator")), Operator),
		by("admin", h.pki.Operator("ann", certtest.WithOU("admin")), Admin),
		by("all", h.pki.Operator("all", certtest.WithOU("viewer", "operator", "admin")), Admin),
		by("a service that calls itself admin", h.pki.Service("svc", certtest.WithOU("admin")), -1),
		by("a device that calls itself admin", h.pki.Device("pi-1", certtest.WithOU("admin")), -1),
		by("another fleet's admin", h.pki.Foreign().Operator("ann", certtest.WithOU("admin")), -1),
		{name: "a viewer's token", token: tokens.token("viewer", nil), role: Viewer},
		{name: "an operator's token", token: tokens.token("operator", nil), role: Operator},
		{name: "an admin's token", token: tokens.token("admin", nil), role: Admin},
		{name: "a token of several roles", token: tokens.token("admin", map[string]any{"groups": []string{"fleet-viewer", "fleet-operator"}}), role: Operator},
		{name: "a token without a role", token: tokens.token("admin", map[string]any{"groups": []string{"admin"}}), role: -1},
		{name: "a token for another service", token: tokens.token("admin", map[string]any{"aud": "billing"}), role: -1},
		{name: "nobody", role: -1},
	} {
		client := h.httpClient(c.credential)
		for _, route := range routes {
			want, known := demanded[route.pattern]
			if !known || want != route.role {
				t.Errorf("%s takes the role %v, demanded %v (known %v)", route.pattern, route.role, want, known)
			}
			path := strings.NewReplacer("{id}", "nobody", "{name}", "nobody").Replace(route.path())
			ctx, cancel := context.WithCancel(t.Context())
			// A body of the wrong type gets past the role and no further.
			request, err := http.NewRequestWithContext(ctx, route.method(), h.url+path, strings.NewReader("x"))
			h.must(err)
			if c.token != "" {
				request.Header.Set("Authorization", "Bearer "+c.token)
			}
			response, err := client.Do(request)
			h.must(err)
			refused := false
			if response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized {
				var p Problem
				data, err := io.ReadAll(response.Body)
				h.must(err)
				h.must(json.Unmarshal(data, &p))
				refused = p.Type == problemType+codeRole || p.Type == problemType+codeDenied || p.Type == problemType+codeToken
				if c.credential != nil && (p.Type == problemType+codeRole) != (c.role >= 0) {
					t.Errorf("%s, %s: refused with %s", c.name, route.pattern, p.Type)
				}
			}
			if refused != (c.role < want) {
				t.Errorf("%s, %s: status %d, want refused %v", c.name, route.pattern, response.StatusCode, c.role < want)
			}
			cancel()
			response.Body.Close()
		}
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
