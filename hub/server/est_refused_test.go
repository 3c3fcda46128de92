package server_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/why"
)

func TestRenewalIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		with   func(h *hubtest.Hub) certtest.Credential // nil: the device's own
		before func(t *testing.T, h *hubtest.Hub)
		status int // 0: the handshake fails
		says   string
		noted  string // of whom hub why tells; "": nobody
	}{
		"revoked": {before: func(t *testing.T, h *hubtest.Hub) {
			must1(h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise))(t)
		}, status: http.StatusForbidden, says: "is revoked", noted: "pi-1"},
		"suspended": {before: func(t *testing.T, h *hubtest.Hub) {
			must1(h.Operator().Suspend(t.Context(), "pi-1", "look"))(t)
		}, status: http.StatusForbidden, says: "is suspended", noted: "pi-1"},
		"expired beyond the grace": {before: func(_ *testing.T, h *hubtest.Hub) { h.Advance(10*365*24*time.Hour + 721*time.Hour) }},
		"short-lived, and expired beyond the grace": {with: func(h *hubtest.Hub) certtest.Credential {
			brief := h.Fleet.Device("pi-5", certtest.WithValidity(time.Now().Add(-time.Minute), time.Hour))
			h.Register(brief)
			return brief
		}, before: func(_ *testing.T, h *hubtest.Hub) { h.Advance(723 * time.Hour) }, says: "expired", noted: "pi-5"},
		"not registered": {with: func(h *hubtest.Hub) certtest.Credential { return h.Fleet.Device("pi-3") },
			status: http.StatusForbidden, says: "not registered", noted: "pi-3"},
		"another certificate of that name": {with: func(h *hubtest.Hub) certtest.Credential { return h.Fleet.Device("pi-1") },
			status: http.StatusForbidden, says: "not one that is registered for device pi-1", noted: "pi-1"},
		"another CA's": {with: func(h *hubtest.Hub) certtest.Credential { return h.Fleet.Foreign().Device("pi-1") }},
		"a removed issuer's": {before: func(t *testing.T, h *hubtest.Hub) {
			must(t, os.Remove(filepath.Join(h.Dir, "issuers", certtest.StationName+".crt")))
			h.Server().Reload()
		}},
		"a service's": {with: func(h *hubtest.Hub) certtest.Credential { return h.Fleet.Service("pi-1") },
			status: http.StatusForbidden, says: "not accepted here"},
		"the issuing key is away": {before: func(t *testing.T, h *hubtest.Hub) { must(t, os.Remove(filepath.Join(h.Dir, "ca", "operational.key"))) },
			status: http.StatusServiceUnavailable, says: "not at the hub now", noted: "pi-1"},
		"superseded": {with: func(h *hubtest.Hub) certtest.Credential {
			former := h.Device("pi-4")
			h.Supersede(former, h.Fleet.Device("pi-4"))
			return former
		}, status: http.StatusForbidden, says: "another has taken its place", noted: "pi-4"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := issuing(t)
			device := h.Device("pi-1")
			if tt.with != nil {
				device = tt.with(h)
			}
			if tt.before != nil {
				tt.before(t, h)
			}
			_, err := renew(t, h, device, newKey(t))
			answer, refused := errors.AsType[*est.ServerError](err)
			switch {
			case err == nil:
				t.Fatal("renewed")
			case tt.status == 0 && refused:
				t.Fatalf("let in, and told %v", err)
			case tt.status != 0 && (!refused || answer.Status != tt.status || !strings.Contains(answer.Detail, tt.says)):
				t.Fatalf("got %v, want status %d that says %q", err, tt.status, tt.says)
			}
			if tt.status == http.StatusServiceUnavailable && answer.RetryAfter <= 0 {
				t.Error("no Retry-After")
			}
			if tt.noted != "" {
				untilWhy(t, h, tt.noted, "that the renewal was refused", func(a admin.Why) bool {
					return slices.ContainsFunc(a.Events, func(e admin.WhyEvent) bool {
						return e.Kind == string(why.NotRenewed) && strings.Contains(e.Words, tt.says)
					})
				})
			}
			if n := usable(t, h, "pi-1"); n > 1 {
				t.Errorf("refused, and now %d certificates are usable", n)
			}
		})
	}
}

func TestRequestForAnotherNameOrTheSameKeyIsRefused(t *testing.T) {
	h := issuing(t)
	device := h.Device("pi-1")
	key := newKey(t)
	other, err := issuance.NewCSR(key, "pi-2")
	must(t, err)
	_, err = estClient(t, h, device).Reenroll(t.Context(), other, key.Public())
	if answer, ok := errors.AsType[*est.ServerError](err); !ok || answer.Status != http.StatusBadRequest {
		t.Errorf("another device's name: %v", err)
	}
	_, err = renew(t, h, device, device.Key)
	if answer, ok := errors.AsType[*est.ServerError](err); !ok || answer.Status != http.StatusBadRequest || !strings.Contains(answer.Detail, "make a new key") {
		t.Errorf("the key it has: %v", err)
	}
	csr, err := issuance.NewCSR(key, "pi-1")
	must(t, err)
	_, err = estClient(t, h, device).Enroll(t.Context(), csr, key.Public())
	if answer, ok := errors.AsType[*est.ServerError](err); !ok || answer.Status != http.StatusForbidden {
		t.Errorf("a first certificate from the hub: %v", err)
	}
}
