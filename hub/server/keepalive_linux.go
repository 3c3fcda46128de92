package server

import (
	"syscall"
	"time"
)

// TCP keep-alive finds peers that are gone without a word where MQTT's is off.
const (
	keepAliveIdle     = 60 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveProbes   = 4
)

// keepAlive sets TCP keep-alive on a listening socket. Linux hands it down to every
// accepted one, which spares each connection the four system calls of package net.
func keepAlive(_, _ string, raw syscall.RawConn) error {
	var err error
	control := func(fd uintptr) {
		for _, o := range []struct{ level, option, value int }{
			{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())},
			{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveProbes},
		} {
			if err == nil {
				err = syscall.SetsockoptInt(int(fd), o.level, o.option, o.value)
			}
		}
	}
	if controlErr := raw.Control(control); controlErr != nil {
		return controlErr
	}
	return err
}
