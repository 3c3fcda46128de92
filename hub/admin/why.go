package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// Why says how a device stands with the hub, and what became of its last connections.
type Why struct {
	ID         string         `json:"id"`
	State      registry.State `json:"state,omitempty"` // none: it is not registered
	MayConnect bool           `json:"may_connect"`     // with the certificate asked about
	Verdict    string         `json:"verdict"`         // the same in a sentence, and if not, why not
	Online     bool           `json:"online"`
	Clock      string         `json:"clock,omitempty"` // how far the asker's clock is off; of the device's own question only
	Since      time.Time      `json:"since"`           // when the hub began to remember
	Events     []WhyEvent     `json:"events"`          // newest first
}

// WhyEvent is one thing that happened to connections under the device's name.
type WhyEvent struct {
	At      time.Time `json:"at"`
	First   time.Time `json:"first,omitzero"`    // if it happened several times in a row
	Times   int       `json:"times,omitempty"`   // likewise
	Kind    string    `json:"kind"`              // refused, disconnected, denied, connected, not-renewed
	Reason  string    `json:"reason"`            // one word
	Words   string    `json:"words"`             // what it means and what to do
	Address string    `json:"address,omitempty"` // of the peer
	Own     bool      `json:"own"`               // false: somebody came under this name without a certificate that proves it
}

func (a *api) why(r *http.Request) (Why, error) {
	return a.config.Why(r.Context(), r.PathValue("id"))
}

// Why returns how a device stands with the hub and why its connections failed.
func (c *Client) Why(ctx context.Context, id string) (Why, error) {
	return get[Why](ctx, c, "/v1/devices/"+url.PathEscape(id)+"/why", nil)
}

// WhyHandler serves GET /v1/why: a device's own question, which the API beside it would
// refuse for its role. Ask identifies the asker by its request and answers; its error is
// told as a problem.
func WhyHandler(ask func(*http.Request) (Why, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			writeProblem(w, problem(http.StatusMethodNotAllowed, "method", "use GET here, not "+r.Method))
			return
		}
		answer, err := ask(r)
		if err != nil {
			writeProblem(w, problemOf(err))
			return
		}
		writeJSON(w, answer)
	})
}

// Denied is the error of a request by somebody who may not make it.
func Denied(detail string) error { return problem(http.StatusForbidden, codeDenied, detail) }
