//go:build !linux

package listener

import (
	"errors"
	"net"
)

// unread returns false.
func unread(net.Conn) (int, bool) { return 0, false }

// sendNow is never called.
func sendNow(net.Conn, []byte, bool) (int, error) { return 0, errors.ErrUnsupported }
