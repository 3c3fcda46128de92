//go:build !linux

package server

import "syscall"

// keepAlive does nothing: where a listening socket doesn't hand its options down, MQTT's
// own keep-alive has to find the peers that are gone.
func keepAlive(_, _ string, _ syscall.RawConn) error { return nil }
