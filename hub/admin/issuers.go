package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/hub/fleet"
)

// Issuers is what the API needs of the hub's trust.
type Issuers interface {
	// Issuers returns the issuing CAs trusted now, in order of name.
	Issuers(ctx context.Context) ([]Issuer, error)
	// PlanRemoval says what Remove would do, and changes nothing.
	PlanRemoval(ctx context.Context, name string) (IssuerPlan, error)
	// Remove takes the trust from an issuing CA, durably, and cuts off whoever is
	// connected by it. Its error may match ErrNoIssuer or ErrIssuerNeeded.
	Remove(ctx context.Context, name string) (IssuerReceipt, error)
}

// Errors of Issuers that the API tells apart.
var (
	ErrNoIssuer     = errors.New("no such issuer")
	ErrIssuerNeeded = errors.New("the hub can't do without this issuer")
)

// Issuer is an issuing CA that the hub trusts.
type Issuer struct {
	Name        string    `json:"name"` // its common name: the station's, or hub
	Kind        string    `json:"kind"` // an identity.IssuerKind
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Devices     int       `json:"devices"` // registered with a certificate by it that is neither revoked nor superseded
	Online      int       `json:"online"`  // connections that rest on it, of devices and services
}

// IssuerPlan is what the removal of an issuer would do. Nothing has been changed.
type IssuerPlan struct {
	DryRun   bool       `json:"dry_run"` // always true
	Issuer   Issuer     `json:"issuer"`
	Breaks   int        `json:"breaks"` // could not connect any more: how many Affected has
	Online   int        `json:"online"` // connections that would be cut
	Affected []Affected `json:"affected"`
	Note     string     `json:"note,omitempty"` // what the list can't show
}

// Affected is who would feel the removal of an issuer.
type Affected struct {
	ID      string `json:"id"`
	Role    string `json:"role"`
	State   string `json:"state,omitempty"` // of a device
	Online  bool   `json:"online"`
	Address string `json:"address,omitempty"`
}

// IssuerReceipt is the proof of an issuer's removal: after DurableAt it holds through
// any crash, after EffectiveAt no handshake by a certificate or ticket of it is
// admitted, and after LastSessionClosedAt no connection by it is left.
type IssuerReceipt struct {
	Issuer              Issuer    `json:"issuer"`
	MovedTo             []string  `json:"moved_to"` // where the certificate is now; nothing is destroyed
	RequestedAt         time.Time `json:"requested_at"`
	DurableAt           time.Time `json:"durable_at"`
	EffectiveAt         time.Time `json:"effective_at"`
	Disconnected        []string  `json:"disconnected"` // who was connected by it: role/ID
	SessionsClosed      int       `json:"sessions_closed"`
	LastSessionClosedAt time.Time `json:"last_session_closed_at,omitzero"`
}

// IssuerRemoval is the answer to a removal request: a plan without confirmation, a
// receipt with it.
type IssuerRemoval struct {
	Plan    *IssuerPlan    `json:"plan,omitempty"`
	Receipt *IssuerReceipt `json:"receipt,omitempty"`
}

// IssuerList is one page of the issuing CAs that the hub trusts, in order of name and serial
// number. Next is the after of the following page, empty on the last.
type IssuerList struct {
	Issuers []Issuer `json:"issuers"`
	Next    string   `json:"next,omitempty"`
}

func (a *api) listIssuers(r *http.Request) (IssuerList, error) {
	issuers, err := a.config.Issuers.Issuers(r.Context())
	if err != nil {
		return IssuerList{}, err
	}
	page, next, err := pageOf(r, issuers, func(i Issuer) string { return i.Name + "/" + i.Serial })
	return IssuerList{Issuers: page, Next: next}, err
}

func (a *api) planIssuerRemoval(r *http.Request) (IssuerPlan, error) {
	plan, err := a.config.Issuers.PlanRemoval(r.Context(), r.PathValue("name"))
	plan.DryRun = true
	return plan, err
}

func (a *api) removeIssuer(r *http.Request, body change) (IssuerRemoval, error) {
	name := r.PathValue("name")
	if !body.Confirm {
		plan, err := a.planIssuerRemoval(r)
		return IssuerRemoval{Plan: &plan}, err
	}
	var receipt IssuerReceipt
	note := fleet.Note{Action: "issuer.remove", Subject: "issuer " + name, Reason: body.words()}
	err := a.config.Fleet.Audited(r.Context(), actor(r), note, func() (string, error) {
		var err error
		receipt, err = a.config.Issuers.Remove(r.Context(), name)
		return fmt.Sprintf("serial %s, connections cut: %d", receipt.Issuer.Serial, receipt.SessionsClosed), err
	})
	return IssuerRemoval{Receipt: &receipt}, err
}
