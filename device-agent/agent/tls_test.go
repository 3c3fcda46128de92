package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// board is a machine with an agent, next to a real hub that knows it.
type board struct {
	t      *testing.T
	hub    *hubtest.Hub
	config Config
}

func newBoard(t *testing.T) *board {
	t.Helper()
	h := hubtest.Start(t)
	dir := h.Device("pi-1").WriteTo(t.TempDir(), "device")
	return &board{t: t, hub: h, config: Config{Dir: dir, Hub: h.MQTTAddr(), TPM: TPMOff}}
}

// boot runs the agent from power-up until its status satisfies good, and cuts
// the power then. The status is what it was at that moment.
func (b *board) boot(good func(Snapshot) bool) Snapshot {
	b.t.Helper()
	if err := os.Remove(b.file(statusFile)); err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	stop := start(b.t, b.config)
	r := eventually(b.t, b.config.Dir, func(r Report) bool { return r.Last != nil && good(*r.Last) })
	stop()
	return *r.Last
}

// connect is boot until the agent is connected and has a ticket.
func (b *board) connect() Snapshot {
	b.t.Helper()
	return b.boot(func(s Snapshot) bool {
		return s.Link.State == link.StateConnected && s.Tickets != nil && s.Tickets.Ready
	})
}

func (b *board) file(name string) string { return filepath.Join(b.config.Dir, name) }

func (b *board) want(s Snapshot, full, resumed uint64, p keystore.Protection) {
	b.t.Helper()
	if s.Link.Full != full || s.Link.Resumed != resumed || s.Tickets.Protection != p {
		b.t.Errorf("%d full and %d resumed handshakes, ticket %s; want %d, %d, %s; ticket store %+v",
			s.Link.Full, s.Link.Resumed, s.Tickets.Protection, full, resumed, p, *s.Tickets)
	}
}

func TestFirstConnectAfterARestartIsAResumption(t *testing.T) {
	b := newBoard(t)
	first := b.connect()
	b.want(first, 1, 0, keystore.ProtectionFile)
	second := b.connect()
	b.want(second, 0, 1, keystore.ProtectionFile)
	if h := second.Link.Handshake; !h.Resumed || h.Protocol != "TLS 1.3" || second.Link.Profile != mtls.ProfileDefault {
		t.Errorf("handshake %+v, profile %s", *h, second.Link.Profile)
	}
	if f, r := first.Link.Handshake.Bytes, second.Link.Handshake.Bytes; r.Up >= f.Up || r.Down >= f.Down {
		t.Errorf("a resumption is %+v, a full handshake %+v", r, f)
	}
	b.hub.Restart()
	b.want(b.connect(), 0, 1, keystore.ProtectionFile)
	if info, err := os.Stat(b.file(sessionFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
}

func TestSealedTicketSurvivesAReboot(t *testing.T) {
	chip := tpmtest.Start(t)
	b := newBoard(t)
	b.config.TPM = chip.Address()
	b.want(b.connect(), 1, 0, keystore.ProtectionSealed)
	chip.Restart()
	b.want(b.connect(), 0, 1, keystore.ProtectionSealed)
	b.hub.Restart()
	b.want(b.connect(), 0, 1, keystore.ProtectionSealed)

	b.config.Dir = b.copyOnto(t.TempDir()) // a stolen disk, in a machine with another TPM
	b.config.TPM = tpmtest.Start(t).Address()
	b.want(b.connect(), 1, 0, keystore.ProtectionSealed)
}

func (b *board) copyOnto(dir string) string {
	b.t.Helper()
	if err := os.CopyFS(dir, os.DirFS(b.config.Dir)); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "device.key"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return dir
}

func TestTPMThatFailsLeavesTicketsInMemory(t *testing.T) {
	b := newBoard(t)
	var log bytes.Buffer
	b.config.TPM, b.config.Log = filepath.Join(t.TempDir(), "nothing"), slog.New(slog.NewTextHandler(&log, nil))
	for range 2 {
		s := b.connect()
		b.want(s, 1, 0, keystore.ProtectionMemory)
		if !strings.Contains(s.Tickets.Problem, "open the TPM at") {
			t.Errorf("the problem is %q", s.Tickets.Problem)
		}
	}
	if n := strings.Count(log.String(), "in memory only"); n != 2 {
		t.Errorf("said %d times that tickets aren't saved, want once a start\n%s", n, &log)
	}
	if _, err := os.Stat(b.file(sessionFile)); !os.IsNotExist(err) {
		t.Errorf("a ticket was saved without being sealed: %v", err)
	}
}

func TestRevokedDeviceWithASavedTicketIsRefusedAndSaysWhy(t *testing.T) {
	b := newBoard(t)
	b.connect()
	if _, err := b.hub.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		s := b.boot(func(s Snapshot) bool { return s.Link.LastRefusal != nil })
		if n, f := s.Link.Full+s.Link.Resumed, s.Link.LastRefusal; n != 0 || !strings.Contains(f.Error(), "revoked or suspended") || !f.Slow() {
			t.Errorf("%d handshakes, refusal %v", n, f)
		}
		if s.Tickets.Ready {
			t.Errorf("ticket store %+v", *s.Tickets)
		}
	}
	ticket, err := os.ReadFile(b.file(sessionFile))
	if err != nil {
		t.Fatal(err)
	}
	refused()
	b.hub.Restart()
	if err := os.WriteFile(b.file(sessionFile), ticket, 0o600); err != nil { // even if the ticket was copied
		t.Fatal(err)
	}
	refused()
}

func TestDamagedFilesCostAFullHandshakeWithTheWholeChain(t *testing.T) {
	b := newBoard(t)
	b.connect()
	for _, data := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte{0xff}, 5000)} {
		for _, name := range []string{sessionFile, chainFile} {
			if err := os.WriteFile(b.file(name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.want(b.connect(), 1, 0, keystore.ProtectionFile)
		b.want(b.connect(), 0, 1, keystore.ProtectionFile)
	}
}

func TestHubsWordThatTheLeafSufficesOutlivesTheAgent(t *testing.T) {
	b := newBoard(t)
	leaf := func(s Snapshot) bool { return s.Link.State == link.StateConnected && s.Link.Chain == link.ChainLeaf }
	first := b.boot(leaf)
	if err := os.Remove(b.file(sessionFile)); err != nil {
		t.Fatal(err)
	}
	second := b.boot(leaf)
	b.want(second, 1, 0, keystore.ProtectionFile)
	if saved := int(first.Link.Handshake.Bytes.Up) - int(second.Link.Handshake.Bytes.Up); saved < 300 {
		t.Errorf("the leaf alone saves %d bytes up of %d", saved, first.Link.Handshake.Bytes.Up)
	}
}

func TestRefusedLeafClearsTheMemoryOfIt(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	p.wantChain.Store(true)
	device := fleet.Device("pi-1")
	dir := device.WriteTo(t.TempDir(), "device")
	keystore.OpenChain(filepath.Join(dir, chainFile), p.address, slog.New(slog.DiscardHandler)).Learn(device.Leaf)
	stop := start(t, Config{Dir: dir, Hub: p.address, TPM: TPMOff})
	r := eventually(t, dir, func(r Report) bool { return r.Last != nil && r.Last.Link.State == link.StateConnected })
	stop()
	if l := r.Last.Link; l.Chain != link.ChainFull || l.LastFailure == nil || l.LastFailure.Kind != link.KindLeaf {
		t.Errorf("connected with %s after %+v", l.Chain, l.LastFailure)
	}
	if _, err := os.Stat(filepath.Join(dir, chainFile)); !os.IsNotExist(err) {
		t.Errorf("the file of what was learnt is still there: %v", err)
	}
}

func TestTicketOfOldCredentialsIsNotKeptForNewOnes(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	b := &board{t: t, config: Config{Dir: fleet.Device("pi-1").WriteTo(t.TempDir(), "device"), Hub: p.address, TPM: TPMOff}}
	b.connect()
	fleet.Device("pi-1").WriteTo(b.config.Dir, "device")
	b.want(b.connect(), 1, 0, keystore.ProtectionFile)
	b.want(b.connect(), 0, 1, keystore.ProtectionFile)
}

func TestSettingOfTheTPM(t *testing.T) {
	for setting, good := range map[string]bool{
		TPMAuto: true, TPMOff: true, "/dev/tpmrm0": true, "unix:///run/swtpm.sock": true, "tcp://127.0.0.1:2321": true,
		"": false, "on": false, "tpmrm0": false, "127.0.0.1:2321": false,
	} {
		if err := CheckTPM(setting); (err == nil) != good {
			t.Errorf("CheckTPM(%q) = %v", setting, err)
		}
	}
	if s := sealerFor(TPMOff); s != nil {
		t.Errorf("off seals with %v", s)
	}
}

// A TPM that takes its time must not keep the agent from saying that it is ready:
// it is waited for in the link's goroutine.
func TestStartDoesNotWaitForTheTPM(t *testing.T) {
	b := newBoard(t)
	b.config.TPM = "tcp://127.0.0.1:1"
	a, err := New(b.config)
	if err != nil {
		t.Fatal(err)
	}
	defer a.lock.release()
	if a.tickets.stats() != nil {
		t.Error("the ticket store was opened before the first attempt")
	}
}
