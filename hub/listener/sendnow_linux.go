package listener

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// canSendNow reports whether sendNow can send there.
func canSendNow(conn net.Conn) bool {
	_, ok := conn.(*net.TCPConn)
	return ok
}

// sendNow puts p into the socket's buffer, as far as there is room, and lets it leave with
// what comes next.
func sendNow(conn net.Conn, p []byte) (n int, err error) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	// Not raw.Write: the socket's write deadline may be long over.
	failed := raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_MORE|unix.MSG_NOSIGNAL)
	})
	switch {
	case failed != nil:
		return 0, failed
	case err != nil:
		return 0, err
	case n < len(p):
		return n, io.ErrShortWrite
	}
	return n, nil
}
