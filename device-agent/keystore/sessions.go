package keystore

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
)

const (
	// sessionLifetime is the most that TLS allows a ticket (RFC 8446 §4.6.1). The hub
	// may give it less: crypto/tls minds that for TLS 1.3, and the hub itself always.
	sessionLifetime = 7 * 24 * time.Hour

	// clockSlack is how far behind the session's own time the clock may be. A board
	// without an RTC starts from a time saved within the hour; one that starts at 1970
	// knows nothing of the session's age, nor would crypto/tls offer it then, since by
	// that clock the hub's certificate isn't valid yet. The session is kept for when
	// the clock is right.
	clockSlack = 24 * time.Hour
)

// Sealer keeps data so that only this machine can read it, as certs/tpm does.
type Sealer interface {
	Seal(data []byte) (sealed []byte, err error)
	Unseal(sealed []byte) (data []byte, err error)
}

// SessionsConfig is what OpenSessions needs. Path and Binding are required.
type SessionsConfig struct {
	// Path is the file. Its folder must exist; nobody else may use the file.
	Path string

	// Binding is what a session must have been earned with to be offered.
	Binding Binding

	// Sealer seals the file. Nil stores the session as it is, mode 0600: whoever can
	// read that can read device.key too. With a Sealer, a file that isn't sealed is
	// not believed, and what can't be sealed is not written.
	Sealer Sealer

	// Now is the clock that a session's age is told by. Nil is time.Now.
	Now func() time.Time

	// Log gets a line when a stored session can't be used or one can't be stored. Nil
	// is silent.
	Log *slog.Logger
}

// Sessions is a tls.ClientSessionCache of the newest session with one hub, which it
// keeps in a file, so that the first connect after a reboot is a resumption.
//
// A session is offered once: Get wipes the file, and waits until the disk has done so,
// before it hands the session out. One whose handshake is cut off is thus lost, and the
// next handshake is a full one. To spare the flash, a connect wipes once and writes once,
// mostly one block of 4 kB in place each: of several tickets that a hub sends, the first
// is stored, and the last is used while this process lives.
//
// Nothing that happens to the file is an error: the handshake is then a full one. It
// is safe for concurrent use.
type Sessions struct {
	config SessionsConfig
	server string   // the key crypto/tls asks with
	bound  [32]byte // digest of the binding

	// turn is held across I/O on purpose: there is one file, and nobody may see a
	// session before it is off the disk.
	turn     sync.Mutex
	current  *session // nil: none
	mayWrite bool     // no ticket was written since the last Get
	live     bool     // the file may hold a session
	inPlace  bool     // the file is ours to write over
	envelope envelope

	mu    sync.Mutex // guards what follows, and is never held across I/O
	stats SessionStats
	said  map[string]bool // problems that were logged
}

// session is one that may be offered.
type session struct {
	state  *tls.ClientSessionState
	at     time.Time // when the hub gave it, by our clock
	onDisk bool      // perhaps
}

// SessionStats says how a Sessions is doing.
type SessionStats struct {
	Protection Protection `json:"protection"`
	Ready      bool       `json:"ready"`          // there is a session for the next connect
	Since      time.Time  `json:"since,omitzero"` // when the hub gave it

	Offered   uint64 `json:"offered"`           // handed out, to be offered to the hub
	Stored    uint64 `json:"stored"`            // written
	NotStored uint64 `json:"not_stored"`        // could not be
	Expired   uint64 `json:"expired"`           // too old to be offered
	Withheld  uint64 `json:"withheld"`          // the clock was behind, or the file couldn't be wiped
	Problem   string `json:"problem,omitempty"` // what last kept a session from being read, stored or offered; cleared by the next that is stored
}

// OpenSessions reads the session at config.Path, if there is one and it was earned
// with config.Binding. This is the only time that it waits for the Sealer; if that fails,
// sessions are kept in memory only.
func OpenSessions(config SessionsConfig) *Sessions {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	server, _, err := net.SplitHostPort(config.Binding.Hub)
	if err != nil {
		server = config.Binding.Hub
	}
	s := &Sessions{config: config, server: server, bound: config.Binding.digest(), mayWrite: true, said: make(map[string]bool)}
	s.envelope = envelope{sealer: config.Sealer}
	s.removeLeftovers()
	data, err := readSession(config.Path)
	s.live = err == nil && !spent(data) || err != nil && !errors.Is(err, fs.ErrNotExist)
	s.inPlace = err == nil
	if err == nil && s.live {
		s.current, err = s.envelope.open(data, s.bound)
	}
	if err != nil && s.live {
		s.problem("the saved TLS session is of no use, so the next connect is a full handshake", err)
	}
	if err := s.envelope.newKey(); err != nil {
		s.problem("the TPM seals no TLS sessions, so they are kept in memory only", err)
	}
	s.stats.Protection = s.envelope.protection()
	s.report()
	return s
}

// Get is tls.ClientSessionCache. The session it returns is on no disk and will not be
// returned again.
func (s *Sessions) Get(server string) (*tls.ClientSessionState, bool) {
	if server != s.server {
		return nil, false
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	defer s.report()
	s.mayWrite = true // a connect begins
	if s.current == nil {
		return nil, false
	}
	switch age := s.now().Sub(s.current.at); {
	case age < -clockSlack:
		s.count(func(n *SessionStats) { n.Withheld++ })
		return nil, false
	case age > sessionLifetime:
		s.count(func(n *SessionStats) { n.Expired++ })
		s.drop()
		return nil, false
	}
	if err := s.wipe(); err != nil && s.current.onDisk {
		s.count(func(n *SessionStats) { n.Withheld++ })
		s.problem("the saved TLS session isn't used, since its file can't be wiped and it could be offered twice", err)
		return nil, false
	}
	state := s.current.state
	s.current = nil
	s.count(func(n *SessionStats) { n.Offered++ })
	return state, true
}

// Put is tls.ClientSessionCache. Nil, by which crypto/tls says that the session is of
// no use, forgets it.
func (s *Sessions) Put(server string, state *tls.ClientSessionState) {
	if server != s.server {
		return
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	defer s.report()
	if state == nil {
		s.drop()
		return
	}
	s.current = &session{state: state, at: s.now()}
	if !s.mayWrite {
		return
	}
	s.mayWrite = false
	if !s.envelope.usable() {
		s.count(func(n *SessionStats) { n.NotStored++ }) // said when it was opened
		return
	}
	if err := s.store(s.current); err != nil {
		s.count(func(n *SessionStats) { n.NotStored++ })
		s.problem("the TLS session isn't saved, so a reboot will cost a full handshake", err)
		return
	}
	s.mu.Lock()
	s.stats.Stored++
	s.stats.Problem = ""
	clear(s.said)
	s.mu.Unlock()
}

// Stats returns how it is going. It never waits for the disk.
func (s *Sessions) Stats() SessionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// now returns the time of day without the monotonic clock's, which a reboot ends.
func (s *Sessions) now() time.Time { return s.config.Now().Round(0) }

func (s *Sessions) store(one *session) error {
	data, err := s.envelope.seal(one, s.bound)
	if err != nil {
		return err
	}
	if err = s.write(data); err == nil {
		s.inPlace = true
	}
	one.onDisk = err == nil || s.holds(data)
	s.live = s.live || one.onDisk
	return err
}

// write replaces the file's contents, in place if it can: to replace a file whole costs
// the flash sixteen times as much, and there is nothing to lose but a session that is
// spent. Torn by a power cut, the file is damaged and no session.
func (s *Sessions) write(data []byte) error {
	if s.inPlace {
		info, err := os.Lstat(s.config.Path)
		if err == nil && info.Size() == int64(len(data)) && s.overwrite(data) == nil {
			return nil
		}
	}
	return pemfile.Write(s.config.Path, data, 0o600)
}

// overwrite writes data over the start of the file, and returns once the disk has it.
func (s *Sessions) overwrite(data []byte) error {
	f, err := os.OpenFile(s.config.Path, os.O_WRONLY|syscall.O_DSYNC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

// holds reports whether the file may be data. An error in writing doesn't say how far
// that came.
func (s *Sessions) holds(data []byte) bool {
	info, err := os.Stat(s.config.Path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	if info.Size() < int64(len(data)) || info.Size() > maxSessionFile || !info.Mode().IsRegular() {
		return false
	}
	there, err := os.ReadFile(s.config.Path)
	return err != nil || bytes.HasPrefix(there, data)
}

// drop forgets the session, in the file too.
func (s *Sessions) drop() {
	s.current = nil
	if err := s.wipe(); err != nil {
		s.problem("the file of a TLS session that is of no more use can't be wiped", err)
	}
}

// wipe overwrites the file with zeros, and returns once the disk has. To unlink it and
// sync the folder would be a transaction of the file system, would leave the secrets
// where they were, and would have the next session be a new file.
func (s *Sessions) wipe() error {
	if !s.live {
		return nil
	}
	info, err := os.Lstat(s.config.Path)
	if err == nil {
		err = s.overwrite(make([]byte, min(info.Size(), maxSessionFile)))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.live = false
	return nil
}

// removeLeftovers removes what pemfile.Write left when the power failed in it.
func (s *Sessions) removeLeftovers() {
	dir := filepath.Dir(s.config.Path)
	entries, _ := os.ReadDir(dir) // what is wrong with the folder, reading the file tells
	for _, entry := range entries {
		name, ok := strings.CutPrefix(entry.Name(), "."+filepath.Base(s.config.Path)+".")
		if ok && strings.HasSuffix(name, ".tmp") {
			_ = os.Remove(filepath.Join(dir, entry.Name())) // else the next time
		}
	}
}

// report has Stats say what is at hand. The caller holds turn.
func (s *Sessions) report() {
	s.count(func(n *SessionStats) {
		n.Ready, n.Since = s.current != nil, time.Time{}
		if n.Ready {
			n.Since = s.current.at
		}
	})
}

func (s *Sessions) count(change func(*SessionStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stats)
}

// problem records what went wrong, and logs it unless that was said since a session
// was last stored.
func (s *Sessions) problem(what string, err error) {
	s.mu.Lock()
	known := s.said[what]
	s.said[what] = true
	s.stats.Problem = what + ": " + err.Error()
	s.mu.Unlock()
	if !known {
		s.config.Log.Warn(what, "file", s.config.Path, "err", err)
	}
}
