package admin

import (
	"fmt"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/ticket"
)

// TicketState is the ring of ticket keys, and what became of tickets since the hub
// started.
type TicketState struct {
	LifetimeSeconds int64       `json:"lifetime_seconds"` // of a ticket
	Keys            []TicketKey `json:"keys"`             // newest first
	Since           time.Time   `json:"since"`            // when counting began
	Minted          uint64      `json:"minted"`           // compact tickets made
	Fallback        uint64      `json:"fallback"`         // crypto/tls's own, made instead
	Accepted        uint64      `json:"accepted"`         // compact tickets turned back into a session
	Rejected        uint64      `json:"rejected"`         // presented and worth nothing: a full handshake followed
}

// TicketKey is one key, without the key.
type TicketKey struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Seals   bool      `json:"seals,omitempty"` // new tickets are sealed with it; with the others, old ones are opened
}

// rotation is the body of a request to rotate.
type rotation struct {
	Drop   bool   `json:"drop,omitempty"`
	Reason string `json:"reason,omitempty"`
}

func (a *api) showTickets(*http.Request) (TicketState, error) { return a.ticketState(), nil }

func (a *api) ticketState() TicketState {
	ring, stats := a.config.Tickets, a.config.TicketStats
	state := TicketState{
		LifetimeSeconds: int64(ring.Lifetime() / time.Second), Since: a.config.Started,
		Minted: stats.Minted.Load(), Fallback: stats.Fallback.Load(), Accepted: stats.Accepted.Load(), Rejected: stats.Rejected.Load(),
	}
	for i, k := range ring.Keys() {
		state.Keys = append(state.Keys, TicketKey{ID: k.ID, Created: k.Created, Seals: i == 0})
	}
	return state
}

func (a *api) rotateTickets(r *http.Request, body rotation) (TicketState, error) {
	action, rotate := "tickets.rotate", (*ticket.Ring).Rotate
	if body.Drop {
		action, rotate = "tickets.drop", (*ticket.Ring).Drop
	}
	err := a.config.Fleet.Audited(r.Context(), actor(r), fleet.Note{Action: action, Subject: "ticket keys", Reason: body.Reason}, func() (string, error) {
		before := a.config.Tickets.Len()
		err := rotate(a.config.Tickets)
		return fmt.Sprintf("%d keys before, %d after", before, a.config.Tickets.Len()), err
	})
	return a.ticketState(), err
}
