package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// budgets are what one connect of a board may cost on the line: octets up and down
// together, from its first to the hub's CONNACK, over a socket (no TCP headers). The
// board is "pi-1" ("pi-5" with a TPM), dials 127.0.0.1, sends its leaf alone, and says CONNECT in MQTT 3.1.1.
var budgets = []struct {
	name    string
	version uint16
	profile mtls.Profile
	resumed bool
	cache   tls.ClientSessionCache // nil: none, and so no ticket is sent
	most    int
	tpm     bool // the certificate says that the key is in a TPM
}{
	{"resumed TLS 1.3", tls.VersionTLS13, mtls.ProfileDefault, true, &kept{}, 850, false},
	{"resumed TLS 1.3, P-256", tls.VersionTLS13, mtls.ProfileConstrained, true, &kept{}, 850, false},
	{"resumed TLS 1.2", tls.VersionTLS12, mtls.ProfileDefault, true, &kept{}, 720, false},
	{"full TLS 1.3", tls.VersionTLS13, mtls.ProfileDefault, false, forgetful{}, 1900, false},
	{"full TLS 1.3, P-256, no ticket", tls.VersionTLS13, mtls.ProfileConstrained, false, nil, 1900, false},
	{"full TLS 1.3, key in a TPM", tls.VersionTLS13, mtls.ProfileDefault, false, forgetful{}, 1900, true},
}

// forgetful asks for tickets and keeps none.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}

// budgetRuns is how many connects are counted: ECDSA signatures differ by an octet or
// two, each.
const budgetRuns = 20

func TestConnectStaysInItsByteBudget(t *testing.T) {
	h := hubtest.Start(t)
	plain, proved := h.Device("pi-1"), h.Fleet.Device("pi-5", certtest.WithTPM())
	h.RegisterTPM(proved, strings.Repeat("5a", 32))
	t.Logf("%-30s %6s %6s %6s %6s", "connect", "up", "down", "both", "most")
	for _, b := range budgets {
		device := plain
		if b.tpm {
			device = proved
		}
		device.Certificate.Certificate = device.Certificate.Certificate[:1]
		config := mtls.ClientConfig(mtls.ClientOptions{Certificate: device.Certificate, Roots: device.Roots, ServerName: "127.0.0.1", Profile: b.profile})
		config.MaxVersion, config.ClientSessionCache = b.version, b.cache
		if b.resumed {
			countConnect(t, h, device, config) // for its ticket
		}
		var worst counted
		for range budgetRuns {
			n := countConnect(t, h, device, config)
			if n.version != b.version || n.resumed != b.resumed {
				t.Fatalf("%s: %s, resumed %v", b.name, tls.VersionName(n.version), n.resumed)
			}
			if n.up+n.down > worst.up+worst.down {
				worst = n
			}
		}
		t.Logf("%-30s %6d %6d %6d %6d", b.name, worst.up, worst.down, worst.up+worst.down, b.most)
		if both := worst.up + worst.down; both > b.most {
			t.Errorf("%s: a connect took %d octets up and %d down, %d together; the budget is %d", b.name, worst.up, worst.down, both, b.most)
		}
	}
}

// counted is one connect.
type counted struct {
	up, down int
	version  uint16
	resumed  bool
	curve    string
}

// countConnect connects, gets its CONNACK, and hangs up.
func countConnect(t *testing.T, h *hubtest.Hub, device certtest.Credential, config *tls.Config) counted {
	t.Helper()
	socket, err := net.DialTimeout("tcp", h.MQTTAddr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	socket.SetDeadline(time.Now().Add(patience))
	raw := &countingConn{Conn: socket}
	c := tls.Client(raw, config)
	id := device.Identity.ID
	if _, err := c.Write(fmt.Appendf(nil, "\x10%c\x00\x04MQTT\x04\x02\x00\x3c\x00%c%s", 12+len(id), len(id), id)); err != nil {
		t.Fatal(err)
	}
	ack := make([]byte, 4)
	if _, err := io.ReadFull(c, ack); err != nil || ack[3] != 0 {
		t.Fatalf("CONNACK %x, %v", ack, err)
	}
	state := c.ConnectionState()
	return counted{raw.up, raw.down, state.Version, state.DidResume, state.CurveID.String()}
}

// countingConn counts what a client's socket carries.
type countingConn struct {
	net.Conn
	up, down int
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.down += n
	return n, err
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.up += n
	return n, err
}
