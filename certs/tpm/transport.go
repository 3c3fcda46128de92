package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	headerSize   = 10   // of a command and of a response: tag, size, code
	maxResponse  = 4096 // TPM_BUFFER of the kernel's driver; no TPM sends more
	dialTimeout  = 5 * time.Second
	replyTimeout = time.Minute // the slowest TPM makes an ECC key in a few seconds
)

// channel carries one command and its response at a time.
type channel interface {
	exchange(command []byte) (response []byte, err error)
	io.Closer
}

// conn is an open TPM as go-tpm wants it.
type conn struct{ channel }

// Send is go-tpm's transport.TPM. A TPM that asks for it is given the same command
// again (Library Part 2, 6.6.3: the response code changes nothing in the TPM).
func (c *conn) Send(command []byte) ([]byte, error) {
	for attempt := range retries {
		response, err := c.exchange(command)
		if err != nil {
			return nil, err
		}
		if len(response) < headerSize || binary.BigEndian.Uint32(response[2:]) != uint32(len(response)) {
			return nil, fmt.Errorf("its response of %d bytes isn't a TPM's; is this the address of a TPM?", len(response))
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		default:
			return response, nil
		}
		if attempt < retries-1 {
			time.Sleep(firstRetry << attempt)
		}
	}
	return nil, fmt.Errorf("%w: it asked for the command to be repeated %d times", ErrBusy, retries)
}

const (
	retries    = 8
	firstRetry = 10 * time.Millisecond // doubling: 1.3 s in all
)

// dialer returns how to reach the TPM at address.
func dialer(address string) (func() (channel, error), error) {
	switch {
	case strings.HasPrefix(address, "/"):
		return func() (channel, error) { return dialPath(address) }, nil
	case strings.HasPrefix(address, "unix://"), strings.HasPrefix(address, "tcp://"):
		u, err := url.Parse(address)
		if err != nil {
			return nil, fmt.Errorf("TPM address: %w", err)
		}
		if u.Scheme == "unix" && u.Host == "" && u.Path != "" {
			return func() (channel, error) { return dialStream("unix", u.Path) }, nil
		}
		if u.Scheme == "tcp" && u.Port() != "" && u.Path == "" {
			return func() (channel, error) { return dialStream("tcp", u.Host) }, nil
		}
	}
	return nil, fmt.Errorf("TPM address %q is none; /dev/tpmrm0, unix:///run/swtpm.sock and tcp://127.0.0.1:2321 are", address)
}

func dialPath(path string) (channel, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSocket != 0:
		return dialStream("unix", path)
	case info.Mode()&fs.ModeDevice == 0:
		return nil, errors.New("it is neither a device nor a socket")
	}
	// Not os.OpenFile: that sets O_NONBLOCK, with which the driver returns from the
	// write before the TPM has done its work, and from the read with nothing.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &device{os.NewFile(uintptr(fd), path)}, nil
}

// device is the kernel's driver, which bounds the time of each command itself.
type device struct{ *os.File }

func (d *device) exchange(command []byte) ([]byte, error) {
	if _, err := d.Write(command); err != nil { // in one piece, as the driver wants it
		return nil, err
	}
	response := make([]byte, maxResponse)
	n, err := d.Read(response)
	if err != nil {
		return nil, err
	}
	return response[:n], nil
}

func dialStream(network, address string) (channel, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &stream{c}, nil
}

// stream is swtpm's socket: the bare commands and responses, one after another. It
// serves one connection at a time; a second waits.
type stream struct{ net.Conn }

func (s *stream) exchange(command []byte) ([]byte, error) {
	if err := s.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return nil, err
	}
	if _, err := s.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, headerSize, maxResponse)
	if _, err := io.ReadFull(s, response); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("its response claims to be of %d bytes; is this the address of a TPM?", size)
	}
	response = response[:size]
	if _, err := io.ReadFull(s, response[headerSize:]); err != nil {
		return nil, err
	}
	return response, nil
}
