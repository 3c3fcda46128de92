package cakey

import (
	"os"

	"golang.org/x/sys/unix"
)

// hide stops the terminal from showing what is typed, until restore is called.
func hide(terminal *os.File) (restore func(), err error) {
	var was *unix.Termios
	err = control(terminal, func(fd int) error {
		var err error
		if was, err = unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			return err
		}
		hidden := *was
		hidden.Lflag &^= unix.ECHO
		hidden.Lflag |= unix.ICANON | unix.ISIG
		hidden.Iflag |= unix.ICRNL
		return unix.IoctlSetTermios(fd, unix.TCSETS, &hidden)
	})
	if err != nil {
		return nil, err
	}
	return func() {
		control(terminal, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, was) })
	}, nil
}

// control calls do with the terminal's descriptor. Fd would take from the file that its
// reads can be ended.
func control(terminal *os.File, do func(fd int) error) error {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	if err := conn.Control(func(fd uintptr) { done = do(int(fd)) }); err != nil {
		return err
	}
	return done
}
