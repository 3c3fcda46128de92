package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// devices is a registry in memory.
type devices struct {
	mu      sync.Mutex
	m       map[string]registry.Status
	removed *x509.Certificate // an issuer that isn't trusted any more
}

func (d *devices) Status(id string) (registry.Status, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.m[id]
	return s, ok
}

func (d *devices) TrustsIssuer(ca *x509.Certificate) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.removed == nil || !d.removed.Equal(ca)
}

func (d *devices) set(id string, change func(*registry.Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.m[id]
	change(&s)
	d.m[id] = s
}

// testHub is a broker behind a listener on loopback, with a registry in memory.
type testHub struct {
	*Broker
	t        *testing.T
	pki      *certtest.Fleet
	addr     string
	devices  *devices
	listener *listener.Listener
	log      *syncBuffer

	mu      sync.Mutex
	refusal []string // reasons, in order
	seen    []string
}

func startHub(t *testing.T, change ...func(*Config, *listener.Config)) *testHub {
	t.Helper()
	h := &testHub{t: t, pki: certtest.New(t), devices: &devices{m: make(map[string]registry.Status)}, log: new(syncBuffer)}
	verifier, err := mtls.NewVerifier(h.pki.Trust(), nil)
	must(t, err)
	logger := slog.New(slog.NewTextHandler(h.log, nil))
	config := Config{
		Devices: h.devices, Log: logger, OnRefused: h.OnRefused,
		Seen: func(id string, _ time.Time) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.seen = append(h.seen, id)
		},
	}
	admit := admission.New(h.devices)
	cert := h.pki.Server().Certificate
	front := listener.Config{
		TLS: mtls.ServerConfig(mtls.ServerOptions{Certificate: func() (*tls.Certificate, error) { return &cert, nil }}),
		Verify: func(cs tls.ConnectionState) (mtls.Peer, error) {
			peer, err := verifier.Verify(cs, identity.RoleDevice, identity.RoleService)
			if err != nil {
				return peer, err
			}
			return peer, admit.Check(peer)
		},
		Observer: h, Log: logger,
	}
	for _, f := range change {
		f(&config, &front)
	}
	h.Broker, err = New(config)
	must(t, err)
	if front.Handle == nil {
		front.Handle = h.Serve
	}
	h.listener = listener.New(front)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.addr = ln.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := h.listener.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := h.Broker.Close(); err != nil {
			t.Error(err)
		}
		h.listener.Close()
		serving.Wait()
		if t.Failed() {
			t.Log(h.log.String())
		}
	})
	return h
}

func (h *testHub) OnRefused(reason string, _ net.Addr, _ string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = append(h.refusal, reason)
}

func (h *testHub) OnHandshake(bool, time.Duration) {}

// refusedFor waits for a refusal.
func (h *testHub) refusedFor(reason mtls.Reason) {
	h.t.Helper()
	until(h.t, "refusal "+string(reason), func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, r := range h.refusal {
			if r == string(reason) {
				return true
			}
		}
		return false
	})
}

// device issues a certificate and registers it. It presents its leaf alone, as a device does that has been told so.
func (h *testHub) device(id string, labels ...string) certtest.Credential {
	h.t.Helper()
	c := h.pki.Device(id)
	c.Certificate.Certificate = c.Certificate.Certificate[:1]
	h.register(c, labels...)
	return c
}

func (h *testHub) register(c certtest.Credential, labels ...string) {
	h.devices.set(c.Identity.ID, func(s *registry.Status) {
		s.State = registry.StateRegistered
		s.Fingerprints = []string{identity.Fingerprint(c.Leaf)}
		s.Labels = make(map[string]string)
		for i := 0; i+1 < len(labels); i += 2 {
			s.Labels[labels[i]] = labels[i+1]
		}
	})
}

// cutOff marks, then disconnects, as the fleet does.
func (h *testHub) cutOff(id string, state registry.State) (int, time.Time) {
	h.devices.set(id, func(s *registry.Status) {
		s.State = state
		if state == registry.StateRevoked {
			s.Fingerprints = nil
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return h.Disconnect(ctx, id, string(state))
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

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// wire is a client that speaks packets, so that a test can say exactly what
// goes over the line.
type wire struct {
	t       *testing.T
	conn    *tls.Conn
	version byte
	client  mqttReader
}

// dial completes TLS but sends no CONNECT.
func (h *testHub) dial(config *tls.Config) (*wire, error) {
	raw, err := net.Dial("tcp", h.addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, config)
	h.t.Cleanup(func() { conn.Close() })
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return &wire{t: h.t, conn: conn, version: 4, client: mqttReader{r: conn}}, nil
}

func (h *testHub) mustDial(c certtest.Credential) *wire {
	h.t.Helper()
	w, err := h.dial(c.ClientConfig())
	must(h.t, err)
	return w
}

// connect options.
type option func(*packets.Packet)

func v5(pk *packets.Packet)         { pk.ProtocolVersion = 5 }
func persistent(pk *packets.Packet) { pk.Connect.Clean = false }
func keepAlive(seconds uint16) option {
	return func(pk *packets.Packet) { pk.Connect.Keepalive = seconds }
}
func sessionExpiry(seconds uint32) option {
	return func(pk *packets.Packet) {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = seconds, true
	}
}
func will(topic, payload string) option {
	return func(pk *packets.Packet) {
		pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload, pk.Connect.WillQos = true, topic, []byte(payload), 1
	}
}

// connect sends a CONNECT and returns the CONNACK.
func (w *wire) connect(id string, options ...option) (packets.Packet, error) {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4}
	pk.Connect.ProtocolName, pk.Connect.ClientIdentifier, pk.Connect.Keepalive, pk.Connect.Clean = []byte("MQTT"), id, 60, true
	for _, o := range options {
		o(&pk)
	}
	w.version, w.client.version = pk.ProtocolVersion, pk.ProtocolVersion
	if err := w.send(pk); err != nil {
		return pk, err
	}
	return w.read()
}

func (w *wire) mustConnect(id string, options ...option) packets.Packet {
	w.t.Helper()
	ack, err := w.connect(id, options...)
	must(w.t, err)
	if ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != 0 {
		w.t.Fatalf("CONNECT as %s: packet type %d, code %#x", id, ack.FixedHeader.Type, ack.ReasonCode)
	}
	return ack
}

// online dials and connects under the credential's own ID, and waits until a
// device's presence says so.
func (h *testHub) online(c certtest.Credential, options ...option) *wire {
	h.t.Helper()
	w := h.mustDial(c)
	w.mustConnect(c.Identity.ID, options...)
	if c.Identity.Role != identity.RoleDevice {
		return w
	}
	until(h.t, c.Identity.ID+" is announced", func() bool {
		pk, _ := h.mqtt.Topics.Retained.Get(protocol.Presence(c.Identity.ID))
		return strings.Contains(string(pk.Payload), `"connected"`) && strings.Contains(string(pk.Payload), w.conn.LocalAddr().String())
	})
	return w
}

func (w *wire) send(pk packets.Packet) error {
	pk.ProtocolVersion = w.version
	data, err := encode(pk)
	must(w.t, err)
	return w.sendRaw(data)
}

func (w *wire) sendRaw(data []byte) error {
	_, err := w.conn.Write(data)
	return err
}

func (w *wire) read() (packets.Packet, error) { return w.client.next() }

// expect reads the next packet of that type; others before it are an error.
func (w *wire) expect(kind byte) packets.Packet {
	w.t.Helper()
	pk, err := w.read()
	if err != nil {
		w.t.Fatalf("waiting for packet type %d: %v", kind, err)
	}
	if pk.FixedHeader.Type != kind {
		w.t.Fatalf("got packet type %d (%s), want %d", pk.FixedHeader.Type, pk.TopicName, kind)
	}
	return pk
}

func (w *wire) publish(topic, payload string, qos byte, id uint16) {
	w.t.Helper()
	must(w.t, w.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload), PacketID: id}))
}

func (w *wire) subscribe(id uint16, qos byte, filters ...string) []byte {
	w.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	must(w.t, w.send(pk))
	ack := w.expect(packets.Suback)
	if ack.PacketID != id {
		w.t.Fatalf("SUBACK for %d, want %d", ack.PacketID, id)
	}
	return ack.ReasonCodes
}

// closed reads until the hub ends the connection and returns what came before.
func (w *wire) closed() []packets.Packet {
	w.t.Helper()
	var got []packets.Packet
	for {
		pk, err := w.read()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				w.t.Fatal("the hub did not close the connection")
			}
			return got
		}
		got = append(got, pk)
	}
}

// alive proves that the connection works.
func (w *wire) alive() {
	w.t.Helper()
	must(w.t, w.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}}))
	w.expect(packets.Pingresp)
}

func (w *wire) hangUp() { w.conn.NetConn().Close() }

func (w *wire) disconnect() {
	w.t.Helper()
	must(w.t, w.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}}))
	w.closed()
}

// presence waits for the next presence of id that service receives.
func (w *wire) presence(id string) protocol.PresenceStatus {
	w.t.Helper()
	for {
		pk := w.expect(packets.Publish)
		if pk.FixedHeader.Qos == 1 {
			must(w.t, w.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID}))
		}
		if pk.TopicName != protocol.Presence(id) {
			continue
		}
		var s protocol.PresenceStatus
		must(w.t, json.Unmarshal(pk.Payload, &s))
		return s
	}
}
