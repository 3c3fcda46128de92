package listener

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// unread returns how many octets of what the peer sent wait in the socket; false: sendNow
// can't send there.
func unread(conn net.Conn) (n int, ok bool) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	failed := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, failed == nil && err == nil
}

// sendNow puts p into the socket's buffer, as far as there is room; together lets it leave
// with what comes next.
func sendNow(conn net.Conn, p []byte, together bool) (n int, err error) {
	flags := unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if together {
		flags |= unix.MSG_MORE
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	// Not raw.Write: the socket's write deadline may be long over.
	failed := raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), p, nil, nil, flags)
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
