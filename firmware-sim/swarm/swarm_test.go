package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link/linktest"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is an MQTT server behind mutual TLS; it is its server's one hook.
type peer struct {
	mochi.HookBase
	address string
	server  *mochi.Server

	mu       sync.Mutex // guards what follows
	received map[string]int
	sizes    map[int]int
	mute     string // client that gets no PUBACK for telemetry
	refuse   string // client refused in the handshake
}

func newPeer(t testing.TB, fleet *certtest.Fleet) *peer {
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
	p := &peer{address: inner.Addr().String(), received: make(map[string]int), sizes: make(map[int]int)}
	p.server = mochi.New(&mochi.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := p.server.AddHook(p, nil); err != nil {
		t.Fatal(err)
	}
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify: func(cs tls.ConnectionState) error {
			peer, err := verifier.Verify(cs, identity.RoleDevice)
			p.mu.Lock()
			defer p.mu.Unlock()
			if err == nil && peer.Identity.ID == p.refuse {
				return errors.New("refused by the test")
			}
			return err
		},
	})
	if err := p.server.Serve(); err != nil { // returns once it serves
		t.Fatal(err)
	}
	t.Cleanup(linktest.Accept(p.server, tls.NewListener(inner, config)))
	return p
}

func (p *peer) ID() string { return "peer" }

func (p *peer) Provides(b byte) bool {
	return slices.Contains([]byte{mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPublish}, b)
}

func (p *peer) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

func (p *peer) OnACLCheck(*mochi.Client, string, bool) bool { return true }

func (p *peer) OnPublish(client *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received[pk.TopicName]++
	if strings.HasSuffix(pk.TopicName, "/tele/sim") {
		p.sizes[len(pk.Payload)]++
		if client.ID == p.mute {
			return pk, packets.ErrRejectPacket
		}
	}
	return pk, nil
}

func credentials(fleet *certtest.Fleet, n int) []mtls.Credentials {
	var all []mtls.Credentials
	for i := range n {
		all = append(all, fleet.Device(fmt.Sprintf("sim-%05d", i+1)).Credentials)
	}
	return all
}

func quick(devices int) scenario.Scenario {
	return scenario.Scenario{Devices: devices, Rate: 100, ConnectRate: 100000, Duration: 100 * time.Millisecond, Size: 64}
}

func TestEveryDevicePublishesItsShare(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	var r measure.Recorder
	var phases []Phase
	err := Run(t.Context(), Config{
		Hub: p.address, Scenario: quick(5), Credentials: credentials(fleet, 5), Recorder: &r,
		Phase: func(now Phase) { phases = append(phases, now) },
	})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Summary(5, 0)
	if s.Connects != 5 || s.Full != 5 || s.Sent != 50 || s.Acked != 50 || s.Failed() != 0 || r.Latency.Count() != 50 || r.Up.Load() != 0 {
		t.Errorf("summary is %+v, %d still up", s, r.Up.Load())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range 5 {
		id := fmt.Sprintf("sim-%05d", i+1)
		if p.received["d/"+id+"/tele/sim"] != 10 || p.received["d/"+id+"/evt/online"] != 1 || p.received["d/"+id+"/evt/offline"] != 1 {
			t.Errorf("received %v", p.received)
		}
	}
	if p.sizes[64] != 50 {
		t.Errorf("payload sizes %v", p.sizes)
	}
	if !slices.Equal(phases, []Phase{PhaseConnecting, PhasePublishing, PhaseStopping}) {
		t.Errorf("phases %v", phases)
	}
}

func TestRefusedDeviceIsCountedAndTheOthersGoOn(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	p.refuse = "sim-00001" // the one that goes first
	var r measure.Recorder
	if err := Run(t.Context(), Config{Hub: p.address, Scenario: quick(3), Credentials: credentials(fleet, 3), Recorder: &r}); err != nil {
		t.Fatal(err)
	}
	s := r.Summary(3, 0)
	if s.Errors["refused"].Count != 1 || !strings.Contains(s.Errors["refused"].Example, "sim-00001") || s.Connects != 2 {
		t.Errorf("summary is %+v", s)
	}
	if s.Sent != 30 || s.Acked != 20 || s.Errors["not-connected"].Count != 10 {
		t.Errorf("summary is %+v", s)
	}
}

func TestNoHubEndsTheRun(t *testing.T) {
	var r measure.Recorder
	fleet := certtest.New(t)
	err := Run(t.Context(), Config{Hub: "127.0.0.1:1", Scenario: quick(3), Credentials: credentials(fleet, 3), Recorder: &r})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("Run: %v", err)
	}
}

func TestEndlessRunEndsWithItsContextAndIsNoFailure(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	plan := quick(2)
	plan.Duration = 0
	var r measure.Recorder
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Hub: p.address, Scenario: plan, Credentials: credentials(fleet, 2), Recorder: &r})
	}()
	for r.Acked.Load() < 5 {
		runtime.Gosched()
		select {
		case err := <-done:
			t.Fatalf("ended by itself: %v", err)
		default:
		}
	}
	cancel()
	if err := <-done; err != nil || r.Errors() != 0 {
		t.Errorf("Run: %v, summary %+v", err, r.Summary(2, 0))
	}
}

func TestSlowAnswersPileUpToTheirBound(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	p.mute = "sim-00001"
	plan := quick(1)
	plan.Duration = 500 * time.Millisecond
	var r measure.Recorder
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Hub: p.address, Scenario: plan, Credentials: credentials(fleet, 1), Recorder: &r})
	}()
	for r.Sent.Load() < 50 {
		runtime.Gosched()
	}
	cancel() // else the answers that never come hold it up
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := r.Summary(1, 0); s.Acked != 0 || s.Errors["backlog"].Count != 50-maxInflight {
		t.Errorf("summary is %+v", s)
	}
}

func TestLoadTakesTheFirstFoldersByName(t *testing.T) {
	fleet := certtest.New(t)
	dir := t.TempDir()
	for _, id := range []string{"b-2", "a-1", "c-3"} {
		fleet.Device(id).WriteTo(filepath.Join(dir, id), "device")
	}
	if err := os.MkdirAll(filepath.Join(dir, "a-0-not-a-device"), 0o700); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 2 || loaded[0].Identity.ID != "a-1" || loaded[1].Identity.ID != "b-2" {
		t.Errorf("loaded %+v", loaded)
	}
	if loaded[0].Roots[0] != loaded[1].Roots[0] {
		t.Error("each device keeps a trust bundle of its own")
	}
}

func TestLoadSaysHowToGetCredentials(t *testing.T) {
	fleet := certtest.New(t)
	dir := t.TempDir()
	fleet.Device("a").WriteTo(filepath.Join(dir, "a"), "device")
	if _, err := Load(dir, 3); err == nil || !strings.Contains(err.Error(), "1 credential folder, 3 are needed") || !strings.Contains(err.Error(), "provisioning batch") {
		t.Errorf("too few: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "nowhere"), 1); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "provisioning batch") {
		t.Errorf("no folder: %v", err)
	}
	fleet.Device("a").WriteTo(filepath.Join(dir, "twin"), "device")
	if _, err := Load(dir, 2); err == nil || !strings.Contains(err.Error(), "both of a") {
		t.Errorf("one identity twice: %v", err)
	}
	fleet.Service("b").WriteTo(filepath.Join(dir, "a1"), "device")
	if _, err := Load(dir, 2); err == nil || !strings.Contains(err.Error(), "not of a device") {
		t.Errorf("a service: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "a", "device.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, 1); err == nil || !strings.Contains(err.Error(), "device.key") {
		t.Errorf("no key: %v", err)
	}
}

func TestMoreDevicesThanFilesAreRefused(t *testing.T) {
	if err := checkFiles(math.MaxInt - spareFiles); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("checkFiles: %v", err)
	}
	if err := checkFiles(1); err != nil {
		t.Error(err)
	}
}
