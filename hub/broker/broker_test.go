package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/wire"

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
	dir      string // of its journal
	journal  *journal.Journal

	mu      sync.Mutex
	refusal []string // reasons, in order
	seen    []string
}

func startHub(t *testing.T, change ...func(*Config, *listener.Config)) *testHub {
	t.Helper()
	return start(t, certtest.New(t), &devices{m: make(map[string]registry.Status)}, t.TempDir(), change...)
}

// afterCrash starts another hub over what the disk had when this one was struck: its
// journal, copied with nothing said to it. The first goes on, and nobody asks it.
func (h *testHub) afterCrash(change ...func(*Config, *listener.Config)) *testHub {
	h.t.Helper()
	must(h.t, h.journal.Sync(h.t.Context()))
	dir := h.t.TempDir()
	must(h.t, os.CopyFS(dir, os.DirFS(h.dir)))
	return start(h.t, h.pki, h.devices, dir, change...)
}

func start(t *testing.T, pki *certtest.Fleet, known *devices, dir string, change ...func(*Config, *listener.Config)) *testHub {
	t.Helper()
	h := &testHub{t: t, pki: pki, devices: known, log: new(syncBuffer), dir: dir}
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
	admit := admission.New(h.devices, nil)
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
	j, state := openJournal(t, h.dir)
	config.Journal, config.State, h.journal = j, state, j
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
		if err := j.Close(); err != nil {
			t.Error(err)
		}
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
		s.Fingerprints = []registry.Fingerprint{sha256.Sum256(c.Leaf.Raw)}
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

// peer is a client that speaks packets, so that a test can say exactly what goes over
// the line.
type peer struct {
	t       *testing.T
	conn    *tls.Conn
	version byte
	packets *wire.Reader
}

// dial completes TLS but sends no CONNECT.
func (h *testHub) dial(config *tls.Config) (*peer, error) {
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
	w := &peer{t: h.t, conn: conn, version: wire.V311, packets: wire.NewReader(conn, 1<<20)}
	w.packets.Client()
	w.packets.SetVersion(wire.V311)
	h.t.Cleanup(w.packets.Release)
	return w, nil
}

func (h *testHub) mustDial(c certtest.Credential) *peer {
	h.t.Helper()
	w, err := h.dial(c.ClientConfig())
	must(h.t, err)
	return w
}

// connect options.
type option func(*wire.Connect)

func v5(pk *wire.Connect)         { pk.Version = wire.V5 }
func persistent(pk *wire.Connect) { pk.CleanStart = false }
func keepAlive(seconds uint16) option {
	return func(pk *wire.Connect) { pk.KeepAlive = seconds }
}
func sessionExpiry(seconds uint32) option {
	return func(pk *wire.Connect) { pk.SessionExpiry = seconds }
}
func will(topic, payload string) option {
	return func(pk *wire.Connect) {
		pk.Will = &wire.Will{Message: wire.Publish{Topic: topic, Payload: []byte(payload), QoS: 1}}
	}
}

// connect sends a CONNECT and returns the CONNACK.
func (w *peer) connect(id string, options ...option) (*wire.Connack, error) {
	pk := &wire.Connect{ProtocolName: "MQTT", Version: wire.V311, ClientID: id, KeepAlive: 60, CleanStart: true}
	for _, o := range options {
		o(pk)
	}
	w.version = pk.Version
	w.packets.SetVersion(min(max(pk.Version, wire.V311), wire.V5))
	if err := w.send(pk); err != nil {
		return nil, err
	}
	got, err := w.read()
	if err != nil {
		return nil, err
	}
	ack, ok := got.(*wire.Connack)
	if !ok {
		return nil, fmt.Errorf("packet type %d came for a CONNACK", got.Type())
	}
	kept := *ack
	return &kept, nil
}

func (w *peer) mustConnect(id string, options ...option) *wire.Connack {
	w.t.Helper()
	ack, err := w.connect(id, options...)
	must(w.t, err)
	if ack.Code != 0 {
		w.t.Fatalf("CONNECT as %s: code %#x", id, ack.Code)
	}
	return ack
}

// online dials and connects under the credential's own ID, and waits until a
// device's presence says so.
func (h *testHub) online(c certtest.Credential, options ...option) *peer {
	h.t.Helper()
	w := h.mustDial(c)
	w.mustConnect(c.Identity.ID, options...)
	if c.Identity.Role != identity.RoleDevice {
		return w
	}
	until(h.t, c.Identity.ID+" is announced", func() bool {
		m, ok := h.retained.Get(protocol.Presence(c.Identity.ID))
		return ok && strings.Contains(string(m.Payload), `"connected"`) && strings.Contains(string(m.Payload), w.conn.LocalAddr().String())
	})
	h.announced(c.Identity.ID)
	return w
}

// announced waits until whoever is subscribed has been told of a device's coming.
func (h *testHub) announced(id string) {
	s := h.sessions.find(sessionKey(identity.RoleDevice, id))
	s.presence.Lock()
	defer s.presence.Unlock()
}

func (w *peer) send(pk wire.Packet) error {
	data, err := wire.Append(nil, pk, w.version)
	must(w.t, err)
	return w.sendRaw(data)
}

func (w *peer) sendRaw(data []byte) error {
	_, err := w.conn.Write(data)
	return err
}

// read returns the next packet, which is valid until the one after it is read.
func (w *peer) read() (wire.Packet, error) { return w.packets.Next() }

// expect reads the next packet, which must be of that type.
func expect[T wire.Packet](w *peer) T {
	w.t.Helper()
	var want T
	pk, err := w.read()
	if err != nil {
		w.t.Fatalf("waiting for %T: %v", want, err)
	}
	got, ok := pk.(T)
	if !ok {
		w.t.Fatalf("got %T (%+v), want %T", pk, pk, want)
	}
	return got
}

// ack expects an acknowledgement of that kind.
func (w *peer) ack(kind wire.Type) *wire.Ack {
	w.t.Helper()
	pk := expect[*wire.Ack](w)
	if pk.Kind != kind {
		w.t.Fatalf("got acknowledgement %d, want %d", pk.Kind, kind)
	}
	return pk
}

func (w *peer) publish(topic, payload string, qos byte, id uint16) {
	w.t.Helper()
	must(w.t, w.send(&wire.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, ID: id}))
}

func (w *peer) subscribe(id uint16, qos byte, filters ...string) []wire.Code {
	w.t.Helper()
	pk := &wire.Subscribe{ID: id}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, wire.Subscription{Filter: f, QoS: qos})
	}
	must(w.t, w.send(pk))
	ack := expect[*wire.Suback](w)
	if ack.ID != id {
		w.t.Fatalf("SUBACK for %d, want %d", ack.ID, id)
	}
	return slices.Clone(ack.Codes)
}

// closed reads until the hub ends the connection and returns what came before.
func (w *peer) closed() []wire.Packet {
	w.t.Helper()
	var got []wire.Packet
	for {
		pk, err := w.read()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				w.t.Fatal("the hub did not close the connection")
			}
			return got
		}
		switch pk := pk.(type) { // packets are valid until the next is read
		case *wire.Disconnect:
			kept := *pk
			got = append(got, &kept)
		case *wire.Connack:
			kept := *pk
			got = append(got, &kept)
		default:
			got = append(got, pk)
		}
	}
}

// toldOnly reports whether a DISCONNECT of that code was all that came.
func toldOnly(got []wire.Packet, code wire.Code) bool {
	if len(got) != 1 {
		return false
	}
	pk, ok := got[0].(*wire.Disconnect)
	return ok && pk.Code == code
}

// alive proves that the connection works.
func (w *peer) alive() {
	w.t.Helper()
	must(w.t, w.send(&wire.Ping{Kind: wire.TypePingreq}))
	expect[*wire.Ping](w)
}

func (w *peer) hangUp() { w.conn.NetConn().Close() }

func (w *peer) disconnect() {
	w.t.Helper()
	must(w.t, w.send(&wire.Disconnect{}))
	w.closed()
}

// presence waits for the next presence of id that service receives.
func (w *peer) presence(id string) protocol.PresenceStatus {
	w.t.Helper()
	for {
		pk := expect[*wire.Publish](w)
		if pk.QoS == 1 {
			must(w.t, w.send(&wire.Ack{Kind: wire.TypePuback, ID: pk.ID}))
		}
		if pk.Topic != protocol.Presence(id) {
			continue
		}
		var s protocol.PresenceStatus
		must(w.t, json.Unmarshal(pk.Payload, &s))
		return s
	}
}
