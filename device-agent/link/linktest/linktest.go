// Package linktest has, for tests, what serves MQTT connections without being ours: a
// server of mochi's.
package linktest

import (
	"net"
	"sync"

	mochi "github.com/mochi-mqtt/server/v2"
)

// Accept has a server that serves already take the connections of a listener, until
// stop is called: it closes both, and returns when no connection is left. It may be called
// once. mochi's own listeners take connections while the server closes, which races.
func Accept(server *mochi.Server, listener net.Listener) (stop func()) {
	var accepting, serving sync.WaitGroup
	var conns sync.Map
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Store(conn, nil)
			serving.Go(func() {
				defer conns.Delete(conn)
				defer conn.Close()
				_ = server.EstablishConnection("tls", conn) // how it ends is the tests' business
			})
		}
	})
	return func() {
		listener.Close()
		accepting.Wait()
		conns.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
		serving.Wait()
		_ = server.Close()
	}
}
