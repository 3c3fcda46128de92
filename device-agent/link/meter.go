package link

import (
	"net"
	"sync/atomic"
)

// Traffic is octets on the wire above TCP, those of TLS included.
type Traffic struct {
	Up   uint64 `json:"up"` // from the device to the hub
	Down uint64 `json:"down"`
}

func (t Traffic) plus(more Traffic) Traffic {
	return Traffic{Up: t.Up + more.Up, Down: t.Down + more.Down}
}

// meter counts octets. It is safe for concurrent use.
type meter struct{ up, down atomic.Uint64 }

func (m *meter) read() Traffic { return Traffic{Up: m.up.Load(), Down: m.down.Load()} }

// metered is a TCP connection whose octets are counted, by its own meter and
// by that of all connections of its link.
type metered struct {
	net.Conn
	own, all *meter
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.own.down.Add(uint64(n))
	m.all.down.Add(uint64(n))
	return n, err
}

func (m *metered) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.own.up.Add(uint64(n))
	m.all.up.Add(uint64(n))
	return n, err
}
