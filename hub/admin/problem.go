package admin

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

const problemMediaType = "application/problem+json"

// problemType begins the type URI of our problems; a code follows.
const problemType = "urn:fleethub:problem:"

// Codes that the client tells apart.
const (
	codeDenied        = "denied"
	codeUnknownDevice = "unknown-device"
	codeUnknownIssuer = "unknown-issuer"
	codeUnknownOrder  = "unknown-order"
	codeRole          = "role"
	codeCount         = "count"

	codeToken    = "token"            // that isn't accepted, or isn't there
	codeProvider = "oidc-unavailable" // whom tokens are judged by

	codeInProgress = "in-progress" // under the same idempotency key
	codeKeyReused  = "key-reused"

	codeChanged = "changed" // a device's record, or a proposal

	codeUnknownConsumer = "unknown-consumer"
	codeMoved           = "moved" // a consumer
	codeGone            = "gone"  // messages
)

// Problem is an error as the API reports it, RFC 9457. It is also the error that the
// client returns for it.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	// From and First say what of the journal is gone: from the one to before the other. They are with code gone only.
	From  uint64 `json:"from,omitempty"`
	First uint64 `json:"first,omitempty"`
}

// Error returns the detail: one sentence for a person.
func (p *Problem) Error() string { return p.Detail }

// Is matches ErrDenied, ErrInvalid, ErrNotFound, ErrCount and ErrMoved.
func (p *Problem) Is(target error) bool {
	switch target {
	case ErrDenied:
		return p.Status == http.StatusForbidden || p.Status == http.StatusUnauthorized
	case ErrInvalid:
		return p.Status == http.StatusBadRequest
	case ErrNotFound:
		return p.Type == problemType+codeUnknownDevice || p.Type == problemType+codeUnknownIssuer || p.Type == problemType+codeUnknownOrder || p.Type == problemType+codeUnknownConsumer
	case ErrMoved:
		return p.Type == problemType+codeMoved
	case ErrCount:
		return p.Type == problemType+codeCount
	}
	return false
}

func problem(status int, code, detail string) *Problem {
	return &Problem{Type: problemType + code, Title: http.StatusText(status), Status: status, Detail: detail}
}

// problemOf translates the errors of fleet and Issuers, here and nowhere else.
func problemOf(err error) *Problem {
	var p *Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, fleet.ErrUnknownDevice):
		return problem(http.StatusNotFound, codeUnknownDevice, err.Error())
	case errors.Is(err, ErrNoIssuer):
		return problem(http.StatusNotFound, codeUnknownIssuer, err.Error())
	case errors.Is(err, ErrIssuerNeeded):
		return problem(http.StatusConflict, "issuer-needed", err.Error())
	case errors.Is(err, ErrBadPolicy):
		return problem(http.StatusUnprocessableEntity, "policy", err.Error())
	case errors.Is(err, fleet.ErrNotAudited):
		return problem(http.StatusInternalServerError, "not-audited", err.Error())
	case errors.Is(err, registry.ErrChanged), errors.Is(err, fleet.ErrReviewed):
		return problem(http.StatusPreconditionFailed, codeChanged, err.Error())
	case errors.Is(err, registry.ErrTransition):
		return problem(http.StatusConflict, "transition", err.Error())
	case errors.Is(err, fleet.ErrRejected):
		return problem(http.StatusUnprocessableEntity, "manifest", err.Error())
	case errors.Is(err, fleet.ErrNoOrder), errors.Is(err, fleet.ErrNoProposal):
		return problem(http.StatusNotFound, codeUnknownOrder, err.Error())
	case errors.Is(err, fleet.ErrCount):
		return problem(http.StatusConflict, codeCount, err.Error())
	case errors.Is(err, fleet.ErrNobody):
		return problem(http.StatusConflict, "nobody", err.Error())
	case errors.Is(err, fleet.ErrSameEyes):
		return problem(http.StatusForbidden, "four-eyes", err.Error())
	case errors.Is(err, fleet.ErrTaken):
		return problem(http.StatusConflict, "id-taken", err.Error())
	case errors.Is(err, registry.ErrTampered):
		return problem(http.StatusConflict, "tampered", err.Error())
	case errors.Is(err, fleet.ErrUnfinished):
		return problem(http.StatusInternalServerError, "unfinished", err.Error())
	case errors.Is(err, fleet.ErrText), errors.Is(err, fleet.ErrOrder):
		return problem(http.StatusBadRequest, "invalid", err.Error())
	case errors.Is(err, fleet.ErrNotDurable):
		return problem(http.StatusInternalServerError, "not-durable", err.Error())
	}
	if p := consumerProblem(err); p != nil {
		return p
	}
	return problem(http.StatusInternalServerError, "internal", err.Error())
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Content-Type", problemMediaType)
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p) // a client that is gone needs no answer
}

// fail answers with err and logs it if it is the hub's own fault.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError {
		a.config.Log.Error("API request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	writeProblem(w, p)
}
