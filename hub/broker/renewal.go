package broker

import (
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/session"
)

// overdue reports whether a certificate should have been renewed by now. Agents renew at
// two thirds of the lifetime, give or take a twentieth of it; who hasn't at three quarters has
// a clock that is slow, most likely.
func overdue(leaf *x509.Certificate, now time.Time) bool {
	return leaf != nil && now.Sub(leaf.NotBefore) > leaf.NotAfter.Sub(leaf.NotBefore)*3/4
}

// tellDue tells devices, once a connection, that their certificates are to be renewed.
// It is the sweeper's, and so is client.told: a CONNECT costs nothing for it.
func (b *Broker) tellDue(now time.Time) {
	for _, conn := range b.live.Where(func(conn session.Conn) bool {
		c, ok := conn.(*client)
		return ok && !c.told && c.isDevice() && overdue(c.peer.Certificate, now)
	}) {
		c := conn.(*client)
		c.told = true
		sum := c.peer.Fingerprint()
		payload := append(hex.AppendEncode([]byte(`{"certificate":"`), sum[:]), `"}`...)
		b.tell(protocol.System(c.peer.Identity.ID, protocol.NoticeRenewal), payload, 0)
	}
}
