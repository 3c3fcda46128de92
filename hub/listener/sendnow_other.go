//go:build !linux

package listener

import (
	"errors"
	"net"
)

// canSendNow returns false.
func canSendNow(net.Conn) bool { return false }

// sendNow is never called.
func sendNow(net.Conn, []byte) (int, error) { return 0, errors.ErrUnsupported }
