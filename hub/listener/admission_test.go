package listener

import (
	"crypto"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

// gate is the hub's key, which signs when the test allows it: a full handshake in it
// holds its right to compute for as long as the test likes.
type gate struct {
	crypto.Signer
	entered chan struct{} // one for each signature asked for
	permits chan struct{} // closed: all may
	once    sync.Once

	mu     sync.Mutex
	events []string // "sign", and "verify ID" of resumed handshakes
}

func (g *gate) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	g.note("sign")
	g.entered <- struct{}{}
	<-g.permits
	return g.Signer.Sign(rand, digest, opts)
}

func (g *gate) note(event string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, event)
}

// gated serves with one right to compute, and with a gate that one connection of
// "first" has entered after the devices of tickets had earned theirs.
func gated(t *testing.T, version uint16, tickets []string, change ...func(*Config)) (h *harness, g *gate, configs map[string]*tls.Config) {
	t.Helper()
	g = &gate{entered: make(chan struct{}, 100), permits: make(chan struct{})}
	h = start(t, echo, append([]func(*Config){func(c *Config) {
		own := c.TLS.GetCertificate
		c.TLS.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := own(hello)
			if err != nil {
				return nil, err
			}
			with := *cert
			g.once.Do(func() { g.Signer = cert.PrivateKey.(crypto.Signer) })
			with.PrivateKey = g
			return &with, nil
		}
		verify := c.Verify
		c.Verify = func(cs tls.ConnectionState) (mtls.Peer, error) {
			peer, err := verify(cs)
			if cs.DidResume {
				g.note("verify " + peer.Identity.ID)
			}
			return peer, err
		}
		c.HandshakeTimeout = time.Hour
		c.Limits.Computing = 1
	}}, change...)...)
	configs = make(map[string]*tls.Config)
	for _, id := range tickets {
		config := h.pki.Device(id).ClientConfig()
		config.MaxVersion = version
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		configs[id] = config
		earned := make(chan struct{})
		go func() { defer close(earned); g.permits <- struct{}{} }()
		conn, err := h.dial(config)
		must(t, err)
		<-earned
		<-g.entered
		roundTrip(t, conn)
		conn.Close()
	}
	h.inBackground(t, "first", h.pki.Device("first").ClientConfig())
	<-g.entered
	t.Cleanup(func() { g.open() })
	return h, g, configs
}

// open lets all sign from now on.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.permits:
	default:
		close(g.permits)
	}
}

// inBackground has a device connect and echo; the end of the test waits for it.
func (h *harness) inBackground(t *testing.T, id string, config *tls.Config) <-chan error {
	done := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() {
		done <- func() error {
			raw, err := net.Dial("tcp", h.addr)
			if err != nil {
				return err
			}
			defer raw.Close()
			raw.SetDeadline(time.Now().Add(patience))
			conn := tls.Client(raw, config)
			if _, err := conn.Write([]byte(id)); err != nil {
				return err
			}
			_, err = io.ReadFull(conn, make([]byte, len(id)))
			return err
		}()
	})
	t.Cleanup(running.Wait)
	return done
}

func (h *harness) waiting(resumed, full int) {
	h.t.Helper()
	until(h.t, fmt.Sprintf("%d resumed and %d full ones wait", resumed, full), func() bool {
		s := h.Stats()
		return s.WaitingResumed == resumed && s.WaitingFull == full
	})
}

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

func TestResumedHandshakesOvertakeFullOnes(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h, g, configs := gated(t, version, []string{"resumed-1", "resumed-2"})
			var done []<-chan error
			for i := range 3 {
				id := fmt.Sprintf("full-%d", i)
				done = append(done, h.inBackground(t, id, h.pki.Device(id).ClientConfig()))
				h.waiting(0, i+1)
			}
			for i, id := range []string{"resumed-1", "resumed-2"} {
				done = append(done, h.inBackground(t, id, configs[id]))
				h.waiting(i+1, 3)
			}
			g.permits <- struct{}{} // the first goes on, and hands over
			<-g.entered             // in the next full one
			g.mu.Lock()
			order := slices.Clone(g.events[2:]) // behind those that earned the tickets
			g.mu.Unlock()
			if want := []string{"sign", "verify resumed-1", "verify resumed-2", "sign"}; !slices.Equal(order, want) {
				t.Errorf("the order was %v, want %v", order, want)
			}
			g.open()
			for _, d := range done {
				must(t, <-d)
			}
		})
	}
}

// forge returns config with its ticket changed.
func forge(t *testing.T, config *tls.Config, change func([]byte)) {
	t.Helper()
	const key = "127.0.0.1"
	session, ok := config.ClientSessionCache.Get(key)
	if !ok {
		t.Fatal("no ticket was earned")
	}
	ticket, state, err := session.ResumptionState()
	must(t, err)
	change(ticket)
	forged, err := tls.NewResumptionState(ticket, state)
	must(t, err)
	config.ClientSessionCache.Put(key, forged)
}

func TestFalseTicketGainsNothing(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h, g, configs := gated(t, version, []string{"liar"}, func(c *Config) { c.Limits.FullQueue = 2 })
			forge(t, configs["liar"], func(ticket []byte) { ticket[len(ticket)/2] ^= 1 })
			honest := h.inBackground(t, "honest", h.pki.Device("honest").ClientConfig())
			h.waiting(0, 1)
			liar := h.inBackground(t, "liar", configs["liar"])
			h.waiting(0, 2)
			g.open()
			must(t, <-honest)
			must(t, <-liar) // to be served it needs no more than its turn
		})
	}
}

// TestTicketThatIsNotResumedWithGainsNothing: it opens, and is of another version.
func TestTicketThatIsNotResumedWithGainsNothing(t *testing.T) {
	for i, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			var mu sync.Mutex
			var state *tls.SessionState
			h, g, configs := gated(t, version, []string{"liar"}, func(c *Config) {
				own := c.TLS
				c.TLS.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) {
					mu.Lock()
					defer mu.Unlock()
					return state, nil
				}
				c.TLS.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
					ticket, err := own.EncryptTicket(cs, s)
					mu.Lock()
					defer mu.Unlock()
					if state != nil || err != nil {
						return ticket, err
					}
					encoded, err := s.Bytes()
					if err != nil {
						return nil, err
					}
					other := versions[1-i]
					encoded[0], encoded[1] = byte(other>>8), byte(other)
					if other == tls.VersionTLS12 {
						encoded = append(encoded, 0, 0) // its curve
					} else {
						encoded = encoded[:len(encoded)-2]
					}
					state, err = tls.ParseSessionState(encoded)
					return ticket, err
				}
			})
			honest := h.inBackground(t, "honest", h.pki.Device("honest").ClientConfig())
			h.waiting(0, 1)
			liar := h.inBackground(t, "liar", configs["liar"])
			h.waiting(1, 1)
			before := h.Stats()
			g.permits <- struct{}{}
			<-g.entered
			// The liar was first, and is sent back: it is the honest one that signs.
			h.waiting(0, 1)
			if now := h.Stats(); now.AdmittedResumed != before.AdmittedResumed+1 || now.AdmittedFull != before.AdmittedFull+1 {
				t.Errorf("admitted %d and %d", now.AdmittedResumed-before.AdmittedResumed, now.AdmittedFull-before.AdmittedFull)
			}
			g.open()
			must(t, <-honest)
			must(t, <-liar)
		})
	}
}

func TestFullQueueTurnsFullHandshakesAwayOnly(t *testing.T) {
	h, g, configs := gated(t, tls.VersionTLS13, []string{"resumed"}, func(c *Config) {
		c.Limits.FullQueue, c.Limits.ResumedQueue = 1, 1
		c.Limits.AddressBurst, c.Limits.AddressRate = 4, 1e-9
	})
	waiting := h.inBackground(t, "waiting", h.pki.Device("waiting").ClientConfig())
	h.waiting(0, 1)
	resumed := h.inBackground(t, "resumed", configs["resumed"])
	h.waiting(1, 1)
	for range 10 { // and it costs them no credit
		if _, err := h.dial(h.pki.Device("late").ClientConfig()); err == nil {
			t.Fatal("there was room")
		}
		h.refused(ReasonQueueFull)
	}
	g.open()
	must(t, <-waiting)
	must(t, <-resumed)
	roundTrip(t, h.mustDial("late"))
}

func TestWaitEndsInTimeToCompleteTheHandshake(t *testing.T) {
	h, g, _ := gated(t, tls.VersionTLS13, nil, func(c *Config) { c.HandshakeTimeout = 200 * time.Millisecond })
	if _, err := h.dial(h.pki.Device("late").ClientConfig()); err == nil {
		t.Error("it was served")
	}
	h.refused(ReasonQueueTimeout)
	g.open()
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestCloseEndsWaiting(t *testing.T) {
	h, g, configs := gated(t, tls.VersionTLS13, []string{"resumed"})
	full := h.inBackground(t, "full", h.pki.Device("full").ClientConfig())
	resumed := h.inBackground(t, "resumed", configs["resumed"])
	h.waiting(1, 1)
	closed := make(chan struct{})
	go func() { defer close(closed); h.Close() }()
	if <-full == nil || <-resumed == nil {
		t.Error("one was served after Close")
	}
	g.open()
	<-closed
}

func TestAddressHasSoMuchCredit(t *testing.T) {
	h := start(t, echo, func(c *Config) {
		c.HandshakeTimeout = time.Hour
		c.Limits.AddressBurst, c.Limits.AddressRate = 3, 1e-9
	})
	half := make([]net.Conn, 2)
	for i := range half {
		var err error
		half[i], err = net.Dial("tcp", h.addr)
		must(t, err)
		defer half[i].Close()
	}
	until(t, "both are there", func() bool { return h.Stats().Handshaking == 2 })
	for i := range 5 { // who succeeds uses none up
		roundTrip(t, h.mustDial(fmt.Sprintf("pi-%d", i)))
	}
	half[0].Close()
	h.refused(ReasonHandshakeAborted)
	third, err := net.Dial("tcp", h.addr)
	must(t, err)
	defer third.Close()
	until(t, "it is there", func() bool { return h.Stats().Handshaking == 2 })
	if _, err := h.dial(h.pki.Device("pi-9").ClientConfig()); err == nil {
		t.Error("more than the credit was given")
	}
	h.refused(ReasonAddressLimit)
}

func TestIssuerHasSoManyFullHandshakes(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.Limits.IssuerBurst, c.Limits.IssuerRate = 2, 1e-9 })
	resumable := h.pki.Device("pi-1").ClientConfig()
	resumable.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	conn, err := h.dial(resumable)
	must(t, err)
	roundTrip(t, conn)
	roundTrip(t, h.mustDial("pi-2"))

	refusedEarly := func() {
		t.Helper()
		signed := h.Stats().AdmittedFull
		if _, err := h.dial(h.pki.Device("pi-3").ClientConfig()); err == nil {
			t.Error("a third was served")
		}
		h.refused(ReasonIssuerLimit)
		if h.Stats().AdmittedFull != signed {
			t.Error("the handshake was begun, from an address where all are of that issuer")
		}
	}
	refusedEarly()
	conn, err = h.dial(resumable)
	must(t, err)
	roundTrip(t, conn) // a resumed handshake is none of these

	h.addresses.note(addressOf(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}), "another", 0, time.Now())
	other, err := h.dial(h.pki.Device("pi-4", certtest.WithIssuer(h.pki.Operational)).ClientConfig())
	must(t, err)
	roundTrip(t, other)
	for _, version := range versions {
		config := h.pki.Device("pi-5").ClientConfig()
		config.MaxVersion = version
		conn, err := h.dial(config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: the device sees %v: its certificate is good", tls.VersionName(version), err)
		}
		h.refused(ReasonIssuerLimit + " pi-5")
	}
}

// TestShownCertificateDoesNotUseUpItsIssuers: it is no secret, its key is.
func TestShownCertificateDoesNotUseUpItsIssuers(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.Limits.IssuerBurst, c.Limits.IssuerRate = 1, 1e-9 })
	for _, version := range versions {
		config := h.pki.Device("thief").ClientConfig()
		config.MaxVersion = version
		config.Certificates[0].Certificate = h.pki.Device("pi-1").Certificate.Certificate
		conn, err := h.dial(config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a certificate without its key is enough")
		}
	}
	roundTrip(t, h.mustDial("pi-1"))
}
