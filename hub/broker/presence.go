package broker

import (
	"strconv"
	"time"

	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/wire"
)

// announce publishes the retained presence of a device. The caller holds
// Session.presence, so what is retained is the newest. When the hub stops, there is
// nobody left to tell, and nothing is.
func (b *Broker) announce(c *client, online bool, reason string) {
	if !c.isDevice() || reason == protocol.ReasonShutdown {
		return
	}
	status := protocol.PresenceStatus{Online: online, Reason: reason, Since: b.config.Now().UTC(), Address: c.address}
	b.tell(protocol.Presence(c.peer.Identity.ID), appendPresence(nil, status), 1)
}

// appendPresence writes a status as encoding/json does, without its cost in each connect.
// Reasons and addresses have nothing that JSON escapes.
func appendPresence(b []byte, s protocol.PresenceStatus) []byte {
	b = strconv.AppendBool(append(b, `{"online":`...), s.Online)
	b = append(append(b, `,"reason":"`...), s.Reason...)
	b = s.Since.AppendFormat(append(b, `","since":"`...), time.RFC3339Nano)
	if s.Address != "" {
		b = append(append(b, `","address":"`...), s.Address...)
	}
	return append(b, `"}`...)
}

// leafIsEnough is a protocol.TLSNotice that says ChainLeaf.
var leafIsEnough = []byte(`{"chain":"leaf"}`)

// tellChain lets a device that presented more than its own certificate know that it
// need not: we know its issuer, or it were not here. It saves the device some 500 bytes
// in each full handshake from then on. In a resumed one it presents nothing.
func (b *Broker) tellChain(c *client) {
	if c.peer.Resumed || !c.isDevice() || len(c.conn.ConnectionState().PeerCertificates) < 2 {
		return
	}
	b.tell(protocol.System(c.peer.Identity.ID, protocol.NoticeTLS), leafIsEnough, 0) // said again at the next full handshake
}

// tell publishes a retained message of the hub's own. It is about this moment, so it is
// in the journal only for the stored sessions that get it.
func (b *Broker) tell(name string, payload []byte, qos byte) {
	b.retention.admit(name, len(payload)) // so that a revocation finds it
	m := &message{volatile: true}
	m.Publish = wire.Publish{Topic: name, Payload: payload, QoS: qos, Retain: true}
	m.Number, m.Time, m.From = b.lastID.Add(1), b.config.Now(), ingest.Sender{Role: ingest.SenderHub}
	m.size = int64(len(name)+len(payload)) + messageOverhead
	b.retain(m)
	b.spread(m)
}

// spread delivers a message of the hub's own. What nobody stores waits for no disk.
func (b *Broker) spread(m *message) {
	matches := b.index.Match(m.Topic)
	if len(matches.Direct) == 0 && len(matches.Shared) == 0 {
		b.watchers.show(m)
		return
	}
	p := &publication{b: b, message: m}
	if m.QoS > 0 {
		// An error leaves those without it who asked for QoS 1: the journal refuses,
		// which is known by then.
		if err := b.accept(b.context, p); err != nil {
			b.counters.unaccepted.Add(1)
		}
		return
	}
	b.sendOut(m)
	b.watchers.show(m)
}
