package listener

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// harness is a listener on loopback.
type harness struct {
	*Listener
	t    testing.TB
	pki  *certtest.Fleet
	addr string

	mu         sync.Mutex
	refusals   []string // "reason id"
	handshakes []bool   // resumed
	log        bytes.Buffer
}

func (h *harness) OnRefused(reason string, _ net.Addr, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusals = append(h.refusals, strings.TrimSpace(reason+" "+id))
}

func (h *harness) OnHandshake(resumed bool, _ time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handshakes = append(h.handshakes, resumed)
}

func (h *harness) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(p)
}

func (h *harness) refused(want string) {
	h.t.Helper()
	until(h.t, "refusal "+want, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.refusals) > 0 && h.refusals[len(h.refusals)-1] == want
	})
}

func start(t testing.TB, handle func(*Conn), change ...func(*Config)) *harness {
	t.Helper()
	return startOn(t, nil, handle, change...)
}

// startOn serves the net.Listener that wrap makes of one on loopback.
func startOn(t testing.TB, wrap func(net.Listener) net.Listener, handle func(*Conn), change ...func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, pki: certtest.New(t)}
	verifier, err := mtls.NewVerifier(h.pki.Trust(), nil)
	must(t, err)
	cert := h.pki.Server().Certificate
	config := Config{
		TLS:      mtls.ServerConfig(mtls.ServerOptions{Certificate: func() (*tls.Certificate, error) { return &cert, nil }}),
		Verify:   func(cs tls.ConnectionState) (mtls.Peer, error) { return verifier.Verify(cs, identity.RoleDevice) },
		Handle:   func(c *Conn) func() { return func() { handle(c) } },
		Observer: h,
		Log:      slog.New(slog.NewTextHandler(h, nil)),
	}
	for _, f := range change {
		f(&config)
	}
	h.Listener = New(config)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.addr = ln.Addr().String()
	if wrap != nil {
		ln = wrap(ln)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := h.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		h.Close()
		serving.Wait()
		if n := h.Open(); n != 0 {
			t.Errorf("%d connections are open after Close", n)
		}
	})
	return h
}

func (h *harness) dial(config *tls.Config) (*tls.Conn, error) {
	raw, err := net.Dial("tcp", h.addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, config)
	h.t.Cleanup(func() { conn.Close() })
	return conn, conn.Handshake()
}

func (h *harness) mustDial(id string) *tls.Conn {
	h.t.Helper()
	conn, err := h.dial(h.pki.Device(id).ClientConfig())
	must(h.t, err)
	return conn
}

// echo sends back what it reads.
func echo(c *Conn) {
	c.Connected()
	io.Copy(c, c)
}

func roundTrip(t testing.TB, conn *tls.Conn) {
	t.Helper()
	_, err := conn.Write([]byte("ping"))
	must(t, err)
	got := make([]byte, 4)
	_, err = io.ReadFull(conn, got)
	must(t, err)
	if string(got) != "ping" {
		t.Errorf("got %q", got)
	}
}

// ended waits until the peer has closed the connection.
func ended(t testing.TB, conn net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatal("the connection was not closed")
	}
}

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHandlerKnowsItsPeer(t *testing.T) {
	peers := make(chan mtls.Peer, 2)
	h := start(t, func(c *Conn) { peers <- c.Peer; echo(c) })
	config := h.pki.Device("pi-1").ClientConfig()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		conn, err := h.dial(config)
		must(t, err)
		roundTrip(t, conn)
		conn.Close()
		if p := <-peers; p.Identity.ID != "pi-1" || p.Certificate == nil || p.Issuer == nil || p.Resumed != (i == 1) {
			t.Errorf("connection %d: peer %v, resumed %v", i, p.Identity, p.Resumed)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.handshakes) != 2 || h.handshakes[0] || !h.handshakes[1] {
		t.Errorf("handshakes observed: %v, want full, then resumed", h.handshakes)
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name string
		dial func(h *harness) net.Conn
		want string
	}{
		{"no certificate", func(h *harness) net.Conn {
			config := h.pki.Device("pi-1").ClientConfig()
			config.Certificates = nil
			conn, _ := h.dial(config)
			return conn
		}, "no-certificate"},
		{"another fleet", func(h *harness) net.Conn {
			config := h.pki.Foreign().Device("pi-1").ClientConfig()
			config.RootCAs = h.pki.Device("x").ClientConfig().RootCAs
			conn, _ := h.dial(config)
			return conn
		}, "unknown-issuer pi-1"},
		{"other role", func(h *harness) net.Conn { conn, _ := h.dial(h.pki.Operator("alice").ClientConfig()); return conn }, "wrong-role alice"},
		{"plain text", func(h *harness) net.Conn {
			conn, err := net.Dial("tcp", h.addr)
			must(h.t, err)
			conn.SetDeadline(time.Now().Add(patience))
			io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
			return conn
		}, "not-tls"},
		{"goes away", func(h *harness) net.Conn {
			conn, err := net.Dial("tcp", h.addr)
			must(h.t, err)
			conn.Close()
			return conn
		}, "handshake-aborted"},
		{"refuses the hub", func(h *harness) net.Conn {
			conn, err := h.dial(h.pki.Foreign().Device("pi-1").ClientConfig())
			if err == nil {
				h.t.Error("the client trusts a hub of another fleet")
			}
			return conn
		}, "peer-alert"},
		{"old TLS", func(h *harness) net.Conn {
			config := h.pki.Device("pi-1").ClientConfig()
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			conn, _ := h.dial(config)
			return conn
		}, "handshake-failed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, func(*Conn) { t.Error("the handler was called") })
			conn := tt.dial(h)
			defer conn.Close()
			io.Copy(io.Discard, conn)
			h.refused(tt.want)
			h.mu.Lock()
			defer h.mu.Unlock()
			reason, _, _ := strings.Cut(tt.want, " ")
			if n := strings.Count(h.log.String(), "reason="+reason); n != 1 {
				t.Errorf("%d log lines with the reason, want 1:\n%s", n, h.log.String())
			}
		})
	}
}

// TestRefusedClientSeesTheAlert: also in TLS 1.3, where it has already sent
// something that the hub will not read.
func TestRefusedClientSeesTheAlert(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		h := start(t, echo)
		config := h.pki.Operator("alice").ClientConfig()
		config.MaxVersion = version
		conn, err := h.dial(config)
		if err == nil {
			conn.Write(make([]byte, 1000))
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("%s: the client sees %v, want the alert", tls.VersionName(version), err)
		}
		conn.Close()
	}
}

func TestSilentPeersAreClosedAtTheirDeadline(t *testing.T) {
	h := start(t, func(c *Conn) { io.Copy(io.Discard, c) }, func(c *Config) {
		c.HandshakeTimeout, c.ConnectTimeout = 100*time.Millisecond, 50*time.Millisecond
	})
	raw, err := net.Dial("tcp", h.addr) // says nothing
	must(t, err)
	defer raw.Close()
	ended(t, raw)
	h.refused("handshake-timeout")
	half, err := net.Dial("tcp", h.addr) // begins a record
	must(t, err)
	defer half.Close()
	half.Write([]byte{22, 3, 1})
	ended(t, half)
	ended(t, h.mustDial("pi-1")) // completes the handshake, then nothing
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestHalfOpenConnectionsDelayNobody(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.HandshakeTimeout = time.Hour })
	for range 100 {
		raw, err := net.Dial("tcp", h.addr)
		must(t, err)
		defer raw.Close()
	}
	roundTrip(t, h.mustDial("pi-1"))
}

func TestConnectionsAreBounded(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.MaxConnections = 2 })
	first, second := h.mustDial("pi-1"), h.mustDial("pi-2")
	roundTrip(t, first)
	roundTrip(t, second)
	if _, err := h.dial(h.pki.Device("pi-3").ClientConfig()); err == nil {
		t.Error("a third connection was accepted")
	}
	h.refused(ReasonTooMany)
	first.Close()
	until(t, "one has ended", func() bool { return h.Open() == 1 })
	roundTrip(t, h.mustDial("pi-3"))
	roundTrip(t, second)
}

// failingListener fails some Accepts.
type failingListener struct {
	net.Listener
	errs chan error
}

func (l *failingListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.errs:
		return nil, err
	default:
		return l.Listener.Accept()
	}
}

func TestAcceptErrorsDoNotEndTheLoop(t *testing.T) {
	failing := &failingListener{errs: make(chan error, 4)}
	failing.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	failing.errs <- &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}
	failing.errs <- errors.New("something else")
	h := startOn(t, func(ln net.Listener) net.Listener { failing.Listener = ln; return failing }, echo)
	roundTrip(t, h.mustDial("pi-1"))
}

func TestServeReportsAListenerThatSomebodyElseClosed(t *testing.T) {
	l := New(Config{TLS: &tls.Config{}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln.Close()
	if err := l.Serve(ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v", err)
	}
	l.Close()
	ln, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if err := l.Serve(ln); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestPanicInTheHandlerEndsItsConnectionOnly(t *testing.T) {
	h := start(t, func(c *Conn) {
		if c.Peer.Identity.ID == "bad" {
			panic("a bug")
		}
		echo(c)
	})
	good := h.mustDial("good")
	ended(t, h.mustDial("bad"))
	roundTrip(t, good)
}

func TestPanicInVerifyEndsItsConnectionOnly(t *testing.T) {
	var once sync.Once
	h := start(t, echo, func(c *Config) {
		verify := c.Verify
		c.Verify = func(cs tls.ConnectionState) (mtls.Peer, error) {
			once.Do(func() { panic("a bug") })
			return verify(cs)
		}
	})
	if conn, err := h.dial(h.pki.Device("bad").ClientConfig()); err == nil {
		ended(t, conn)
	}
	h.refused("panic bad")
	roundTrip(t, h.mustDial("good"))
}

func TestCloseEndsHandshakesAndHandlers(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.HandshakeTimeout = time.Hour })
	raw, err := net.Dial("tcp", h.addr)
	must(t, err)
	defer raw.Close()
	conn := h.mustDial("pi-1")
	roundTrip(t, conn)
	until(t, "both are there", func() bool { return h.Open() == 2 })
	h.Close()
	ended(t, raw)
	ended(t, conn)
}

func BenchmarkHandshake(b *testing.B) {
	h := start(b, func(c *Conn) { c.Write([]byte{0}) }, func(c *Config) { c.Limits.DeviceBurst = 1 << 30 })
	config := h.pki.Device("pi-1").ClientConfig()
	b.ReportAllocs()
	for b.Loop() {
		raw, err := net.Dial("tcp", h.addr)
		must(b, err)
		conn := tls.Client(raw, config)
		_, err = io.ReadAll(conn)
		must(b, err)
		conn.Close()
	}
}

// BenchmarkConfigPerConnection is what keeping the peer per connection costs.
func BenchmarkConfigPerConnection(b *testing.B) {
	l := New(Config{TLS: mtls.ServerConfig(mtls.ServerOptions{})})
	server, client := net.Pipe()
	defer server.Close()
	defer client.Close()
	raw := &rawConn{Conn: server}
	raw.conn = &Conn{raw: raw}
	hello := &tls.ClientHelloInfo{Conn: raw}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.configFor(hello); err != nil {
			b.Fatal(err)
		}
	}
}
