// Package session knows every live connection by the identity that it
// authenticated as, and cuts it.
//
// Who admits a connection calls Track first and looks into the registry
// afterwards; who revokes marks the registry first and calls Disconnect
// afterwards. Each writes, then reads what the other wrote, so in any
// interleaving at least one of them sees the other: a connection is refused,
// or it is found and cut, or both. Looking first and tracking afterwards would
// leave a gap in which a revoked device slips through for good.
package session

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// Conn is one live connection.
type Conn interface {
	// Disconnect begins to close the connection and returns at once. The socket
	// is closed within a second, whether or not the peer still reads. The first
	// reason wins; further calls do nothing.
	Disconnect(reason string)
	// Done is closed when the socket is closed.
	Done() <-chan struct{}
	// RemoteAddr returns the peer's address.
	RemoteAddr() net.Addr
}

// key is an identity without what doesn't identify (organizational units).
// Roles are part of it: a service may bear the ID of a device.
type key struct {
	role identity.Role
	id   string
}

// Table holds the live connections. The zero value is an empty table. It is
// safe for concurrent use.
type Table struct {
	mu   sync.Mutex            // guards live and n
	live map[key][]Live        // oldest first; an identity is present only with a connection
	n    map[identity.Role]int // connections by role
}

// Track enters a connection under its identity. From now on Disconnect finds it;
// only now may the caller ask whether the identity is still admitted.
func (t *Table) Track(id identity.Identity, c Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = make(map[key][]Live)
		t.n = make(map[identity.Role]int)
	}
	k := key{id.Role, id.ID}
	if find(t.live[k], c) < 0 {
		t.live[k] = append(t.live[k], Live{c, time.Now()})
		t.n[id.Role]++
	}
}

// Untrack removes a connection. Its owner calls it once the connection is done;
// removing one that isn't there does nothing.
func (t *Table) Untrack(id identity.Identity, c Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{id.Role, id.ID}
	i := find(t.live[k], c)
	if i < 0 {
		return
	}
	if t.live[k] = slices.Delete(t.live[k], i, i+1); len(t.live[k]) == 0 {
		delete(t.live, k)
	}
	t.n[id.Role]--
}

func find(live []Live, c Conn) int {
	return slices.IndexFunc(live, func(l Live) bool { return l.Conn == c })
}

// Disconnect cuts every connection of an identity and waits until their sockets
// are closed or ctx ends. It returns how many it saw closed and when the last
// of them was (zero if none). It satisfies its one-second promise without
// the cooperation of the peer; ctx is a bound for the caller's own patience.
func (t *Table) Disconnect(ctx context.Context, role identity.Role, id, reason string) (closed int, last time.Time) {
	return cut(ctx, t.conns(key{role, id}), reason)
}

// DisconnectAll cuts every connection, as Disconnect does for one identity. It
// is for shutting down.
func (t *Table) DisconnectAll(ctx context.Context, reason string) (closed int) {
	closed, _ = cut(ctx, t.Where(func(Conn) bool { return true }), reason)
	return closed
}

// Where returns the connections that match picks, in no order. match is called
// under the table's lock: it must be quick and not call the table. Whoever is to
// cut them takes away first what match looks for: a connection that is tracked
// later must find out by itself.
func (t *Table) Where(match func(Conn) bool) []Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var picked []Conn
	for _, conns := range t.live {
		for _, c := range conns {
			if match(c.Conn) {
				picked = append(picked, c.Conn)
			}
		}
	}
	return picked
}

// cut tells all of them before it waits for the first.
func cut(ctx context.Context, conns []Conn, reason string) (closed int, last time.Time) {
	for _, c := range conns {
		c.Disconnect(reason)
	}
	for _, c := range conns {
		select {
		case <-c.Done():
			closed, last = closed+1, time.Now()
		case <-ctx.Done():
			return closed, last
		}
	}
	return closed, last
}

// Live returns the connections of an identity, newest first.
func (t *Table) Live(role identity.Role, id string) []Live {
	t.mu.Lock()
	defer t.mu.Unlock()
	live := slices.Clone(t.live[key{role, id}])
	slices.Reverse(live)
	return live
}

// Live is a connection and when it was tracked.
type Live struct {
	Conn  Conn
	Since time.Time
}

// Count returns the number of connections of one role.
func (t *Table) Count(role identity.Role) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[role]
}

func (t *Table) conns(k key) []Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	conns := make([]Conn, 0, len(t.live[k]))
	for _, c := range t.live[k] {
		conns = append(conns, c.Conn)
	}
	return conns
}
