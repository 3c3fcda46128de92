package server_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// parts returns what a client keeps of a session: the hub's ticket, and its own half.
func parts(t *testing.T, c *tls.ClientSessionState) (ticket []byte, own *tls.SessionState) {
	t.Helper()
	ticket, own, err := c.ResumptionState()
	if err != nil || len(ticket) == 0 {
		t.Fatalf("ticket of %d octets: %v", len(ticket), err)
	}
	return ticket, own
}

func forged(t *testing.T, ticket []byte, own *tls.SessionState) *tls.ClientSessionState {
	t.Helper()
	c, err := tls.NewResumptionState(ticket, own)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A ticket that the hub didn't make, or not like this, costs its bearer a full
// handshake and the hub nothing.
func TestDamagedTicketLeadsToAFullHandshake(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			config, held := holding(t, h, h.Device("pi-1"), version)
			ticket, own := parts(t, held.state)
			damaged := map[string][]byte{
				"one octet more": append(slices.Clone(ticket), 0),
				"twice":          append(slices.Clone(ticket), ticket...),
				"zeros":          make([]byte, len(ticket)),
				"8 kB":           bytes.Repeat([]byte{0xa5}, 8<<10),
			}
			for n := 1; n < len(ticket); n++ {
				damaged[fmt.Sprintf("first %d octets", n)] = ticket[:n]
			}
			for i := range ticket {
				flipped := slices.Clone(ticket)
				flipped[i] ^= 1 << (i % 8)
				damaged[fmt.Sprintf("bit %d of octet %d flipped", i%8, i)] = flipped
			}
			for name, bad := range damaged {
				held.state = forged(t, bad, own)
				if mustDial(t, h, config) {
					t.Errorf("%s: resumed", name)
				}
			}
			held.state = forged(t, ticket, own)
			if !mustDial(t, h, config) {
				t.Error("the ticket itself is worthless, so nothing is proved")
			}
			if strings.Contains(h.Log(), "panic") {
				t.Error("the hub panicked")
			}
		})
	}
}

// The ticket alone, overheard on the wire, is worth nothing without the secret that
// went with it; with both, its bearer is who the ticket says and nobody else.
func TestTicketReplayedFromAnotherClient(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			_, ofVictim := holding(t, h, h.Device("pi-1"), version)
			thief, held := holding(t, h, h.Device("pi-2"), version)
			ticket, _ := parts(t, ofVictim.state)
			_, own := parts(t, held.state)
			held.state = forged(t, ticket, own)
			if c, err := dial(h.MQTTAddr(), thief); err == nil {
				if c.ConnectionState().DidResume {
					t.Error("resumed with a ticket of another client")
				}
				c.Close()
			}
			// Ticket and secret: the session is the victim's, so it can't be used under another name.
			stolen := h.Fleet.Device("pi-2")
			client, err := connect(t, h.MQTTAddr(), stolen, &kept{state: ofVictim.state})
			if err == nil {
				client.Disconnect(100)
				t.Error("pi-2 was let in by the session of pi-1")
			}
			eventually(t, "refused as pi-1", func() bool { return strings.Contains(h.Log(), "reason=client-identifier id=pi-1") })
			if strings.Contains(h.Log(), "panic") {
				t.Error("the hub panicked")
			}
		})
	}
}

func TestTicketOfAnOldKeyOrAnotherTime(t *testing.T) {
	for _, test := range []struct {
		name    string
		between func(t *testing.T, h *hubtest.Hub)
		before  time.Duration // of the hub's clock, while the ticket is made
		resumes bool
	}{
		{"key rotated", func(t *testing.T, h *hubtest.Hub) { must1(h.Operator().RotateTickets(t.Context(), ""))(t) }, 0, true},
		{"key rotated, hub restarted", func(t *testing.T, h *hubtest.Hub) {
			must1(h.Operator().RotateTickets(t.Context(), ""))(t)
			h.Restart()
		}, 0, true},
		{"keys dropped", func(t *testing.T, h *hubtest.Hub) { must1(h.Operator().DropTickets(t.Context(), "drill"))(t) }, 0, false},
		{"keys dropped, hub restarted", func(t *testing.T, h *hubtest.Hub) {
			must1(h.Operator().DropTickets(t.Context(), "drill"))(t)
			h.Restart()
		}, 0, false},
		{"older than its lifetime", func(_ *testing.T, h *hubtest.Hub) { h.Advance(25 * time.Hour) }, 0, false},
		{"from a clock two hours ahead", func(_ *testing.T, h *hubtest.Hub) { h.Advance(-2 * time.Hour) }, 2 * time.Hour, false},
	} {
		for _, version := range versions {
			t.Run(test.name+"/"+tls.VersionName(version), func(t *testing.T) {
				h := hubtest.Start(t)
				h.Advance(test.before)
				config, _ := holding(t, h, h.Device("pi-1"), version)
				test.between(t, h)
				if got := mustDial(t, h, config); got != test.resumes {
					t.Errorf("resumed %v, want %v", got, test.resumes)
				}
			})
		}
	}
}

// A restart of the hub is not a storm of full handshakes.
func TestFleetResumesAfterARestart(t *testing.T) {
	const devices = 300
	h := hubtest.Start(t)
	var all []certtest.Credential
	for i := range devices {
		all = append(all, h.Fleet.Device(fmt.Sprintf("pi-%03d", i)))
	}
	h.Register(all...)
	configs := make([]*tls.Config, devices)
	for i, d := range all {
		configs[i] = d.ClientConfig()
		configs[i].MaxVersion = versions[i%len(versions)]
		configs[i].ClientSessionCache = tls.NewLRUClientSessionCache(1)
		mustDial(t, h, configs[i])
	}
	h.Restart()
	resumed := 0
	for _, config := range configs {
		if mustDial(t, h, config) {
			resumed++
		}
	}
	t.Logf("%d of %d resumed", resumed, devices)
	if resumed*100 < devices*99 {
		t.Errorf("%d of %d resumed, less than 99 %%", resumed, devices)
	}
}
