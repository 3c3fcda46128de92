package keystore

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

// The file of a session, version 1, big-endian:
//
//	"fleethub TLS session 1 sealed\n"        "fleethub TLS session 1 plain\n"
//	  4   size without the padding             4   size without the padding
//	 32   digest of the binding               32   digest of the binding
//	2+n   a key, sealed by the Sealer         rest as in the other, in the clear
//	rest  AES-256-GCM under that key:         32   SHA-256 of everything before it:
//	      nonce, ciphertext, tag; all              finds damage; against those who can
//	      before it is its additional data         write the folder there is no defence
//
// and inside, when the hub gave it (8, Unix seconds), the ticket (4+n) and crypto/tls's
// own encoding of the session. Zeros fill the last block, so that the next session can
// be written in place without a change of the file's size. A file that begins with a
// zero is spent.
const (
	sealedMark = "fleethub TLS session 1 sealed\n"
	plainMark  = "fleethub TLS session 1 plain\n"

	// sessionBlock is the unit of most file systems: a smaller write is no cheaper.
	sessionBlock = 4096

	// maxSessionFile bounds what is read and written: a session with the hub's chain
	// and its verified chain has 3 to 4 kB.
	maxSessionFile = 8 * sessionBlock
)

// Protection is how a session is kept on the disk.
type Protection string

// The protections.
const (
	ProtectionSealed Protection = "sealed" // only this machine's TPM opens it
	ProtectionFile   Protection = "file"   // mode 0600, like a key in a file
	ProtectionMemory Protection = "memory" // not kept: the Sealer failed, and there is no falling back to less
)

// Binding is what a session is earned with. It is offered only with exactly the same:
// a ticket stands for the certificate it was given to, and for a hub that the bundle
// of then vouched for.
type Binding struct {
	Hub   string              // HOST:PORT as dialled; HOST is the server name
	Roots []*x509.Certificate // the trust bundle, in any order
	Leaf  *x509.Certificate   // the device's own certificate
}

func (b Binding) digest() [sha256.Size]byte {
	roots := make([]string, len(b.Roots))
	for i, root := range b.Roots {
		roots[i] = identity.Fingerprint(root)
	}
	slices.Sort(roots)
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q", b.Hub, roots, identity.Fingerprint(b.Leaf)))
}

var (
	errForeignSession = errors.New("it was earned with another hub name, trust bundle or certificate")
	errDamagedSession = errors.New("the file is damaged")
)

// envelope turns sessions into what is stored and back. The Sealer, which takes a
// discrete TPM half a second, is asked once, for the key, and not at every connect.
type envelope struct {
	sealer  Sealer // nil: sessions are stored as they are
	key     []byte // nil: not sealed or unsealed yet
	wrapped []byte // key, sealed
}

func (e *envelope) protection() Protection {
	switch {
	case e.sealer == nil:
		return ProtectionFile
	case e.key == nil:
		return ProtectionMemory
	}
	return ProtectionSealed
}

// usable reports whether sessions can be stored.
func (e *envelope) usable() bool { return e.sealer == nil || e.key != nil }

// newKey makes the key, unless a file had one.
func (e *envelope) newKey() error {
	if e.sealer == nil || e.key != nil {
		return nil
	}
	key := make([]byte, 32)
	rand.Read(key)
	wrapped, err := e.sealer.Seal(key)
	if err != nil {
		return err
	}
	e.key, e.wrapped = key, wrapped
	return nil
}

// seal returns the file of a session; the envelope must be usable.
func (e *envelope) seal(s *session, bound [sha256.Size]byte) ([]byte, error) {
	ticket, state, err := s.state.ResumptionState()
	if err != nil {
		return nil, err
	}
	if state == nil {
		return nil, errors.New("the session is empty")
	}
	encoded, err := state.Bytes()
	if err != nil {
		return nil, err
	}
	inside := binary.BigEndian.AppendUint64(nil, uint64(s.at.Unix()))
	inside = binary.BigEndian.AppendUint32(inside, uint32(len(ticket)))
	inside = append(append(inside, ticket...), encoded...)
	defer clear(inside)

	var file []byte
	if e.sealer == nil {
		file = header(plainMark, len(inside)+sha256.Size, bound)
		file = append(file, inside...)
		sum := sha256.Sum256(file)
		file = append(file, sum[:]...)
	} else {
		aead, err := newSessionAEAD(e.key)
		if err != nil {
			return nil, err
		}
		file = header(sealedMark, 2+len(e.wrapped)+len(inside)+aead.Overhead(), bound)
		file = binary.BigEndian.AppendUint16(file, uint16(len(e.wrapped)))
		file = append(file, e.wrapped...)
		file = aead.Seal(file, nil, inside, slices.Clone(file))
	}
	if len(file) > maxSessionFile {
		return nil, fmt.Errorf("its %d bytes are more than the %d that are stored", len(file), maxSessionFile)
	}
	blocks := (len(file) + sessionBlock - 1) / sessionBlock
	return append(file, make([]byte, blocks*sessionBlock-len(file))...), nil
}

// header returns the start of a file in which size bytes follow it.
func header(mark string, size int, bound [sha256.Size]byte) []byte {
	file := binary.BigEndian.AppendUint32([]byte(mark), uint32(len(mark)+4+len(bound)+size))
	return append(file, bound[:]...)
}

// open returns the session in a file, and takes over the file's key for the next.
func (e *envelope) open(file []byte, bound [sha256.Size]byte) (*session, error) {
	inside, err := e.unwrap(file, bound)
	if err != nil {
		return nil, err
	}
	return parseSession(inside)
}

func parseSession(inside []byte) (*session, error) {
	if len(inside) < 8+4 {
		return nil, errDamagedSession
	}
	at := time.Unix(int64(binary.BigEndian.Uint64(inside)), 0)
	size := binary.BigEndian.Uint32(inside[8:])
	if inside = inside[12:]; uint64(size) >= uint64(len(inside)) {
		return nil, errDamagedSession
	}
	ticket, encoded := inside[:size], inside[size:]
	state, err := tls.ParseSessionState(encoded)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedSession, err) // or of another Go's making
	}
	// crypto/tls trusts a cache not to give it the state of a server, which need have
	// no certificate. The kind is the third byte of the encoding.
	if encoded[2] != 2 {
		return nil, fmt.Errorf("%w: it isn't a client's", errDamagedSession)
	}
	resumption, err := tls.NewResumptionState(ticket, state)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedSession, err)
	}
	return &session{state: resumption, at: at, onDisk: true}, nil
}

// unwrap returns the inside of a file that is undamaged and bound as it must be.
func (e *envelope) unwrap(file []byte, bound [sha256.Size]byte) ([]byte, error) {
	rest, isSealed := bytes.CutPrefix(file, []byte(sealedMark))
	if !isSealed {
		var ok bool
		if rest, ok = bytes.CutPrefix(file, []byte(plainMark)); !ok {
			return nil, errDamagedSession
		}
	}
	if len(rest) < 4+len(bound) {
		return nil, errDamagedSession
	}
	mark, size := len(file)-len(rest), binary.BigEndian.Uint32(rest)
	if uint64(size) > uint64(len(file)) || int(size) < mark+4+len(bound) || len(bytes.Trim(file[size:], "\x00")) > 0 {
		return nil, errDamagedSession
	}
	file = file[:size]
	theirs, body := [sha256.Size]byte(rest[4:]), file[mark+4+len(bound):]
	var inside []byte
	var err error
	switch {
	case isSealed && e.sealer == nil:
		return nil, errors.New("it is sealed, and the TPM isn't in use")
	case !isSealed && e.sealer != nil:
		return nil, errors.New("it isn't sealed by the TPM")
	case isSealed:
		inside, err = e.unseal(file, body)
	default:
		inside, err = checked(file, body)
	}
	if err != nil {
		return nil, err
	}
	if theirs != bound {
		return nil, errForeignSession
	}
	return inside, nil
}

// unseal returns the inside of a sealed file, whose end is body.
func (e *envelope) unseal(file, body []byte) ([]byte, error) {
	if len(body) < 2 {
		return nil, errDamagedSession
	}
	size := int(binary.BigEndian.Uint16(body))
	if body = body[2:]; size > len(body) {
		return nil, errDamagedSession
	}
	wrapped, box := body[:size], body[size:]
	key, err := e.sealer.Unseal(wrapped)
	if err != nil {
		return nil, err
	}
	aead, err := newSessionAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedSession, err)
	}
	inside, err := aead.Open(nil, nil, box, file[:len(file)-len(box)])
	if err != nil {
		return nil, errDamagedSession
	}
	e.key, e.wrapped = key, slices.Clone(wrapped)
	return inside, nil
}

// checked returns the inside of a plain file, whose end is body.
func checked(file, body []byte) ([]byte, error) {
	end := len(body) - sha256.Size
	if end < 0 || sha256.Sum256(file[:len(file)-sha256.Size]) != [sha256.Size]byte(body[end:]) {
		return nil, errDamagedSession
	}
	return body[:end], nil
}

func newSessionAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// spent reports whether a file was wiped, or begun to be.
func spent(file []byte) bool { return len(file) > 0 && file[0] == 0 }

// readSession reads a session's file. One that others may read is as good as told.
func readSession(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe with no writer would hold us up
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("others can read it (mode %04o)", mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSessionFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSessionFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxSessionFile)
	}
	return data, nil
}
