package broker

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
)

// paced is a connection that notes when it is told to end; that may take a while.
type paced struct {
	at    time.Time
	stall time.Duration
}

func (p *paced) Disconnect(string) {
	p.at = time.Now()
	time.Sleep(p.stall)
}
func (p *paced) Done() <-chan struct{} { return nil }
func (p *paced) RemoteAddr() net.Addr  { return nil }

// TestManyAreClosedAtThePaceHoweverTheHubIsHeldUp: no faster for as long as it is on time,
// a few at a time while it makes up for a short stall, and on time again in any case.
func TestManyAreClosedAtThePaceHoweverTheHubIsHeldUp(t *testing.T) {
	const n = 4000
	for _, stall := range []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond} {
		t.Run(fmt.Sprint(stall), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conns := make([]session.Conn, n)
				for i := range conns {
					conns[i] = &paced{}
				}
				conns[n/4].(*paced).stall = stall
				began := time.Now()
				disconnectPaced(t.Context(), conns, protocol.ReasonRevoked)
				const whole = (n - closedPerTurn) * (time.Second / closedASecond) // until the last turn
				if took := time.Since(began); took != whole {
					t.Errorf("all took %v, not %v", took, whole)
				}
				together := make(map[time.Time]int)
				for _, c := range conns {
					together[c.(*paced).at]++
				}
				most := closedPerTurn
				if stall > 0 {
					most = closedTogether
				}
				for at, count := range together {
					if late := at.Sub(began) > whole/4 && stall > closedLate; count > most && !late {
						t.Errorf("%d at once after %v", count, at.Sub(began))
					}
				}
			})
		})
	}
}

// TestSlowHubKeepsToTheRate: where every single wake-up comes late, too.
func TestSlowHubKeepsToTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 40_000
		conns := make([]session.Conn, n)
		for i := range conns {
			conns[i] = &paced{}
			if i%closedTogether == 0 { // with a breath behind each of these it would be too slow
				conns[i].(*paced).stall = closedTogether*time.Second/closedASecond - closedBreath*2/5
			}
		}
		began := time.Now()
		disconnectPaced(t.Context(), conns, protocol.ReasonRevoked)
		if took, most := time.Since(began), n*time.Second/closedASecond+closedLate; took > most {
			t.Errorf("all took %v, more than %v", took, most)
		}
	})
}
