package broker

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/session"
)

// Connection is a live connection, for people.
type Connection struct {
	Peer    mtls.Peer
	Address string
	Since   time.Time   // zero from Peers
	Resumed bool        // its TLS handshake was a resumption
	Version uint16      // of TLS, such as tls.VersionTLS13
	Suite   uint16      // such as tls.TLS_AES_128_GCM_SHA256
	Curve   tls.CurveID // of the key agreement
}

func (c *client) connection(since time.Time) Connection {
	state := c.conn.ConnectionState()
	return Connection{
		Peer: c.peer, Address: c.address, Since: since, Resumed: c.peer.Resumed,
		Version: state.Version, Suite: state.CipherSuite, Curve: state.CurveID,
	}
}

// Peers returns the live connections whose peer match picks, in no order, those
// that have not sent their CONNECT yet included. match must be quick.
func (b *Broker) Peers(match func(mtls.Peer) bool) []Connection {
	var found []Connection
	for _, c := range b.live.Where(ofPeer(match)) {
		found = append(found, c.(*client).connection(time.Time{}))
	}
	return found
}

// DisconnectPeers cuts every connection whose peer match picks, as DisconnectMany does:
// without its will, nor one that still waits for its delay. Sessions stay, for their
// owner may come back under another certificate. The caller has seen to it first that
// admission refuses such peers.
func (b *Broker) DisconnectPeers(ctx context.Context, match func(mtls.Peer) bool, reason string) (closed int, last time.Time) {
	conns := b.live.Where(ofPeer(match))
	told := cutOff(ctx, conns, reason)
	for _, c := range conns {
		select {
		case <-c.Done():
			closed, last = closed+1, time.Now()
		case <-ctx.Done(): // the others are told all the same
		}
	}
	<-told
	for _, s := range b.sessions.all() {
		s.mu.Lock()
		if !s.willDue.IsZero() && match(s.willOf) {
			b.dropWill(s)
		}
		s.mu.Unlock()
	}
	return closed, last
}

func ofPeer(match func(mtls.Peer) bool) func(session.Conn) bool {
	return func(conn session.Conn) bool {
		c, ok := conn.(*client)
		return ok && match(c.peer)
	}
}
