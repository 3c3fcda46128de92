package session

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeConn is done as soon as it is disconnected, unless it hangs.
type fakeConn struct {
	once   sync.Once
	done   chan struct{}
	reason string
	hangs  bool
}

func newConn() *fakeConn { return &fakeConn{done: make(chan struct{})} }

func (c *fakeConn) Disconnect(reason string) {
	c.once.Do(func() {
		c.reason = reason
		if !c.hangs {
			close(c.done)
		}
	})
}
func (c *fakeConn) Done() <-chan struct{} { return c.done }
func (c *fakeConn) RemoteAddr() net.Addr  { return &net.TCPAddr{} }

func device(id string) identity.Identity { return identity.Identity{Role: identity.RoleDevice, ID: id} }
func service(id string) identity.Identity {
	return identity.Identity{Role: identity.RoleService, ID: id}
}

func TestDisconnectCutsEveryConnectionOfThatIdentityOnly(t *testing.T) {
	var table Table
	first, second, other, namesake := newConn(), newConn(), newConn(), newConn()
	table.Track(device("pi-1"), first)
	table.Track(device("pi-1"), second)
	table.Track(device("pi-2"), other)
	table.Track(service("pi-1"), namesake)

	closed, last := table.Disconnect(t.Context(), identity.RoleDevice, "pi-1", "revoked")
	if closed != 2 || last.IsZero() {
		t.Errorf("closed %d, last %v; want 2 and a time", closed, last)
	}
	if first.reason != "revoked" || second.reason != "revoked" {
		t.Errorf("reasons %q, %q", first.reason, second.reason)
	}
	if other.reason != "" || namesake.reason != "" {
		t.Error("a connection of another identity was cut")
	}
}

func TestUnknownIdentityHasNothingToDisconnect(t *testing.T) {
	var table Table
	if closed, last := table.Disconnect(t.Context(), identity.RoleDevice, "nobody", "revoked"); closed != 0 || !last.IsZero() {
		t.Errorf("closed %d, last %v", closed, last)
	}
}

func TestUntrackForgetsTheConnectionAndTheIdentity(t *testing.T) {
	var table Table
	c := newConn()
	table.Track(device("pi-1"), c)
	table.Track(device("pi-1"), c)
	if n := table.Count(identity.RoleDevice); n != 1 {
		t.Errorf("tracked twice, counted %d", n)
	}
	table.Untrack(device("pi-1"), c)
	table.Untrack(device("pi-1"), c)
	if n := table.Count(identity.RoleDevice); n != 0 || len(table.live) != 0 {
		t.Errorf("count %d, %d identities left", n, len(table.live))
	}
	if live := table.Live(identity.RoleDevice, "pi-1"); len(live) != 0 {
		t.Errorf("live: %v", live)
	}
}

func TestLiveIsNewestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		conns := []*fakeConn{newConn(), newConn(), newConn()}
		for _, c := range conns {
			table.Track(device("pi-1"), c)
			time.Sleep(time.Second)
		}
		live := table.Live(identity.RoleDevice, "pi-1")
		for i, l := range live {
			if l.Conn != conns[len(conns)-1-i] {
				t.Errorf("place %d is not the right connection", i)
			}
		}
	})
}

func TestDisconnectGivesUpWithItsContext(t *testing.T) {
	var table Table
	stuck := newConn()
	stuck.hangs = true
	table.Track(device("pi-1"), stuck)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if closed, _ := table.Disconnect(ctx, identity.RoleDevice, "pi-1", "revoked"); closed != 0 {
		t.Errorf("closed %d", closed)
	}
	if stuck.reason != "revoked" {
		t.Error("the connection was not even told")
	}
}

func TestDisconnectAll(t *testing.T) {
	var table Table
	for _, id := range []string{"a", "b", "c"} {
		table.Track(device(id), newConn())
	}
	if closed := table.DisconnectAll(t.Context(), "hub-shut-down"); closed != 3 {
		t.Errorf("closed %d of 3", closed)
	}
}

func TestWhereFindsWhatItPicksOfAnyRole(t *testing.T) {
	var table Table
	first, second, stays := newConn(), newConn(), newConn()
	table.Track(device("pi-1"), first)
	table.Track(service("backend"), second)
	table.Track(device("pi-2"), stays)

	picked := table.Where(func(c Conn) bool { return c != stays })
	if len(picked) != 2 || !slices.Contains(picked, Conn(first)) || !slices.Contains(picked, Conn(second)) {
		t.Errorf("%v were picked", picked)
	}
	if picked := table.Where(func(Conn) bool { return false }); len(picked) != 0 {
		t.Errorf("%v were picked by nothing", picked)
	}
}

// TestRevokeAndConnectNeverMissEachOther races both orders many times: a
// connection that ends up neither refused nor cut is a hole.
func TestRevokeAndConnectNeverMissEachOther(t *testing.T) {
	var table Table
	for range 2000 {
		var revoked atomic.Bool
		var refused bool
		c := newConn()
		id := device("pi-1")

		var both sync.WaitGroup
		both.Go(func() { // connect: track, then check
			table.Track(id, c)
			refused = revoked.Load()
		})
		both.Go(func() { // revoke: mark, then disconnect
			revoked.Store(true)
			table.Disconnect(context.Background(), identity.RoleDevice, "pi-1", "revoked")
		})
		both.Wait()
		if !refused && c.reason != "revoked" {
			t.Fatal("the device is connected although it is revoked")
		}
		table.Untrack(id, c)
	}
}
