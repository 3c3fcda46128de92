package link

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
)

// running is a link in the course of its Run.
type running struct {
	*Link
	t       *testing.T
	changes chan Status
	end     func() // cancels Run and waits for it
}

// start runs a link as cred against address, with short waits.
func start(t *testing.T, address string, cred certtest.Credential, change ...func(*Config)) *running {
	t.Helper()
	r := &running{t: t, changes: make(chan Status, 1000)}
	config := Config{
		Address:      address,
		Credentials:  func() (mtls.Credentials, error) { return cred.Credentials, nil },
		Boot:         "boot-1",
		Backoff:      Backoff{Base: time.Millisecond, Cap: 20 * time.Millisecond},
		RefusedRetry: time.Hour,
		Changed:      func(s Status) { r.changes <- s },
	}
	for _, c := range change {
		c(&config)
	}
	l, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	r.Link = l
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.end)
	return r
}

// until waits for a status that has state.
func (r *running) until(state State) Status {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case s := <-r.changes:
			if s.State == state {
				return s
			}
		case <-deadline:
			r.t.Fatalf("never %s; now %+v", state, r.Status())
		}
	}
}

func publish(t *testing.T, r *running, topic, payload string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Publish(ctx, topic, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

func notice(t *testing.T, payload []byte) protocol.Notice {
	t.Helper()
	var n protocol.Notice
	if err := json.Unmarshal(payload, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConnectedDeviceSaysHelloPublishesAndSaysGoodbye(t *testing.T) {
	p := goodPeer(t)
	r := start(t, p.address, p.fleet.Device("pi-1"))
	if s := r.until(StateConnected); s.Full != 1 || s.Resumed != 0 || s.Handshake.Protocol != "TLS 1.3" {
		t.Errorf("status %+v, handshake %+v", s, s.Handshake)
	}
	if n := notice(t, p.next("d/pi-1/evt/online").Payload); n.Boot != "boot-1" {
		t.Errorf("hello is %+v", n)
	}
	publish(t, r, protocol.Telemetry("pi-1", "x"), "hello")
	if pk := p.next("d/pi-1/tele/x"); string(pk.Payload) != "hello" || pk.FixedHeader.Qos != 1 {
		t.Errorf("published %q at QoS %d", pk.Payload, pk.FixedHeader.Qos)
	}
	r.end()
	if n := notice(t, p.next("d/pi-1/evt/offline").Payload); n.Reason != "shutdown" {
		t.Errorf("goodbye is %+v", n)
	}
	if s := r.Status(); s.State != StateStopped {
		t.Errorf("state after Run is %s", s.State)
	}
	if err := r.Publish(t.Context(), "d/pi-1/tele/x", nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("Publish after Run: %v", err)
	}
	<-p.gone
	select {
	case pk := <-p.received:
		t.Errorf("%s after the goodbye: the will wasn't discarded", pk.TopicName)
	default:
	}
}

func TestBrokenConnectionLeavesAWillAndIsResumed(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			fleet := certtest.New(t)
			p := newPeer(t, fleet, fleet.Server(), version)
			r := start(t, p.address, fleet.Device("pi-1"))
			r.until(StateConnected)
			p.next("evt/online") // a TLS 1.3 ticket has come by then, too
			p.cut("pi-1")
			if f := r.until(StateWaiting).LastFailure; f.Kind != KindLost {
				t.Errorf("failure is %+v", f)
			}
			if n := notice(t, p.next("d/pi-1/evt/offline").Payload); !strings.Contains(n.Reason, "lost") {
				t.Errorf("will is %+v", n)
			}
			s := r.until(StateConnected)
			if s.Full != 1 || s.Resumed != 1 || !s.Handshake.Resumed || s.Handshake.Protocol != tls.VersionName(version) {
				t.Errorf("status %+v, handshake %+v", s, s.Handshake)
			}
			publish(t, r, "d/pi-1/tele/x", "back")
		})
	}
}

func TestReplacedCertificateIsPickedUpAndNotResumed(t *testing.T) {
	p := goodPeer(t)
	first, second := p.fleet.Device("pi-1"), p.fleet.Device("pi-1")
	calls := 0 // owned by the link's goroutine
	r := start(t, p.address, first, func(c *Config) {
		c.Credentials = func() (mtls.Credentials, error) {
			if calls++; calls > 1 {
				return second.Credentials, nil
			}
			return first.Credentials, nil
		}
	})
	r.until(StateConnected)
	p.next("evt/online")
	p.cut("pi-1")
	if s := r.until(StateConnected); s.Full != 2 || s.Resumed != 0 {
		t.Errorf("%d full and %d resumed handshakes, want 2 full: a ticket stands for the old certificate", s.Full, s.Resumed)
	}
}

func TestDeviceComesBackWhenTheHubDoes(t *testing.T) {
	p := goodPeer(t)
	r := start(t, p.address, p.fleet.Device("pi-1"))
	r.until(StateConnected)
	p.stop()
	for r.until(StateWaiting).LastFailure.Kind != KindUnreachable {
	}
	p.start(p.address)
	if s := r.until(StateConnected); s.Full+s.Resumed != 2 {
		t.Errorf("status %+v", s)
	}
}

func TestRefusedDeviceSaysWhyAndRetriesSlowly(t *testing.T) {
	revoked := errors.New("revoked")
	now := time.Now()
	tests := []struct {
		name    string
		version uint16
		tls     error
		connack byte
		device  func(f *certtest.Fleet) certtest.Credential
		kind    Kind
		reason  string // both must be part of the text
		advice  string
	}{
		{name: "by policy, TLS 1.3", version: tls.VersionTLS13, tls: revoked, kind: KindRefused, reason: "refused the certificate of pi-1 (tls: bad certificate)", advice: "revoked or suspended"},
		{name: "by policy, TLS 1.2", version: tls.VersionTLS12, tls: revoked, kind: KindRefused, reason: "refused the certificate of pi-1 (tls: bad certificate)", advice: "hub device show pi-1"},
		{name: "expired", version: tls.VersionTLS13, kind: KindRefused, reason: "bad certificate", advice: "the certificate expired at",
			device: func(f *certtest.Fleet) certtest.Credential {
				return f.Device("pi-1", certtest.WithValidity(now.Add(-48*time.Hour), 24*time.Hour))
			}},
		{name: "not yet valid", version: tls.VersionTLS13, kind: KindRefused, reason: "bad certificate", advice: "set the clock",
			device: func(f *certtest.Fleet) certtest.Credential {
				return f.Device("pi-1", certtest.WithValidity(now.Add(48*time.Hour), 24*time.Hour))
			}},
		{name: "another fleet's device", version: tls.VersionTLS13, kind: KindRefused, reason: "bad certificate", advice: "doesn't trust the station",
			device: func(f *certtest.Fleet) certtest.Credential {
				c := f.Foreign().Device("pi-1")
				c.Roots = f.Device("pi-2").Roots // it trusts the hub, the hub not it
				return c
			}},
		{name: "client identifier", version: tls.VersionTLS13, connack: 2, kind: KindRefused, reason: "rejected the client identifier pi-1", advice: "certificate's identity"},
		{name: "not authorized", version: tls.VersionTLS13, connack: 5, kind: KindRefused, reason: "doesn't authorize pi-1", advice: "suspended, revoked or unknown"},
		{name: "bad user", version: tls.VersionTLS13, connack: 4, kind: KindRefused, reason: "doesn't authorize pi-1", advice: "hub device show pi-1"},
		{name: "protocol version", version: tls.VersionTLS13, connack: 1, kind: KindRefused, reason: "doesn't speak MQTT 3.1.1"},
		{name: "unavailable", version: tls.VersionTLS13, connack: 3, kind: KindBusy, reason: "isn't taking connections now"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fleet := certtest.New(t)
			p := newPeer(t, fleet, fleet.Server(), tt.version)
			p.set(func(p *peer) { p.tls, p.connack = tt.tls, tt.connack })
			device := fleet.Device("pi-1")
			if tt.device != nil {
				device = tt.device(fleet)
			}
			r := start(t, p.address, device)
			s := r.until(StateWaiting)
			f := s.LastFailure
			if f.Kind != tt.kind || !strings.Contains(f.Reason, tt.reason) || !strings.Contains(f.Advice, tt.advice) {
				t.Errorf("failure is %s: %s\nadvice: %s", f.Kind, f.Reason, f.Advice)
			}
			wait := time.Until(s.NextAttempt)
			if f.Slow() && (wait < 59*time.Minute || wait > 3*time.Hour) {
				t.Errorf("retries in %s, want one to three hours", wait)
			}
			if f.Slow() != (s.LastRefusal != nil) || f.Slow() != (tt.kind == KindRefused) {
				t.Errorf("slow is %v, last refusal %v", f.Slow(), s.LastRefusal)
			}
			if s.Full != 0 {
				t.Error("a refused handshake was counted as one")
			}
		})
	}
}

func TestDeviceRefusesAHubItCantTrust(t *testing.T) {
	fleet := certtest.New(t)
	tests := []struct {
		name   string
		server certtest.Credential
		host   string
		advice string
	}{
		{"another fleet's", fleet.Foreign().Server(), "127.0.0.1", "another fleet's hub, or an impostor"},
		{"a device's certificate", fleet.Device("pi-2"), "127.0.0.1", "doesn't name the host"},
		{"another name", fleet.Server(), "127.0.0.2", "doesn't name the host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, fleet, tt.server, tls.VersionTLS13)
			_, port, err := net.SplitHostPort(p.address)
			if err != nil {
				t.Fatal(err)
			}
			p.stop()
			p.start(net.JoinHostPort("0.0.0.0", port))
			r := start(t, net.JoinHostPort(tt.host, port), fleet.Device("pi-1"))
			f := r.until(StateWaiting).LastFailure
			if f.Kind != KindUntrusted || !f.Slow() || !strings.Contains(f.Advice, tt.advice) {
				t.Errorf("failure is %s: %s\nadvice: %s", f.Kind, f.Reason, f.Advice)
			}
		})
	}
}

func TestHubThatIsNoHub(t *testing.T) {
	fleet := certtest.New(t)
	tests := []struct {
		name  string
		serve func(net.Conn)
		kind  Kind
	}{
		{"plain text", func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, KindUntrusted},
		{"closes", func(net.Conn) {}, KindClosed},
		{"silent", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, KindTimeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var conns sync.WaitGroup
			conns.Go(func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					conns.Go(func() { defer c.Close(); tt.serve(c) })
				}
			})
			r := start(t, l.Addr().String(), fleet.Device("pi-1"), func(c *Config) { c.ConnectTimeout = 300 * time.Millisecond })
			if f := r.until(StateWaiting).LastFailure; f.Kind != tt.kind {
				t.Errorf("failure is %s: %s", f.Kind, f.Error())
			}
			r.end()
			_ = l.Close()
			conns.Wait()
		})
	}
	t.Run("nobody", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		r := start(t, l.Addr().String(), fleet.Device("pi-1"))
		if f := r.until(StateWaiting).LastFailure; f.Kind != KindUnreachable || !strings.Contains(f.Error(), "connection refused") {
			t.Errorf("failure is %s: %s", f.Kind, f.Error())
		}
	})
}

// The hub's other doors speak TLS, too.
func TestDoorThatIsNotForMQTTIsSuspected(t *testing.T) {
	fleet := certtest.New(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{fleet.Server().Certificate}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer c.Close(); _, _ = io.Copy(io.Discard, c) })
		}
	})
	r := start(t, l.Addr().String(), fleet.Device("pi-1"), func(c *Config) { c.ConnectTimeout = time.Second })
	if f := r.until(StateWaiting).LastFailure; f.Kind != KindTimeout || !strings.Contains(f.Advice, "not its MQTT port") {
		t.Errorf("failure is %s: %s", f.Kind, f.Error())
	}
	r.end()
	_ = l.Close()
	conns.Wait()
}

func TestHubThatClosesInsteadOfConnackIsAskedAgainSoon(t *testing.T) {
	p := goodPeer(t)
	p.set(func(p *peer) { p.silent = true })
	r := start(t, p.address, p.fleet.Device("pi-1"))
	if f := r.until(StateWaiting).LastFailure; f.Kind != KindClosed || !strings.Contains(f.Reason, "without saying why") {
		t.Errorf("failure is %s: %s", f.Kind, f.Error())
	}
	p.set(func(p *peer) { p.silent = false })
	r.until(StateConnected)
}

func TestUnacknowledgedMessageIsAnErrorAndTheLinkGoesOn(t *testing.T) {
	p := goodPeer(t)
	p.set(func(p *peer) { p.mute = "/tele/forbidden" })
	r := start(t, p.address, p.fleet.Device("pi-1"), func(c *Config) { c.AckTimeout = 50 * time.Millisecond })
	r.until(StateConnected)
	if err := r.Publish(t.Context(), "d/pi-1/tele/forbidden", nil); !errors.Is(err, ErrNotAcknowledged) {
		t.Errorf("Publish: %v", err)
	}
	for r.Publish(t.Context(), "d/pi-1/tele/allowed", nil) != nil { // a slow machine may need more than one
	}
	if s := r.Status(); s.State != StateConnected || s.Full != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestHubThatAcknowledgesNothingIsLeft(t *testing.T) {
	p := goodPeer(t)
	p.set(func(p *peer) { p.mute = "/tele/" })
	r := start(t, p.address, p.fleet.Device("pi-1"), func(c *Config) { c.AckTimeout = time.Millisecond })
	r.until(StateConnected)
	for range maxUnacknowledged {
		if err := r.Publish(t.Context(), "d/pi-1/tele/x", nil); err == nil {
			t.Fatal("acknowledged")
		}
	}
	if f := r.until(StateWaiting).LastFailure; f.Kind != KindLost || !strings.Contains(f.Reason, "unacknowledged") {
		t.Errorf("failure is %s: %s", f.Kind, f.Error())
	}
}

func TestStopWhileConnectingIsQuick(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := start(t, l.Addr().String(), certtest.New(t).Device("pi-1"), func(c *Config) { c.ConnectTimeout = time.Hour })
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r.end() // hangs for an hour if it doesn't break off the handshake
}

func TestUnusableCredentialsAreAFailureOfTheirOwn(t *testing.T) {
	r := start(t, "127.0.0.1:1", certtest.New(t).Device("pi-1"), func(c *Config) {
		c.Credentials = func() (mtls.Credentials, error) { return mtls.Credentials{}, errors.New("device.key is missing") }
	})
	if f := r.until(StateWaiting).LastFailure; f.Kind != KindCredentials || !f.Slow() || f.Reason != "device.key is missing" {
		t.Errorf("failure is %+v", f)
	}
}

func TestAddressMustBeHostAndPort(t *testing.T) {
	for address, good := range map[string]bool{
		"hub.example:8883": true, "[::1]:8883": true, "127.0.0.1:1": true,
		"": false, "hub.example": false, ":8883": false, "hub:0": false, "hub:65536": false, "hub:mqtt": false, "mqtts://hub:8883": false, "::1:8883": false,
	} {
		if err := CheckAddress(address); (err == nil) != good {
			t.Errorf("CheckAddress(%q) = %v", address, err)
		}
	}
}

// A key that isn't in memory, as in a TPM, signs as well: the link asks for a
// crypto.Signer and no more.
func TestAnySignerWillDo(t *testing.T) {
	p := goodPeer(t)
	device := p.fleet.Device("pi-1")
	device.Certificate.PrivateKey = opaque{device.Key}
	r := start(t, p.address, device)
	r.until(StateConnected)
}

// A hub may reset the connection right behind its alert, since it leaves our
// CONNECT unread. The reset must not hide the reason.
func TestAlertIsHeardThroughAReset(t *testing.T) {
	fleet := certtest.New(t)
	server := fleet.Server()
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify:      func(tls.ConnectionState) error { return errors.New("no") },
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = tls.Server(c, config).Handshake() // sends the alert
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close() // sends the reset
		}
	})
	device := fleet.Device("pi-1").Credentials
	c := Config{Address: l.Addr().String()}
	c.setDefaults()
	for range 50 {
		_, err := dial(t.Context(), &c, &offer{cred: device, mode: ChainFull, total: new(meter)})
		if f := asFailure(err); f.Kind != KindRefused {
			t.Fatalf("failure is %s: %s", f.Kind, f.Error())
		}
	}
	_ = l.Close()
	serving.Wait()
}
