package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/link/linktest"
	"github.com/fleethub/fleethub/hub/protocol"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; nothing takes nearly as long.
const patience = time.Minute // more than twice writeGap

// peer is an MQTT server behind mutual TLS; it is its server's one hook.
type peer struct {
	mochi.HookBase
	address   string
	received  chan packets.Packet
	wantChain atomic.Bool // a leaf without its issuer's certificate is refused
}

func newPeer(t *testing.T, fleet *certtest.Fleet) *peer {
	t.Helper()
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	server := fleet.Server()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{address: inner.Addr().String(), received: make(chan packets.Packet, 1000)}
	m := mochi.New(&mochi.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := m.AddHook(p, nil); err != nil {
		t.Fatal(err)
	}
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify: func(cs tls.ConnectionState) error {
			if p.wantChain.Load() && len(cs.PeerCertificates) < 2 {
				return errors.New("no chain")
			}
			_, err := verifier.Verify(cs, identity.RoleDevice)
			return err
		},
	})
	if err := m.Serve(); err != nil { // returns once it serves
		t.Fatal(err)
	}
	t.Cleanup(linktest.Accept(m, tls.NewListener(inner, config)))
	return p
}

func (p *peer) ID() string { return "peer" }

func (p *peer) Provides(b byte) bool {
	return slices.Contains([]byte{mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPublish}, b)
}

func (p *peer) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

func (p *peer) OnACLCheck(*mochi.Client, string, bool) bool { return true }

func (p *peer) OnPublish(_ *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	p.received <- pk
	return pk, nil
}

// next returns the payload of the next message on topic.
func (p *peer) next(t *testing.T, topic string) []byte {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case pk := <-p.received:
			if pk.TopicName == topic {
				return pk.Payload
			}
		case <-deadline:
			t.Fatalf("no message on %s arrived", topic)
		}
	}
}

// start runs an agent and returns how to stop it.
func start(t *testing.T, config Config) (stop func()) {
	t.Helper()
	a, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits until the report of dir satisfies good.
func eventually(t *testing.T, dir string, good func(Report) bool) Report {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		r, err := ReadReport(dir, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if good(r) {
			return r
		}
		if time.Now().After(deadline) {
			t.Fatalf("report stayed %+v", r)
		}
		time.Sleep(10 * time.Millisecond) // polls a file; the condition above is what is waited for
	}
}

func TestAgentReportsUntilItIsStopped(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	dir := fleet.Device("pi-1").WriteTo(t.TempDir(), "device")
	stop := start(t, Config{Dir: dir, Hub: p.address, Interval: 10 * time.Millisecond})

	var first, second protocol.Reading
	for _, reading := range []*protocol.Reading{&first, &second} {
		if err := json.Unmarshal(p.next(t, "d/pi-1/tele/machine"), reading); err != nil {
			t.Fatal(err)
		}
	}
	if first.Seq == 0 || second.Seq <= first.Seq || first.Boot == "" || second.Boot != first.Boot || first.Values["load1"] == nil {
		t.Errorf("readings are %+v and %+v", first, second)
	}
	r := eventually(t, dir, func(r Report) bool { return r.Last != nil && r.Last.Link.State == link.StateConnected })
	if !r.Running || r.Device != "pi-1" || r.Last.PID != os.Getpid() || r.Last.Link.Full != 1 || r.Last.Boot != first.Boot {
		t.Errorf("report while running is %+v with %+v", r, r.Last)
	}
	stop()
	p.next(t, "d/pi-1/evt/offline")
	r = eventually(t, dir, func(Report) bool { return true })
	if r.Running || r.Last.Link.State != link.StateStopped || r.Last.Readings.Acknowledged < 1 {
		t.Errorf("report afterwards is %+v with %+v", r, r.Last)
	}
}

func TestTwoAgentsDontShareAFolder(t *testing.T) {
	fleet := certtest.New(t)
	dir := fleet.Device("pi-1").WriteTo(t.TempDir(), "device")
	config := Config{Dir: dir, Hub: "127.0.0.1:1"}
	stop := start(t, config)
	if _, err := New(config); err == nil || !strings.Contains(err.Error(), "another device-agent is running") {
		t.Errorf("second agent: %v", err)
	}
	stop()
	start(t, config)()
}

func TestUnreachableHubIsReported(t *testing.T) {
	dir := certtest.New(t).Device("pi-1").WriteTo(t.TempDir(), "device")
	start(t, Config{Dir: dir, Hub: "127.0.0.1:1"})
	r := eventually(t, dir, func(r Report) bool { return r.Last != nil && r.Last.Link.LastFailure != nil })
	if f := r.Last.Link.LastFailure; f.Kind != link.KindUnreachable || !strings.Contains(f.Reason, "127.0.0.1:1") {
		t.Errorf("failure is %+v", f)
	}
}

func TestExpiredCertificateIsSaidAtTheStart(t *testing.T) {
	device := certtest.New(t).Device("pi-1", certtest.WithValidity(time.Now().Add(-48*time.Hour), 24*time.Hour))
	dir := device.WriteTo(t.TempDir(), "device")
	var log bytes.Buffer
	start(t, Config{Dir: dir, Hub: "127.0.0.1:1", Log: slog.New(slog.NewTextHandler(&log, nil))})()
	if !strings.Contains(log.String(), "expired at") {
		t.Errorf("log is %s", log.String())
	}
	if r, err := ReadReport(dir, time.Now()); err != nil || !strings.Contains(r.Problem, "expired at") {
		t.Errorf("report %+v, %v", r, err)
	}
}

func TestAgentWithoutARightToWriteItsFolderStillWorks(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	dir := fleet.Device("pi-1").WriteTo(t.TempDir(), "device")
	if err := os.Mkdir(filepath.Join(dir, statusFile), 0o700); err != nil { // can't be replaced by a file, not even by root
		t.Fatal(err)
	}
	var log bytes.Buffer
	stop := start(t, Config{Dir: dir, Hub: p.address, Log: slog.New(slog.NewTextHandler(&log, nil))})
	p.next(t, "d/pi-1/tele/machine")
	stop()
	if n := strings.Count(log.String(), "will be out of date"); n != 1 {
		t.Errorf("said %d times that the status can't be written, want once\n%s", n, log.String())
	}
}

func TestAgentStaysTheDeviceItIs(t *testing.T) {
	fleet := certtest.New(t)
	dir := fleet.Device("pi-1").WriteTo(t.TempDir(), "device")
	a, err := New(Config{Dir: dir, Hub: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.lock.release()

	renewed := fleet.Device("pi-1")
	renewed.WriteTo(dir, "device")
	if cred, err := a.credentials(); err != nil || !cred.Leaf.Equal(renewed.Leaf) {
		t.Errorf("a new certificate of the same device isn't picked up: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "device.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.credentials(); err != nil {
		t.Errorf("a folder that can't be read now ends the use of what was: %v", err)
	}
	fleet.Device("pi-2").WriteTo(dir, "device")
	if _, err := a.credentials(); err == nil || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("another device's certificate: %v", err)
	}
}

func TestSystemdHearsReadyWatchdogAndStopping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")
	os.Unsetenv("WATCHDOG_PID")
	var heard strings.Builder
	hears := func(part string) {
		t.Helper()
		buf := make([]byte, 4096)
		if err := systemd.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(heard.String(), part) {
			n, err := systemd.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", part, err)
			}
			heard.Write(buf[:n])
		}
	}
	dir := certtest.New(t).Device("pi-1").WriteTo(t.TempDir(), "device")
	stop := start(t, Config{Dir: dir, Hub: "127.0.0.1:1"})
	hears("READY=1")
	hears("WATCHDOG=1")
	hears("STATUS=the hub 127.0.0.1:1 can't be reached")
	stop()
	hears("STOPPING=1")
}

func TestReportOfAFolderThatNeverRan(t *testing.T) {
	dir := certtest.New(t).Device("pi-1").WriteTo(t.TempDir(), "device")
	r, err := ReadReport(dir, time.Now())
	if err != nil || r.Running || r.Last != nil || r.Unreadable != "" || r.Identity != "spiffe://fleet.example/device/pi-1" {
		t.Errorf("report %+v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(dir, statusFile), []byte(`{"pid":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err = ReadReport(dir, time.Now()); err != nil || r.Last != nil || !strings.Contains(r.Unreadable, "status.json is damaged") {
		t.Errorf("report %+v, %v", r, err)
	}
}

func FuzzStatusFile(f *testing.F) {
	data, err := json.Marshal(Snapshot{Link: link.Status{LastFailure: &link.Failure{Kind: link.KindLost, Reason: "x"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"link":{"handshake":null,"next_attempt":"2026-01-01T00:00:00Z"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSnapshot(data)
		if err != nil {
			return
		}
		if _, err := json.Marshal(s); err != nil {
			t.Errorf("what was read can't be written: %v", err)
		}
	})
}

func TestReadingsAreCountedByTheirEnd(t *testing.T) {
	r := &reporter{}
	for _, err := range []error{nil, link.ErrNotConnected, link.ErrNotAcknowledged, errors.New("lost"), nil} {
		r.record(err)
	}
	if c := r.counts(); c.Acknowledged != 2 || c.NotConnected != 1 || c.Unacknowledged != 2 || c.LastAcknowledged.IsZero() {
		t.Errorf("counts are %+v", c)
	}
}
