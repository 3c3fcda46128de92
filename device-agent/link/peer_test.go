package link

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link/linktest"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; nothing takes nearly as long.
const patience = 30 * time.Second

// peer is a real MQTT server behind real mutual TLS that can be told to
// refuse. It is also its server's one hook.
type peer struct {
	mochi.HookBase
	t       *testing.T
	fleet   *certtest.Fleet
	address string
	server  *mochi.Server
	end     func() // of what serves; nil once it has ended
	config  *tls.Config

	received chan packets.Packet // each PUBLISH and each will
	gone     chan string         // the identifier of each client that has left, its will sent

	mu     sync.Mutex // guards what follows
	chains []int      // the certificates that each full handshake presented
	asked  []string   // the filters of each SUBSCRIBE

	// What to refuse:
	tls     error  // the handshake, for this reason
	leaf    error  // a leaf without its issuer, for this reason
	connack byte   // the connection, with this code
	silent  bool   // the connection, without a word
	mute    string // PUBACK for topics that contain it, unless empty
}

// newPeer starts a peer whose server certificate is of the fleet, whatever
// server says, and that speaks up to TLS version.
func newPeer(t *testing.T, fleet *certtest.Fleet, server certtest.Credential, version uint16) *peer {
	t.Helper()
	verifier, err := mtls.NewVerifier(fleet.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, fleet: fleet, received: make(chan packets.Packet, 1000), gone: make(chan string, 1000)}
	p.config = mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &server.Certificate, nil },
		Verify: func(cs tls.ConnectionState) error {
			p.mu.Lock()
			refuse := p.tls
			if n := len(cs.PeerCertificates); !cs.DidResume {
				p.chains = append(p.chains, n)
				if n == 1 {
					refuse = errors.Join(refuse, p.leaf)
				}
			}
			p.mu.Unlock()
			if refuse != nil {
				return refuse
			}
			_, err := verifier.Verify(cs, identity.RoleDevice)
			return err
		},
	})
	p.config.MaxVersion = version
	p.start("127.0.0.1:0")
	t.Cleanup(p.stop)
	return p
}

// goodPeer starts a peer that accepts the devices of its fleet.
func goodPeer(t *testing.T) *peer {
	fleet := certtest.New(t)
	return newPeer(t, fleet, fleet.Server(), tls.VersionTLS13)
}

func (p *peer) start(address string) {
	p.t.Helper()
	inner, err := net.Listen("tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.address = inner.Addr().String()
	p.server = mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := p.server.AddHook(p, nil); err != nil {
		p.t.Fatal(err)
	}
	if err := p.server.Serve(); err != nil { // returns once it serves
		p.t.Fatal(err)
	}
	p.end = linktest.Accept(p.server, tls.NewListener(inner, p.config))
}

func (p *peer) stop() {
	if p.end != nil { // mochi panics when closed twice
		p.end()
		p.end = nil
	}
}

// cut closes the connection of a client, as a network would.
func (p *peer) cut(id string) {
	p.t.Helper()
	client, ok := p.server.Clients.Get(id)
	if !ok {
		p.t.Fatalf("%s isn't connected", id)
	}
	_ = client.Net.Conn.(*tls.Conn).NetConn().Close()
}

// set changes what the peer refuses.
func (p *peer) set(change func(p *peer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// tell publishes a retained message, as only a hub may.
func (p *peer) tell(topic, payload string) {
	p.t.Helper()
	if err := p.server.Publish(topic, []byte(payload), true, 0); err != nil {
		p.t.Fatal(err)
	}
}

// seen returns how many certificates each full handshake presented, and the
// filters that were subscribed to.
func (p *peer) seen() (chains []int, asked []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.chains), slices.Clone(p.asked)
}

// next returns the next message whose topic contains part.
func (p *peer) next(part string) packets.Packet {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case pk := <-p.received:
			if strings.Contains(pk.TopicName, part) {
				return pk
			}
		case <-deadline:
			p.t.Fatalf("no message on a topic with %q arrived", part)
		}
	}
}

// ID and the methods below make peer a hook.
func (p *peer) ID() string { return "peer" }

func (p *peer) Provides(b byte) bool {
	switch b {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnPublish, mochi.OnSubscribe, mochi.OnWillSent, mochi.OnDisconnect:
		return true
	}
	return false
}

func (p *peer) OnConnect(client *mochi.Client, _ packets.Packet) error {
	p.mu.Lock()
	code, silent := p.connack, p.silent
	p.mu.Unlock()
	if code != 0 {
		_, _ = client.Net.Conn.Write([]byte{packets.Connack << 4, 2, 0, code})
	}
	if code != 0 || silent {
		return errors.New("refused by the test")
	}
	return nil
}

func (p *peer) OnConnectAuthenticate(*mochi.Client, packets.Packet) bool { return true }

func (p *peer) OnACLCheck(*mochi.Client, string, bool) bool { return true }

func (p *peer) OnPublish(_ *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	p.mu.Lock()
	mute := p.mute
	p.mu.Unlock()
	if mute != "" && strings.Contains(pk.TopicName, mute) {
		return pk, packets.ErrRejectPacket
	}
	p.received <- pk
	return pk, nil
}

func (p *peer) OnSubscribe(_ *mochi.Client, pk packets.Packet) packets.Packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range pk.Filters {
		p.asked = append(p.asked, f.Filter)
	}
	return pk
}

func (p *peer) OnWillSent(_ *mochi.Client, pk packets.Packet) { p.received <- pk }

func (p *peer) OnDisconnect(client *mochi.Client, _ error, _ bool) { p.gone <- client.ID }
