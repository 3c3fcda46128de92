package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// What was answered under an idempotency key is in the hub's own store, and so is what an entity
// tag stands for.
func TestRetryAfterARestartOfTheHubGetsTheAnswerOfBefore(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	operator := h.Fleet.Operator("ann", certtest.WithOU("operator"))
	operator.Roots = h.Fleet.Bundle()
	ask := func(method, path, body string, header map[string]string) (int, string, string) {
		t.Helper()
		transport := &http.Transport{TLSClientConfig: operator.ClientConfig()}
		defer transport.CloseIdleConnections()
		d := &described{Hub: h, t: t, clients: map[string]*http.Client{"ann": {Transport: transport}}}
		r, err := http.NewRequestWithContext(t.Context(), method, d.address(path), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for name, value := range header {
			r.Header.Set(name, value)
		}
		status, answer, content := d.send("ann", r)
		return status, answer.Get("ETag"), string(content)
	}
	const body = `{"reason":"keyCompromise","confirm":true}`
	_, tag, _ := ask("GET", "/v1/devices/pi-1", "", nil)
	key := map[string]string{"Idempotency-Key": `"8e03978e"`, "If-Match": tag}
	status, _, first := ask("POST", "/v1/devices/pi-1/revoke", body, key)
	if status != http.StatusOK || !strings.Contains(first, `"receipt_id"`) {
		t.Fatalf("%d %s", status, first)
	}
	_, revoked, _ := ask("GET", "/v1/devices/pi-1", "", nil)
	h.Restart()
	if status, _, again := ask("POST", "/v1/devices/pi-1/revoke", body, key); status != http.StatusOK || again != first {
		t.Errorf("after a restart: %d %s, before: %s", status, again, first)
	}
	if _, now, _ := ask("GET", "/v1/devices/pi-1", "", nil); now != revoked {
		t.Errorf("the entity tag was %s before the restart and is %s", revoked, now)
	}
	key["Idempotency-Key"] = `"another"`
	if status, _, late := ask("POST", "/v1/devices/pi-1/revoke", body, key); status != http.StatusPreconditionFailed || !strings.Contains(late, "revoked since") {
		t.Errorf("by the tag of before the revocation: %d %s", status, late)
	}
}
