package ticket

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/daead/subtle"

	"github.com/fleethub/fleethub/certs/pemfile"
)

const (
	keyIDSize  = 2
	secretSize = 32
)

// Bounds of Config.
const (
	DefaultLifetime = 24 * time.Hour
	MaxLifetime     = 7 * 24 * time.Hour // RFC 8446 §4.6.1
	rotateEvery     = 24 * time.Hour

	// sealFor is how long a key seals if it can't be replaced, because the disk is
	// full, say; after that, tickets are crypto/tls's. With MaxLifetime it bounds the
	// age of what a key opens to less than the 12 days that a ticket can tell.
	sealFor = 2 * rotateEvery

	// maxKeys bounds how many keys are tried on a ticket. Only an operator who rotates
	// by hand gets there.
	maxKeys = 16
)

// ringVersion is the format of the ring's file.
const ringVersion = 1

// Ring holds the keys that tickets are sealed with: the newest seals, all open. It
// is kept in a file (0600), so that a restarted hub still takes its fleet's tickets.
// Whoever reads that file can, until its keys are dropped, resume as any device whose
// ticket it recorded, and decrypt recorded TLS 1.2 sessions; whoever loses it loses
// nothing but cheap handshakes for a while. It is safe for concurrent use.
type Ring struct {
	path     string
	lifetime atomic.Int64 // a time.Duration
	now      func() time.Time

	mu       sync.Mutex // held by changes, over the write of the file
	watchers []func([][32]byte)
	current  atomic.Pointer[ringState]
}

// ringState is immutable.
type ringState struct {
	keys  []key                // newest first
	drops map[string]time.Time // of issuers, by hex subject key identifier: tickets made until then are worth nothing
}

type key struct {
	id      [keyIDSize]byte // for people
	created time.Time
	secret  [secretSize]byte
	siv     *subtle.AESSIV
}

// Config is what a Ring needs beside its file.
type Config struct {
	Lifetime time.Duration    // of a ticket; 0: DefaultLifetime; at most MaxLifetime
	Now      func() time.Time // nil: time.Now
}

// OpenRing reads the ring from its file, or makes one. A file that can't be read as a
// ring is an error that says to remove it: its loss costs full handshakes only, but
// its state should surprise somebody.
func OpenRing(path string, c Config) (*Ring, error) {
	if c.Lifetime == 0 {
		c.Lifetime = DefaultLifetime
	}
	if c.Lifetime < 0 || c.Lifetime > MaxLifetime {
		return nil, fmt.Errorf("ticket lifetime %s is not between 0 and %s", c.Lifetime, MaxLifetime)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	r := &Ring{path: path, now: c.Now}
	r.lifetime.Store(int64(c.Lifetime))
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		r.current.Store(&ringState{})
		return r, r.Rotate()
	}
	if err != nil {
		return nil, err
	}
	state, err := parseRing(data)
	if err != nil {
		return nil, fmt.Errorf("ticket keys in %s: %w; remove the file to start with a new key (each device then makes one full handshake)", path, err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("ticket keys in %s can be read by others (mode %04o): remove the file to start with a new key", path, info.Mode().Perm())
	}
	r.current.Store(state)
	return r, r.RotateIfDue()
}

// Lifetime returns how long a ticket is good for.
func (r *Ring) Lifetime() time.Duration { return time.Duration(r.lifetime.Load()) }

// SetLifetime has tickets live for another time from now on, those handed out before
// included. Keys that are gone are not brought back by a longer one.
func (r *Ring) SetLifetime(d time.Duration) error {
	if d <= 0 || d > MaxLifetime {
		return fmt.Errorf("ticket lifetime %s is not between 0 and %s", d, MaxLifetime)
	}
	r.lifetime.Store(int64(d))
	return nil
}

// Len returns how many keys the ring holds.
func (r *Ring) Len() int { return len(r.current.Load().keys) }

// RotateIfDue makes a new key if the newest is a day old. Call it now and then.
func (r *Ring) RotateIfDue() error {
	keys := r.current.Load().keys
	if len(keys) > 0 {
		if age := r.now().Sub(keys[0].created); age >= 0 && age < rotateEvery {
			return nil
		}
	}
	return r.Rotate()
}

// Rotate makes a new key for new tickets. Older keys still open theirs until those
// have outlived their lifetime.
func (r *Ring) Rotate() error {
	return r.change(func(next *ringState) error {
		var kept []key
		for i, k := range next.keys {
			// A key sealed until its successor was made: the newer key's birth, or now.
			retired := r.now()
			if i > 0 {
				retired = next.keys[i-1].created
			}
			if r.now().Sub(retired) <= r.Lifetime() {
				kept = append(kept, k)
			}
		}
		return next.prepend(r.now(), kept)
	})
}

// Drop makes a new key and forgets all others: every ticket out there is worthless
// when it returns.
func (r *Ring) Drop() error {
	return r.change(func(next *ringState) error { return next.prepend(r.now(), nil) })
}

// DropIssuer makes every ticket made until now for devices of that issuing CA
// worthless, by the CA's subject key identifier; those of this second included.
func (r *Ring) DropIssuer(subjectKeyID []byte) error {
	return r.change(func(next *ringState) error {
		next.drops[hex.EncodeToString(subjectKeyID)] = r.now().Truncate(time.Second)
		return nil
	})
}

// dropped returns when the issuer's tickets were last dropped, zero if never.
func (r *Ring) dropped(subjectKeyID []byte) time.Time {
	drops := r.current.Load().drops
	if len(drops) == 0 {
		return time.Time{}
	}
	return drops[hex.EncodeToString(subjectKeyID)]
}

// change makes a copy of the state, has it changed, writes it, and puts it in force.
func (r *Ring) change(edit func(next *ringState) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.current.Load()
	next := &ringState{keys: old.keys, drops: make(map[string]time.Time, len(old.drops))}
	for issuer, at := range old.drops {
		if r.now().Sub(at) <= MaxLifetime { // later, no ticket from before it lives
			next.drops[issuer] = at
		}
	}
	if err := edit(next); err != nil {
		return err
	}
	data, err := next.marshal()
	if err != nil {
		return err
	}
	if err := pemfile.Write(r.path, data, 0o600); err != nil {
		return fmt.Errorf("store ticket keys: %w", err)
	}
	r.current.Store(next)
	for _, w := range r.watchers {
		w(next.derived())
	}
	return nil
}

// onChange calls f with derived keys, newest first, now and after every change.
func (r *Ring) onChange(f func([][32]byte)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers = append(r.watchers, f)
	f(r.current.Load().derived())
}

func (r *Ring) seal(plain []byte) ([]byte, error) {
	k := &r.current.Load().keys[0]
	if r.now().Sub(k.created) > sealFor {
		return nil, errTicket
	}
	return k.siv.EncryptDeterministically(plain, nil)
}

func (r *Ring) open(sealed []byte) ([]byte, error) {
	if len(sealed) < sivSize+headSize+ShortName+secret256 {
		return nil, errTicket
	}
	for _, k := range r.current.Load().keys {
		if r.now().Sub(k.created) > sealFor+r.Lifetime() {
			continue
		}
		if plain, err := k.siv.DecryptDeterministically(sealed, nil); err == nil {
			return plain, nil
		}
	}
	return nil, errTicket
}

// prepend puts a fresh key before those kept.
func (s *ringState) prepend(now time.Time, kept []key) error {
	var id [keyIDSize]byte
	var secret [secretSize]byte
	for clash := true; clash; {
		rand.Read(id[:]) // never fails (Go 1.24)
		clash = false
		for _, k := range kept {
			clash = clash || k.id == id
		}
	}
	rand.Read(secret[:])
	k, err := newKey(id, now, secret)
	if err != nil {
		return err
	}
	s.keys = append([]key{k}, kept[:min(len(kept), maxKeys-1)]...)
	return nil
}

func newKey(id [keyIDSize]byte, created time.Time, secret [secretSize]byte) (key, error) {
	sealing, err := hkdf.Key(sha256.New, secret[:], nil, "fleethub compact ticket v1", subtle.AESSIVKeySize)
	if err != nil {
		return key{}, err
	}
	siv, err := subtle.NewAESSIV(sealing)
	return key{id: id, created: created, secret: secret, siv: siv}, err
}

// derived returns the keys under which crypto/tls makes the fallback tickets.
func (s *ringState) derived() [][32]byte {
	var keys [][32]byte
	for _, k := range s.keys {
		d, err := hkdf.Key(sha256.New, k.secret[:], nil, "fleethub crypto/tls ticket v1", secretSize)
		if err != nil {
			continue // a length that SHA-256 always gives
		}
		keys = append(keys, [32]byte(d))
	}
	return keys
}

// ringFile is the ring's file.
type ringFile struct {
	Version int                  `json:"version"`
	Keys    []keyFile            `json:"keys"` // newest first
	Drops   map[string]time.Time `json:"drops,omitempty"`
}

type keyFile struct {
	ID      []byte    `json:"id"`
	Created time.Time `json:"created"`
	Secret  []byte    `json:"secret"`
}

func (s *ringState) marshal() ([]byte, error) {
	f := ringFile{Version: ringVersion, Drops: s.drops}
	for _, k := range s.keys {
		f.Keys = append(f.Keys, keyFile{ID: k.id[:], Created: k.created.UTC(), Secret: k.secret[:]})
	}
	return json.Marshal(f)
}

func parseRing(data []byte) (*ringState, error) {
	var f ringFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, errors.New("the file is damaged")
	}
	if f.Version != ringVersion {
		return nil, fmt.Errorf("the file has format version %d, this hub reads %d", f.Version, ringVersion)
	}
	if len(f.Keys) == 0 {
		return nil, errors.New("the file has no key")
	}
	s := &ringState{drops: f.Drops}
	for _, k := range f.Keys {
		if len(k.ID) != keyIDSize || len(k.Secret) != secretSize {
			return nil, errors.New("the file is damaged")
		}
		parsed, err := newKey([keyIDSize]byte(k.ID), k.Created, [secretSize]byte(k.Secret))
		if err != nil {
			return nil, err
		}
		s.keys = append(s.keys, parsed)
	}
	return s, nil
}
