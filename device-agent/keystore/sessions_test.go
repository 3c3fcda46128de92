package keystore

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// versions are both that a hub speaks.
var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// handshakeTimeout ends a handshake that hangs; a good one takes milliseconds.
const handshakeTimeout = 30 * time.Second

// hub is the server side: a hub's TLS listener, which notes the tickets it is offered.
type hub struct {
	address string
	config  *tls.Config

	mu      sync.Mutex // guards what follows
	offered []string   // tickets, in order
	onHello func()     // called when a ClientHello has arrived
	refuse  error      // what verification says of everybody
}

func newHub(t *testing.T, fleet *certtest.Fleet) *hub {
	t.Helper()
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{onHello: func() {}}
	cert := fleet.Server().Certificate
	h.config = mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Verify: func(cs tls.ConnectionState) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			_, err := verifier.Verify(cs, identity.RoleDevice)
			return errors.Join(err, h.refuse)
		},
	})
	h.config.SetSessionTicketKeys([][32]byte{{1}})
	h.config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.onHello()
		return nil, nil
	}
	h.config.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		if len(ticket) > 0 { // in TLS 1.2 an empty one asks for one
			h.mu.Lock()
			h.offered = append(h.offered, string(ticket))
			h.mu.Unlock()
		}
		return h.config.DecryptTicket(ticket, cs)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = listener.Addr().String()
	var served sync.WaitGroup
	served.Go(func() { // until the listener is closed
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() { // until the client is done, or the deadline
				_ = exchange(tls.Server(raw, h.config), (*tls.Conn).Write, (*tls.Conn).Read)
			})
		}
	})
	t.Cleanup(func() { _ = listener.Close(); served.Wait() })
	return h
}

func (h *hub) set(change func(*hub)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

// tickets returns how many were offered, and how many of them before.
func (h *hub) tickets() (offered, repeated int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	distinct := slices.Compact(slices.Sorted(slices.Values(h.offered)))
	return len(h.offered), len(h.offered) - len(distinct)
}

// exchange shakes hands and passes a byte each way, so that in TLS 1.3 the client
// learns whether it was refused, and has its ticket.
func exchange(conn *tls.Conn, steps ...func(*tls.Conn, []byte) (int, error)) error {
	defer conn.Close()
	err := errors.Join(conn.SetDeadline(time.Now().Add(handshakeTimeout)), conn.Handshake())
	for _, step := range steps {
		if err == nil {
			var n int
			if n, err = step(conn, []byte{0}); n == 1 {
				err = nil // the byte may come with the end of the connection
			}
		}
	}
	return err
}

// connect has a device shake hands with the hub at address.
func connect(address string, cred mtls.Credentials, version uint16, cache tls.ClientSessionCache, now func() time.Time) (resumed bool, err error) {
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: cred.Certificate, Roots: cred.Roots, ServerName: "127.0.0.1", Sessions: cache})
	config.MaxVersion = version
	config.Time = now
	raw, err := net.DialTimeout("tcp", address, handshakeTimeout)
	if err != nil {
		return false, err
	}
	conn := tls.Client(raw, config)
	err = exchange(conn, (*tls.Conn).Read, (*tls.Conn).Write)
	return conn.ConnectionState().DidResume, err
}

// board is a device with a saved session, or none yet.
type board struct {
	t       *testing.T
	hub     *hub
	cred    mtls.Credentials
	version uint16
	config  SessionsConfig
	log     *bytes.Buffer
	ahead   time.Duration // of the board's clock
}

func newBoard(t *testing.T, fleet *certtest.Fleet, version uint16) *board {
	t.Helper()
	b := &board{t: t, hub: newHub(t, fleet), cred: fleet.Device("pi-1").Credentials, version: version, log: new(bytes.Buffer)}
	b.config = SessionsConfig{
		Path:    filepath.Join(t.TempDir(), "tls-session"),
		Binding: Binding{Hub: b.hub.address, Roots: b.cred.Roots, Leaf: b.cred.Leaf},
		Now:     b.now,
		Log:     slog.New(slog.NewTextHandler(b.log, nil)),
	}
	return b
}

func (b *board) now() time.Time { return time.Now().Add(b.ahead) }

// boot opens the cache as an agent does that has just started.
func (b *board) boot() *Sessions {
	b.log.Reset()
	return OpenSessions(b.config)
}

// connect fails the test unless the handshake goes as wanted.
func (b *board) connect(s *Sessions, resumed bool) {
	b.t.Helper()
	got, err := connect(b.hub.address, b.cred, b.version, s, b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	if got != resumed {
		b.t.Fatalf("resumed: %t; stats %+v; log %s", got, s.Stats(), b.log)
	}
}

// saved returns a board that has just been handed a session and has gone down.
func saved(t *testing.T, fleet *certtest.Fleet, version uint16) *board {
	t.Helper()
	b := newBoard(t, fleet, version)
	b.connect(b.boot(), false)
	return b
}

// wantFile fails the test unless the file holds a session, or holds none.
func (b *board) wantFile(session bool) {
	b.t.Helper()
	if data, err := os.ReadFile(b.config.Path); holdsSession(data) != session {
		b.t.Errorf("the file has %d bytes, %v; want a session: %t", len(data), err, session)
	}
}

// holdsSession reports whether there is anything in a file.
func holdsSession(file []byte) bool { return len(bytes.Trim(file, "\x00")) > 0 }

func (b *board) wantLogLines(n int) {
	b.t.Helper()
	if got := strings.Count(b.log.String(), "\n"); got != n {
		b.t.Errorf("%d log lines, want %d:\n%s", got, n, b.log)
	}
}

func eachVersion(t *testing.T, f func(t *testing.T, version uint16)) {
	for name, version := range versions {
		t.Run(name, func(t *testing.T) { t.Parallel(); f(t, version) })
	}
}

func TestFirstConnectAfterARebootIsAResumption(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, version uint16) {
		b := saved(t, certtest.New(t), version)
		for range 3 {
			s := b.boot()
			if stats := s.Stats(); !stats.Ready || stats.Since.IsZero() || stats.Protection != ProtectionFile {
				t.Errorf("%+v", stats)
			}
			b.connect(s, true)
			b.connect(s, true)
			if stats := s.Stats(); stats.Offered != 2 || stats.Stored != 2 || stats.Problem != "" {
				t.Errorf("%+v", stats)
			}
			b.wantLogLines(0)
		}
		if offered, repeated := b.hub.tickets(); offered != 6 || repeated != 0 {
			t.Errorf("%d tickets offered, %d of them twice", offered, repeated)
		}
		if info, err := os.Stat(b.config.Path); err != nil || info.Mode().Perm() != 0o600 || info.Size() > 4096 {
			t.Errorf("%v, %v", info, err)
		}
	})
}

func TestTicketIsOffTheDiskBeforeItIsOffered(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, version uint16) {
		b := saved(t, certtest.New(t), version)
		there := []byte("no ClientHello came")
		b.hub.set(func(h *hub) { h.onHello = func() { there, _ = os.ReadFile(b.config.Path) } })
		b.connect(b.boot(), true)
		if holdsSession(there) {
			t.Errorf("when the ClientHello came, the file held %q", there)
		}
		b.wantFile(true) // the next ticket
	})
}

// Whatever becomes of the connection, its ticket isn't used again.
func TestTicketOfARefusedOrBrokenConnectIsSpent(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, version uint16) {
		b := saved(t, certtest.New(t), version)
		b.hub.set(func(h *hub) { h.refuse = errors.New("revoked") })
		s := b.boot()
		if _, err := connect(b.hub.address, b.cred, version, s, nil); err == nil {
			t.Fatal("not refused")
		}
		b.hub.set(func(h *hub) { h.refuse = nil })
		// A TLS 1.3 server hands out the next ticket before it refuses a resumption.
		if _, err := connect(b.hub.address, b.cred, version, b.boot(), nil); err != nil {
			t.Fatal(err)
		}
		if offered, repeated := b.hub.tickets(); offered < 1 || repeated != 0 {
			t.Errorf("%d tickets offered, %d of them twice", offered, repeated)
		}
	})
}

func TestSessionIsNeverOfferedWithAnotherBinding(t *testing.T) {
	t.Parallel()
	fleet := certtest.New(t)
	b := saved(t, fleet, tls.VersionTLS13)
	binding := b.config.Binding
	file, err := os.ReadFile(b.config.Path)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(b.hub.address)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Binding){
		"other name":        func(o *Binding) { o.Hub = "localhost:" + port },
		"other port":        func(o *Binding) { o.Hub = "127.0.0.1:1" },
		"other bundle":      func(o *Binding) { o.Roots = certtest.New(t).Trust().Roots },
		"larger bundle":     func(o *Binding) { o.Roots = append(slices.Clone(o.Roots), certtest.New(t).Trust().Roots...) },
		"empty bundle":      func(o *Binding) { o.Roots = nil },
		"other certificate": func(o *Binding) { o.Leaf = fleet.Device("pi-1").Leaf },
	} {
		b.config.Binding = binding
		change(&b.config.Binding)
		s := b.boot()
		for _, server := range []string{"127.0.0.1", "localhost"} {
			if _, ok := s.Get(server); ok {
				t.Errorf("%s: offered to %s", name, server)
			}
		}
		b.wantLogLines(1)
		if s.Stats().Problem == "" {
			t.Errorf("%s: %+v", name, s.Stats())
		}
		if err := os.WriteFile(b.config.Path, file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.config.Binding = binding
	s := b.boot()
	if _, ok := s.Get("localhost"); ok {
		t.Error("offered to another name than that of its hub")
	}
	s.Put("localhost", nil)
	b.connect(s, true)
	two := Binding{Roots: append(slices.Clone(binding.Roots), certtest.New(t).Trust().Roots...), Leaf: binding.Leaf}
	reversed := two
	reversed.Roots = slices.Clone(two.Roots)
	slices.Reverse(reversed.Roots)
	if two.digest() != reversed.digest() {
		t.Error("the order of the trust bundle matters")
	}
}

func TestSessionAndClock(t *testing.T) {
	t.Parallel()
	y1970 := -time.Since(time.Unix(60, 0))
	for name, tt := range map[string]struct {
		ahead   time.Duration
		offered bool
		kept    bool // for when the clock is right
	}{
		"a moment later":      {time.Minute, true, false},
		"six days later":      {6 * 24 * time.Hour, true, false},
		"eight days later":    {8 * 24 * time.Hour, false, false},
		"a decade ahead":      {87600 * time.Hour, false, false},
		"an hour behind":      {-time.Hour, true, false}, // the time saved before the power failed
		"two days behind":     {-48 * time.Hour, false, true},
		"no clock: 1 January": {y1970, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachVersion(t, func(t *testing.T, version uint16) {
				b := saved(t, certtest.New(t), version)
				b.ahead = tt.ahead
				s := b.boot()
				if _, ok := s.Get("127.0.0.1"); ok != tt.offered {
					t.Errorf("offered: %t, %+v", ok, s.Stats())
				}
				b.wantFile(tt.kept)
				b.wantLogLines(0)
				if stats := s.Stats(); stats.Ready != tt.kept || stats.Offered+stats.Expired+stats.Withheld != 1 {
					t.Errorf("%+v", stats)
				}
				if tt.kept {
					b.ahead = 0 // the clock is set
					b.connect(s, true)
				}
			})
		})
	}
}

// What our own checks rely on: crypto/tls itself offers nothing at 1970, and forgets
// the session; and it minds the lifetime that the hub gave a TLS 1.3 ticket.
func TestCryptoTLSRefusesAtWrongTimesByItself(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBoard(t, certtest.New(t), version)
		cache := tls.NewLRUClientSessionCache(1)
		for _, at := range []func() time.Time{time.Now, func() time.Time { return time.Unix(60, 0) }} {
			resumed, err := connect(b.hub.address, b.cred, version, cache, at)
			if resumed {
				t.Error("resumed")
			}
			if at().Year() == 1970 && (err == nil || !strings.Contains(err.Error(), "not yet valid")) {
				t.Errorf("a full handshake at 1970: %v", err)
			}
		}
		if _, ok := cache.Get("127.0.0.1"); ok {
			t.Error("the session was kept")
		}
		if version != tls.VersionTLS13 {
			return
		}
		b = saved(t, certtest.New(t), version)
		s := b.boot()
		late := func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
		if resumed, err := connect(b.hub.address, b.cred, version, s, late); resumed || err != nil {
			t.Errorf("resumed %t, %v", resumed, err)
		}
	})
}

func TestOneConnectWritesOnce(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	s := b.boot()
	first, ok := s.Get("127.0.0.1")
	if !ok {
		t.Fatal("no session")
	}
	last := new(tls.ClientSessionState) // not even one that could be stored
	s.Put("127.0.0.1", first)
	for range 100 {
		s.Put("127.0.0.1", last)
	}
	if stats := s.Stats(); stats.Stored != 1 || stats.NotStored != 0 {
		t.Errorf("%+v", stats)
	}
	if got, ok := s.Get("127.0.0.1"); !ok || got != last {
		t.Errorf("the newest isn't the one that is offered: %p, %t", got, ok)
	}
	b.wantFile(false) // the older one goes with it
	b.wantLogLines(0)
}

func TestConcurrentGetsOfferOnce(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	s := b.boot()
	for range 20 {
		var offered []*tls.ClientSessionState
		var mu sync.Mutex
		var users sync.WaitGroup
		for range 8 {
			users.Go(func() {
				if state, ok := s.Get("127.0.0.1"); ok {
					mu.Lock()
					offered = append(offered, state)
					mu.Unlock()
				}
				s.Stats()
			})
		}
		users.Wait()
		if len(offered) != 1 {
			t.Fatalf("offered %d times", len(offered))
		}
		s.Put("127.0.0.1", offered[0])
	}
}
