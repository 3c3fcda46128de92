package ticket_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/ticket"
)

// known is a registry of certificates that may be resumed with.
type known struct {
	mu        sync.Mutex
	certs     map[string][2]*x509.Certificate // by SHA-256
	ambiguous bool                            // short names fit several
}

func (k *known) Resumable(name []byte) (leaf []byte, issuer *x509.Certificate, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ambiguous && len(name) == ticket.ShortName {
		return nil, nil, false
	}
	for sum, c := range k.certs {
		if strings.HasPrefix(sum, string(name)) {
			return c[0].Raw, c[1], true
		}
	}
	return nil, nil, false
}

func sumOf(c certtest.Credential) string {
	sum := sha256.Sum256(c.Leaf.Raw)
	return string(sum[:])
}

func (k *known) add(c certtest.Credential) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.certs == nil {
		k.certs = make(map[string][2]*x509.Certificate)
	}
	k.certs[sumOf(c)] = [2]*x509.Certificate{c.Leaf, c.Issuer}
}

func (k *known) remove(c certtest.Credential) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.certs, sumOf(c))
}

// clock is a hand that tests move.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Now()} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// patience bounds an exchange that should take milliseconds.
const patience = 10 * time.Second

// bench is a TLS server with our tickets.
type bench struct {
	t     *testing.T
	fleet *certtest.Fleet
	known *known
	clock *clock
	path  string
	ring  *ticket.Ring
	codec *ticket.Codec
	tls   *tls.Config
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, fleet: certtest.New(t), known: &known{}, clock: newClock(), path: filepath.Join(t.TempDir(), "tickets.json")}
	b.start()
	return b
}

// start begins a server over the ring's file, as a hub does after a restart.
func (b *bench) start() {
	b.t.Helper()
	var err error
	if b.ring, err = ticket.OpenRing(b.path, ticket.Config{Now: b.clock.now}); err != nil {
		b.t.Fatal(err)
	}
	b.codec = ticket.New(b.ring, b.known, b.clock.now)
	verifier, err := mtls.NewVerifier(b.fleet.Trust(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	cert := b.fleet.Server().Certificate
	b.tls = mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		Verify: func(cs tls.ConnectionState) error {
			_, err := verifier.Verify(cs, identity.RoleDevice, identity.RoleService)
			return err
		},
	})
	b.tls.Time = b.clock.now // of which tickets are told their birth
	b.codec.Install(b.tls)
}

// cache keeps the one session of one client, where tests can get at its ticket.
type cache struct {
	ticket []byte
	state  *tls.SessionState
}

func (c *cache) Get(string) (*tls.ClientSessionState, bool) {
	if c.state == nil {
		return nil, false
	}
	s, err := tls.NewResumptionState(c.ticket, c.state)
	return s, err == nil
}

func (c *cache) Put(_ string, s *tls.ClientSessionState) {
	if ticket, state, err := s.ResumptionState(); err == nil && state != nil {
		c.ticket, c.state = ticket, state
	}
}

// connect makes one connection with an exchange over it, so that the client has read
// its ticket. It returns whether both sides say it was resumed.
func (b *bench) connect(c certtest.Credential, version uint16, sessions *cache) (resumed bool, err error) {
	b.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan bool, 1)
	go func() {
		far, err := listener.Accept()
		if err != nil {
			served <- false
			return
		}
		defer far.Close()
		far.SetDeadline(time.Now().Add(patience))
		server := tls.Server(far, b.tls)
		if server.Handshake() != nil {
			served <- false
			return
		}
		server.Write([]byte("!"))
		served <- server.ConnectionState().DidResume
	}()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	defer near.Close()
	near.SetDeadline(time.Now().Add(patience))
	config := c.ClientConfig()
	config.ClientSessionCache, config.MaxVersion = sessions, version
	client := tls.Client(near, config)
	if _, err = io.ReadFull(client, make([]byte, 1)); err != nil {
		near.Close()
	}
	resumed = <-served
	if err == nil && client.ConnectionState().DidResume != resumed {
		b.t.Error("client and server disagree about resumption")
	}
	return resumed, err
}

func (b *bench) mustConnect(c certtest.Credential, version uint16, sessions *cache, resumed bool) {
	b.t.Helper()
	got, err := b.connect(c, version, sessions)
	if err != nil {
		b.t.Fatal(err)
	}
	if got != resumed {
		b.t.Fatalf("resumed: got %v, want %v", got, resumed)
	}
}

func eachVersion(t *testing.T, f func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(v), func(t *testing.T) { t.Parallel(); f(t, v) })
	}
}

func TestCompactTicketResumesAndIsSmall(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device := b.fleet.Device("pi-1")
		b.known.add(device)
		for name, leafOnly := range map[string]bool{"chain": false, "leaf only": true} {
			c := device
			if leafOnly {
				c.Certificate.Certificate = c.Certificate.Certificate[:1]
			}
			sessions := &cache{}
			b.mustConnect(c, version, sessions, false)
			want := map[uint16]int{tls.VersionTLS13: 55, tls.VersionTLS12: 71}[version]
			if n := len(sessions.ticket); n != want {
				t.Errorf("%s: the ticket has %d octets, want %d", name, n, want)
			}
			b.mustConnect(c, version, sessions, true)
			b.mustConnect(c, version, sessions, true)
		}
		if n := b.codec.Stats.Fallback.Load(); n != 0 {
			t.Errorf("%d tickets were crypto/tls's own", n)
		}
	})
}

// A fleet that comes back without tickets must not fill the memory with what it presented, a
// certificate per connection.
func TestFullHandshakesKeepNoCertificateInMemory(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device := b.fleet.Device("pi-1")
		b.known.add(device)
		var presented []weak.Pointer[x509.Certificate]
		verify := b.tls.VerifyConnection
		b.tls.VerifyConnection = func(cs tls.ConnectionState) error {
			presented = append(presented, weak.Make(cs.PeerCertificates[0]))
			return verify(cs)
		}
		const connections = 10
		for range connections {
			b.mustConnect(device, version, &cache{}, false)
		}
		kept := func() (n int) {
			runtime.GC()
			for _, p := range presented {
				if p.Value() != nil {
					n++
				}
			}
			return n
		}
		for deadline := time.Now().Add(patience); kept() > 1; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("of one device's certificate %d copies are in memory after %d connections", kept(), connections)
			}
		}
		runtime.KeepAlive(b)
	})
}

func TestCertificatesOfOneShortNameAreNamedLonger(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device, sessions := b.fleet.Device("pi-1"), &cache{}
		b.known.add(device)
		b.known.ambiguous = true
		b.mustConnect(device, version, sessions, false)
		b.mustConnect(device, version, sessions, true)
		if n := b.codec.Stats.Fallback.Load(); n != 0 {
			t.Errorf("%d tickets were crypto/tls's own", n)
		}
	})
}

// A key that could not be replaced for days stops sealing, and later opening, by itself: its tickets could no longer tell
// their age.
func TestOverdueKeyNeitherSealsNorOpens(t *testing.T) {
	b := newBench(t)
	device, sessions := b.fleet.Device("pi-1"), &cache{}
	b.known.add(device)
	b.clock.advance(47 * time.Hour)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
	old := *sessions
	b.clock.advance(2 * time.Hour)
	b.mustConnect(device, tls.VersionTLS13, sessions, true)
	if b.codec.Stats.Fallback.Load() == 0 {
		t.Error("a key older than two days sealed a ticket")
	}
	b.clock.advance(1<<20*time.Second - 2*time.Hour) // by its 20 bits, the old ticket was made just now
	b.mustConnect(device, tls.VersionTLS13, &old, false)
}

func TestTicketOutlivesRestartOfTheHub(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device, sessions := b.fleet.Device("pi-1"), &cache{}
		b.known.add(device)
		b.mustConnect(device, version, sessions, false)
		b.start()
		b.mustConnect(device, version, sessions, true)
	})
}

func TestTicketOfWithdrawnCertificateIsWorthless(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device, sessions := b.fleet.Device("pi-1"), &cache{}
		b.known.add(device)
		b.mustConnect(device, version, sessions, false)
		b.known.remove(device)
		b.mustConnect(device, version, sessions, false)
	})
}

func TestUnknownCertificateFallsBackAndStillResumes(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		service, sessions := b.fleet.Service("backend"), &cache{}
		b.mustConnect(service, version, sessions, false)
		if b.codec.Stats.Fallback.Load() == 0 {
			t.Error("the fallback was not counted")
		}
		b.start() // its keys follow the ring's
		b.mustConnect(service, version, sessions, true)
		if err := b.ring.Drop(); err != nil {
			t.Fatal(err)
		}
		b.mustConnect(service, version, sessions, false)
	})
}

// crypto/tls's own tickets are held to what ours are: none may outlive its lifetime, its issuer's removal, or its device.
func TestFallbackTicketIsHeldToTheSameRules(t *testing.T) {
	for name, spoil := range map[string]func(b *bench, c certtest.Credential) error{
		"lifetime": func(b *bench, _ certtest.Credential) error {
			b.clock.advance(ticket.DefaultLifetime + time.Second)
			return nil
		},
		"issuer":    func(b *bench, c certtest.Credential) error { return b.ring.DropIssuer(c.Issuer.SubjectKeyId) },
		"all":       func(b *bench, _ certtest.Credential) error { return b.ring.Drop() },
		"withdrawn": func(b *bench, c certtest.Credential) error { b.known.remove(c); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, version uint16) {
				b := newBench(t)
				device, sessions := b.fleet.Device("pi-1"), &cache{}
				b.known.add(device)
				device.Certificate.Certificate = append(device.Certificate.Certificate, b.fleet.Root.Certificate().Raw) // more than a compact ticket can say
				b.mustConnect(device, version, sessions, false)
				b.mustConnect(device, version, sessions, true)
				if b.codec.Stats.Minted.Load() != 0 {
					t.Fatal("the ticket was a compact one")
				}
				if err := spoil(b, device); err != nil {
					t.Fatal(err)
				}
				b.mustConnect(device, version, sessions, false)
			})
		})
	}
}

func TestAnotherLifetimeIsInForceForTicketsThatAreOut(t *testing.T) {
	b := newBench(t)
	device, sessions := b.fleet.Device("pi-1"), &cache{}
	b.known.add(device)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
	early := *sessions
	b.clock.advance(2 * time.Minute)
	if err := b.ring.SetLifetime(time.Minute); err != nil || b.ring.Lifetime() != time.Minute {
		t.Fatal(err)
	}
	b.mustConnect(device, tls.VersionTLS13, &cache{early.ticket, early.state}, false)
	if err := b.ring.SetLifetime(ticket.MaxLifetime); err != nil {
		t.Fatal(err)
	}
	b.mustConnect(device, tls.VersionTLS13, &cache{early.ticket, early.state}, true)
	for _, d := range []time.Duration{0, -time.Second, ticket.MaxLifetime + 1} {
		if b.ring.SetLifetime(d) == nil || b.ring.Lifetime() != ticket.MaxLifetime {
			t.Errorf("a lifetime of %s is taken", d)
		}
	}
}

func TestRotationKeepsTicketsForTheirLifetime(t *testing.T) {
	b := newBench(t)
	device, sessions := b.fleet.Device("pi-1"), &cache{}
	b.known.add(device)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
	old := *sessions
	if err := b.ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	b.mustConnect(device, tls.VersionTLS13, &cache{old.ticket, old.state}, true)
	b.clock.advance(ticket.DefaultLifetime + time.Second)
	b.mustConnect(device, tls.VersionTLS13, &cache{old.ticket, old.state}, false)
	if err := b.ring.RotateIfDue(); err != nil {
		t.Fatal(err)
	}
	if err := b.ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	if n := b.ring.Len(); n != 3 { // two of this moment, and the one retired just now
		t.Errorf("ring has %d keys, want 3", n)
	}
	b.clock.advance(ticket.DefaultLifetime + time.Second)
	if err := b.ring.Rotate(); err != nil {
		t.Fatal(err)
	}
	if n := b.ring.Len(); n != 2 {
		t.Errorf("after a lifetime the ring has %d keys, want the new one and the one retired just now", n)
	}
}

func TestTicketFromTheFutureIsRefused(t *testing.T) {
	b := newBench(t)
	device, sessions := b.fleet.Device("pi-1"), &cache{}
	b.known.add(device)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
	b.clock.advance(-time.Hour)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
}

func TestDropAndDropIssuerKillTickets(t *testing.T) {
	for name, drop := range map[string]func(*bench) error{
		"all":    func(b *bench) error { return b.ring.Drop() },
		"issuer": func(b *bench) error { return b.ring.DropIssuer(b.fleet.Factory.Certificate().SubjectKeyId) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			device, sessions := b.fleet.Device("pi-1"), &cache{}
			b.known.add(device)
			b.mustConnect(device, tls.VersionTLS13, sessions, false)
			if err := drop(b); err != nil {
				t.Fatal(err)
			}
			stolen := *sessions
			b.mustConnect(device, tls.VersionTLS13, &stolen, false)
			b.start() // and they stay dead
			b.mustConnect(device, tls.VersionTLS13, sessions, false)
		})
	}
}

func TestDroppingAnIssuerSparesTheOthers(t *testing.T) {
	b := newBench(t)
	device, sessions := b.fleet.Device("pi-1"), &cache{}
	b.known.add(device)
	b.mustConnect(device, tls.VersionTLS13, sessions, false)
	if err := b.ring.DropIssuer(b.fleet.Operational.Certificate().SubjectKeyId); err != nil {
		t.Fatal(err)
	}
	b.mustConnect(device, tls.VersionTLS13, sessions, true)
}

// A thief who copied a ticket off the wire has no secret for it; one who offers it
// changed gets a full handshake, and needs the key for that.
func TestStolenOrDamagedTicketNeverResumes(t *testing.T) {
	eachVersion(t, func(t *testing.T, version uint16) {
		b := newBench(t)
		device, thief := b.fleet.Device("pi-1"), b.fleet.Device("thief")
		b.known.add(device)
		b.known.add(thief)
		owned, own := &cache{}, &cache{}
		b.mustConnect(device, version, owned, false)
		b.mustConnect(thief, version, own, false)

		stolen := &cache{ticket: owned.ticket, state: own.state}
		if resumed, err := b.connect(thief, version, stolen); resumed && err == nil {
			t.Error("a ticket was resumed by a client that does not know its secret")
		}
		for i := range owned.ticket {
			damaged := bytes.Clone(owned.ticket)
			damaged[i] ^= 1 << (i % 8)
			if resumed, err := b.connect(device, version, &cache{damaged, owned.state}); resumed || err != nil {
				t.Fatalf("octet %d flipped: resumed %v, error %v; want a full handshake", i, resumed, err)
			}
		}
		for _, n := range []int{1, 15, 16, 40, len(owned.ticket) - 1} {
			if resumed, err := b.connect(device, version, &cache{owned.ticket[:n], owned.state}); resumed || err != nil {
				t.Fatalf("cut to %d octets: resumed %v, error %v; want a full handshake", n, resumed, err)
			}
		}
	})
}

func TestDamagedRingFileIsNamed(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut": `{"version":1,"keys":[{"id":"AAA`, "no keys": `{"version":1}`, "newer": `{"version":2,"keys":[]}`,
		"short secret": `{"version":1,"keys":[{"id":"AAAAAA==","created":"2026-01-01T00:00:00Z","secret":"AAAA"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tickets.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ticket.OpenRing(path, ticket.Config{})
			if err == nil || !bytes.Contains([]byte(err.Error()), []byte(path)) {
				t.Errorf("got %v, want an error that names %s", err, path)
			}
		})
	}
}

func TestRingFileIsPrivate(t *testing.T) {
	b := newBench(t)
	info, err := os.Stat(b.path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %04o, want 0600", info.Mode().Perm())
	}
	if err := os.Chmod(b.path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ticket.OpenRing(b.path, ticket.Config{}); err == nil {
		t.Error("a ring that others can read was opened")
	}
}

func FuzzUnwrap(f *testing.F) {
	ring, err := ticket.OpenRing(filepath.Join(f.TempDir(), "tickets.json"), ticket.Config{})
	if err != nil {
		f.Fatal(err)
	}
	codec := ticket.New(ring, &known{}, nil)
	f.Add([]byte{})
	f.Add(make([]byte, 90))
	f.Add(make([]byte, 400))
	f.Fuzz(func(t *testing.T, identity []byte) {
		if state, err := codec.Unwrap(identity, tls.ConnectionState{}); state != nil || err != nil {
			t.Errorf("got %v, %v from noise", state, err)
		}
	})
}
