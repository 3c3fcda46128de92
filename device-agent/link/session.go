package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/protocol"
)

// maxUnacknowledged bounds the messages of one connection that may go without
// PUBACK. MQTT 3.1.1 repeats them only on a new connection [MQTT-4.4.0-1], and
// each holds a packet identifier and memory until then.
const maxUnacknowledged = 64

// Waits of an orderly end: they hold up SIGTERM, so they are short.
const (
	farewellWait   = 2 * time.Second
	disconnectWait = time.Second
)

var (
	// ErrNotConnected is returned by Publish while there is no connection.
	ErrNotConnected = errors.New("not connected to the hub")
	// ErrNotAcknowledged is returned by Publish when no PUBACK came in time:
	// the hub may or may not have stored the message. A hub whose policy
	// forbids the topic answers an MQTT 3.1.1 publish in just this way.
	ErrNotAcknowledged = errors.New("the hub didn't acknowledge the message in time")
)

// session is one established connection. Its methods are safe for concurrent
// use.
type session struct {
	config    *Config
	id        string
	client    mqtt.Client
	conn      *conn
	handshake Handshake

	leaf           *x509.Certificate       // the device's, by which the connection is
	notices        chan protocol.TLSNotice // capacity 1; never closed
	renewals       chan struct{}           // likewise
	unacknowledged atomic.Int32
	once           sync.Once
	lost           chan struct{} // closed by end
	err            error         // why; valid once lost is closed
}

// offer is what a device brings to one attempt to connect, and what became of it.
type offer struct {
	cred     mtls.Credentials
	mode     ChainMode
	sessions tls.ClientSessionCache
	total    *meter // of the link

	shown bool  // the hub was sent the certificate: it isn't on resumption
	wire  meter // of this attempt
}

// config returns the TLS configuration for a hub called host.
func (o *offer) config(host string, profile mtls.Profile) *tls.Config {
	c := mtls.ClientConfig(mtls.ClientOptions{
		Certificate: o.cred.Certificate,
		Roots:       o.cred.Roots,
		ServerName:  host,
		Sessions:    o.sessions,
		Profile:     profile,
	})
	// Asked, crypto/tls tells whether the certificate was called for, and it
	// doesn't withhold a leaf whose issuer the hub's list of CAs lacks.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		o.shown = true
		return presented(o.cred.Certificate, o.mode), nil
	}
	return c
}

// leafAlone reports whether the hub got to see the leaf without its issuer,
// which there was.
func (o *offer) leafAlone() bool {
	return o.shown && o.mode == ChainLeaf && len(o.cred.Certificate.Certificate) > 1
}

// dial makes one attempt to connect, within config.ConnectTimeout. Its error
// is a *Failure.
func dial(ctx context.Context, config *Config, o *offer) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, config.ConnectTimeout)
	defer cancel()
	a := attempt{address: config.Address, cred: o.cred, now: time.Now(), connack: packets.ErrNetworkError}
	host, _, err := net.SplitHostPort(config.Address)
	if err != nil {
		return nil, a.explain(&dialError{err})
	}
	s := &session{
		config: config, id: o.cred.Identity.ID, leaf: o.cred.Leaf, lost: make(chan struct{}),
		notices: make(chan protocol.TLSNotice, 1), renewals: make(chan struct{}, 1),
	}
	started := time.Now()
	opts, err := s.options()
	if err != nil {
		return nil, a.explain(err)
	}
	var openErr error
	stop := func() bool { return true }
	opts.CustomOpenConnectionFn = func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		var c *tls.Conn
		c, openErr = open(ctx, config.Address, o.config(host, config.Profile), o)
		if openErr != nil {
			return nil, openErr
		}
		s.handshake = handshakeOf(c.ConnectionState(), time.Since(started))
		s.conn = &conn{Conn: c, wire: &o.wire, idle: config.KeepAlive + config.KeepAlive/2 + pingWait, write: config.WriteTimeout}
		stop = context.AfterFunc(ctx, func() { s.conn.cut(ctx.Err()) })
		return s.conn, nil
	}
	s.client = mqtt.NewClient(opts)
	token := s.client.Connect().(*mqtt.ConnectToken)
	// paho runs the function above and waits for CONNACK in a goroutine of
	// its own, which touches s.conn and o until the token is done: the end of
	// ctx cuts the connection, and that ends the goroutine.
	<-token.Done()
	stop()
	if err := token.Error(); err != nil {
		if openErr != nil {
			err = openErr
		}
		a.connack = token.ReturnCode()
		a.leafAlone = o.leafAlone()
		if s.conn != nil {
			a.shaken = true
			a.alert, a.alerted = s.conn.refusal()
			s.conn.cut(err)
		}
		return nil, a.explain(err)
	}
	s.handshake.Connect = time.Since(started)
	s.handshake.Bytes = s.conn.connect
	return s, nil
}

// pingWait is how long the hub may take to answer a PINGREQ.
const pingWait = 10 * time.Second

// options returns paho's, with everything of its own that decides when to
// connect switched off: this package does that.
func (s *session) options() (*mqtt.ClientOptions, error) {
	will, err := s.notice(time.Time{}, "lost")
	if err != nil {
		return nil, err
	}
	opts := mqtt.NewClientOptions()
	opts.Servers = []*url.URL{{Scheme: "ssl", Host: s.config.Address}}
	opts.SetClientID(s.id)
	opts.SetProtocolVersion(4) // MQTT 3.1.1, and no second try with 3.1
	opts.SetCleanSession(true)
	opts.SetAutoReconnect(false)
	opts.SetConnectRetry(false)
	opts.SetConnectTimeout(s.config.ConnectTimeout)
	opts.SetWriteTimeout(s.config.WriteTimeout)
	opts.SetKeepAlive(s.config.KeepAlive)
	opts.SetPingTimeout(pingWait)
	opts.SetBinaryWill(protocol.Event(s.id, protocol.EventOffline), will, 1, false)
	opts.SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.end(err) })
	return opts, nil
}

func (s *session) notice(at time.Time, reason string) ([]byte, error) {
	return json.Marshal(protocol.Notice{Time: at.UTC(), Boot: s.config.Boot, Reason: reason})
}

// end records why the connection ended; the first reason stands.
func (s *session) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.lost)
	})
}

// Done is closed when the connection has ended, for a reason that Err then
// returns.
func (s *session) Done() <-chan struct{} { return s.lost }

// Err returns why the connection ended; valid once Done is closed.
func (s *session) Err() error { return s.err }

// Handshake returns how the connection came about.
func (s *session) Handshake() Handshake { return s.handshake }

// Publish sends payload at QoS 1 and returns once the hub has acknowledged it.
func (s *session) Publish(ctx context.Context, topic string, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	token := s.client.Publish(topic, 1, false, payload) // waits for WriteTimeout at most
	timer := time.NewTimer(s.config.AckTimeout)
	defer timer.Stop()
	select {
	case <-token.Done():
		err := token.Error()
		if errors.Is(err, mqtt.ErrNotConnected) {
			return ErrNotConnected
		}
		return err
	case <-s.lost:
		return fmt.Errorf("connection lost before PUBACK: %w", s.err)
	case <-ctx.Done():
		s.forgo()
		return ctx.Err()
	case <-timer.C:
		s.forgo()
		return ErrNotAcknowledged
	}
}

// forgo counts a message that nobody waits for any more.
func (s *session) forgo() {
	if s.unacknowledged.Add(1) == maxUnacknowledged {
		s.conn.cut(fmt.Errorf("the hub left %d messages unacknowledged; its policy may forbid their topics", maxUnacknowledged))
	}
}

// Ask subscribes to what the hub has to say about the device's TLS, and
// returns once the hub has confirmed that.
func (s *session) Ask(ctx context.Context) error {
	return s.subscribe(ctx, protocol.NoticeTLS, s.heard)
}

// Listen subscribes to the hub's asking for a renewal, and returns once the hub has
// confirmed that.
func (s *session) Listen(ctx context.Context) error {
	return s.subscribe(ctx, protocol.NoticeRenewal, s.heardRenewal)
}

// subscribe subscribes to what the hub itself tells the device about one thing.
func (s *session) subscribe(ctx context.Context, what string, heard mqtt.MessageHandler) error {
	token := s.client.Subscribe(protocol.System(s.id, what), 0, heard)
	timer := time.NewTimer(s.config.AckTimeout)
	defer timer.Stop()
	select {
	case <-token.Done():
		return token.Error()
	case <-s.lost:
		return fmt.Errorf("connection lost before SUBACK: %w", s.err)
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return errors.New("the hub didn't confirm the subscription in time")
	}
}

// heard passes a notice on. It runs in paho's goroutine and doesn't block. What
// can't be read is as good as not sent.
func (s *session) heard(_ mqtt.Client, m mqtt.Message) {
	n, err := protocol.ParseTLSNotice(m.Payload())
	if err != nil {
		s.config.Log.Warn("the hub's notice about TLS can't be read", "err", err)
		return
	}
	select {
	case s.notices <- n:
	default: // one that says the same waits
	}
}

// heardRenewal passes on that the hub wants the certificate of this connection renewed. It
// runs in paho's goroutine and doesn't block. What was said of another certificate is
// over: the notice is retained.
func (s *session) heardRenewal(_ mqtt.Client, m mqtt.Message) {
	n, err := protocol.ParseRenewalNotice(m.Payload())
	switch {
	case err != nil:
		s.config.Log.Warn("the hub's notice about the renewal can't be read", "err", err)
		return
	case n.Certificate != identity.Fingerprint(s.leaf):
		return
	}
	select {
	case s.renewals <- struct{}{}:
	default: // one that says the same waits
	}
}

// Renewals gives the hub's asking for a renewal, which Listen subscribes to.
func (s *session) Renewals() <-chan struct{} { return s.renewals }

// Notices gives what the hub has answered to Ask.
func (s *session) Notices() <-chan protocol.TLSNotice { return s.notices }

// Hello tells the services that the device is here.
func (s *session) Hello(ctx context.Context) error {
	return s.event(ctx, protocol.EventOnline, "connected")
}

func (s *session) event(ctx context.Context, kind, reason string) error {
	payload, err := s.notice(time.Now(), reason)
	if err != nil {
		return err
	}
	return s.Publish(ctx, protocol.Event(s.id, kind), payload)
}

// Close ends the connection in good order: the device itself says that it goes
// offline, since DISCONNECT discards the will [MQTT-3.14.4-3], and the socket
// is closed in any case. It takes a few seconds at most.
func (s *session) Close(reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), farewellWait)
	defer cancel()
	_ = s.event(ctx, protocol.EventOffline, reason) // best effort: the hub's presence topic tells the same
	s.client.Disconnect(uint(disconnectWait.Milliseconds()))
	s.conn.cut(net.ErrClosed)
	s.end(net.ErrClosed)
}
