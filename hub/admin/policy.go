package admin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/fleet"
	rules "github.com/fleethub/fleethub/hub/policy"
)

// Policies is what the API needs of the policy in force.
type Policies interface {
	// State says which policy is in force.
	State() PolicyState
	// Reload reads the policy file again and puts it in force, audited in the actor's
	// name. On an error that matches ErrBadPolicy, the former policy is.
	Reload(ctx context.Context, actor fleet.Actor, reason string) (PolicyReload, error)
	// Explain decides a question by the policy in force and says why.
	Explain(ctx context.Context, q PolicyQuestion) (PolicyAnswer, error)
}

// ErrBadPolicy is in the chain of the error of a policy file that can't be used.
var ErrBadPolicy = errors.New("the policy in force stays as it was")

// PolicyState is the policy in force.
type PolicyState struct {
	Source   string    `json:"source"` // its file, or "built-in"
	Rules    int       `json:"rules"`
	Sum      string    `json:"sum"` // SHA-256 of the rules
	Since    time.Time `json:"since"`
	Warnings []string  `json:"warnings,omitempty"`
	// Refused is why the file as it was at the last reload is not in force.
	Refused string `json:"refused,omitempty"`
}

// PolicyReload is what a reload did.
type PolicyReload struct {
	PolicyState
	Changed  bool `json:"changed"`
	Sessions int  `json:"sessions"` // that were held against it
	Live     int  `json:"live"`     // subscriptions removed from sessions that are connected
	Stored   int  `json:"stored"`   // and from stored ones
	// Removed are the first of them.
	Removed []RemovedSubscription `json:"removed,omitempty"`
}

// RemovedSubscription is one that the policy no longer allows.
type RemovedSubscription struct {
	Session string `json:"session"` // role/client identifier
	Filter  string `json:"filter"`
}

// PolicyQuestion is what Explain is asked.
type PolicyQuestion struct {
	Role   identity.Role
	ID     string
	Action rules.Action
	Topic  string
}

// PolicyAnswer is a decision, why it is so, and whether whom it is about is there.
type PolicyAnswer struct {
	rules.Explanation
	State  string `json:"state,omitempty"` // of a device
	Online bool   `json:"online"`
}

func (a *api) showPolicy(*http.Request) (PolicyState, error) { return a.config.Policies.State(), nil }

func (a *api) explainPolicy(r *http.Request) (PolicyAnswer, error) {
	q := PolicyQuestion{Role: identity.Role(r.FormValue("role")), ID: r.FormValue("id"), Topic: r.FormValue("topic")}
	if q.Role == "" {
		q.Role = identity.RoleDevice
	}
	action, err := rules.ParseAction(r.FormValue("action"))
	if err != nil {
		return PolicyAnswer{}, invalid("action: %v", err)
	}
	if err := identity.ValidID(q.ID); err != nil {
		return PolicyAnswer{}, invalid("id: %v", err)
	}
	q.Action = action
	return a.config.Policies.Explain(r.Context(), q)
}

func (a *api) reloadPolicy(r *http.Request, body change) (PolicyReload, error) {
	return a.config.Policies.Reload(r.Context(), actor(r), body.words())
}
