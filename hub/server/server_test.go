package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// dial makes a TLS connection and waits for the hub's verdict on it: in TLS 1.3 a
// refused client learns it by its first read.
func dial(addr string, config *tls.Config) (*tls.Conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, config)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	// A CONNECT that every admitted peer gets an answer to: client identifier "?".
	c.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01?"))
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func connect(t *testing.T, addr string, c certtest.Credential, sessions tls.ClientSessionCache) (mqtt.Client, error) {
	t.Helper()
	config := c.ClientConfig()
	config.ClientSessionCache = sessions
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + addr).SetClientID(c.Identity.ID).
		SetTLSConfig(config).SetConnectTimeout(patience).SetAutoReconnect(false))
	token := client.Connect()
	if !token.WaitTimeout(patience) {
		t.Fatal("no answer to CONNECT")
	}
	return client, token.Error()
}

func TestTwoHubsInOneProcessShareNothing(t *testing.T) {
	a, b := hubtest.Start(t), hubtest.Start(t)
	ofA, ofB := a.Device("pi-1"), b.Device("pi-1")
	for name, try := range map[string]struct {
		hub    *hubtest.Hub
		device certtest.Credential
		good   bool
	}{
		"A at A": {a, ofA, true}, "B at B": {b, ofB, true}, "A at B": {b, ofA, false}, "B at A": {a, ofB, false},
	} {
		try.device.Roots = try.hub.Fleet.Bundle() // its own trust doesn't stop it
		client, err := connect(t, try.hub.MQTTAddr(), try.device, nil)
		if (err == nil) != try.good {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			client.Disconnect(100)
		}
	}
	if _, err := a.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	client, err := connect(t, b.MQTTAddr(), ofB, nil)
	if err != nil {
		t.Errorf("a revocation at one hub reached the other: %v", err)
	} else {
		client.Disconnect(100)
	}
}

// kept is a session cache that a test can put to use again and again.
type kept struct{ state *tls.ClientSessionState }

func (k *kept) Get(string) (*tls.ClientSessionState, bool) { return k.state, k.state != nil }
func (k *kept) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		k.state = s
	}
}

func TestRevokedDeviceIsRefusedFullAndResumedAfterRestartToo(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			device := h.Device("pi-1")
			sessions := &kept{}
			config := device.ClientConfig()
			config.MaxVersion, config.ClientSessionCache = version, sessions
			for i, resumed := range []bool{false, true} {
				c, err := dial(h.MQTTAddr(), config)
				if err != nil {
					t.Fatal(err)
				}
				if got := c.ConnectionState().DidResume; got != resumed {
					t.Fatalf("connection %d: resumed %v", i, got)
				}
				c.Close()
			}
			receipt, err := h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise)
			if err != nil {
				t.Fatal(err)
			}
			if receipt.DurableAt.IsZero() || len(receipt.Serials) != 1 {
				t.Errorf("receipt %+v", receipt)
			}
			full := config.Clone()
			full.ClientSessionCache = nil
			check := func(when string) {
				for name, c := range map[string]*tls.Config{"resumed": config, "full": full} {
					if conn, err := dial(h.MQTTAddr(), c); err == nil {
						conn.Close()
						t.Errorf("%s, %s: the revoked device was let in", when, name)
					}
				}
			}
			check("after the receipt")
			h.Restart()
			check("after a restart")
		})
	}
}

func TestReloadTakesUpIssuersAndKeepsTheOldOnBadFiles(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Device("pi-1")
	issuer := filepath.Join(h.Dir, "issuers", certtest.StationName+".crt")
	try := func() error {
		c, err := dial(h.MQTTAddr(), device.ClientConfig())
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := os.WriteFile(issuer, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Server().Reload()
	if err := try(); err != nil {
		t.Errorf("after a reload with a bad file: %v", err)
	}
	if !strings.Contains(h.Log(), "not reloaded") {
		t.Error("the bad file was not logged")
	}
	if err := os.Remove(issuer); err != nil {
		t.Fatal(err)
	}
	h.Server().Reload()
	if try() == nil {
		t.Error("a device of a removed issuer was let in")
	}
	if err := pemfile.WriteCertificates(issuer, h.Fleet.Factory.Certificate()); err != nil {
		t.Fatal(err)
	}
	h.Server().Reload()
	if err := try(); err != nil {
		t.Errorf("after the issuer came back: %v", err)
	}
}

func TestServerCertificateIsRenewedBeforeItEnds(t *testing.T) {
	h := hubtest.Start(t)
	if err := pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey); err != nil {
		t.Fatal(err)
	}
	leafOf := func() *x509.Certificate {
		c, err := dial(h.MQTTAddr(), h.Device("d"+time.Now().Format("150405.000000000")).ClientConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0]
	}
	before := leafOf()
	if err := server.RenewCertificate(h.Server(), before.NotBefore.Add(before.NotAfter.Sub(before.NotBefore)/2)); err != nil {
		t.Fatal(err)
	}
	if !leafOf().Equal(before) {
		t.Error("renewed at half of its lifetime")
	}
	if err := server.RenewCertificate(h.Server(), before.NotAfter.Add(-24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	after := leafOf()
	if after.Equal(before) {
		t.Error("not renewed a day before its end")
	}
	if strings.Join(after.DNSNames, " ") != strings.Join(before.DNSNames, " ") || len(after.IPAddresses) != len(before.IPAddresses) {
		t.Errorf("names changed from %v %v to %v %v", before.DNSNames, before.IPAddresses, after.DNSNames, after.IPAddresses)
	}
}

func TestPortInUseIsNamedWithItsFlag(t *testing.T) {
	h := hubtest.Start(t)
	config := server.DefaultConfig(t.TempDir())
	for flag, set := range map[string]func(*server.Config){
		"--mqtt-addr":    func(c *server.Config) { c.MQTT.Addr = h.MQTTAddr() },
		"--https-addr":   func(c *server.Config) { c.HTTPS.Addr = h.HTTPSAddr() },
		"--metrics-addr": func(c *server.Config) { c.Metrics.Addr = h.MetricsAddr() },
	} {
		c := config
		c.Dir = hubtest.Start(t).Dir // a folder of its own; the hub in it has to go first
		c.MQTT.Addr, c.HTTPS.Addr, c.Metrics.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		set(&c)
		if err := startAlone(t, c); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("got %v, want an error that names %s", err, flag)
		}
	}
}

// startAlone starts a hub over a copy of a folder, so that its store is free.
func startAlone(t *testing.T, config server.Config) error {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(config.Dir)); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "hub.db"))
	for _, key := range []string{"tls/server.key", "operator/operator.key", "tickets.json"} { // CopyFS widens modes
		if err := os.Chmod(filepath.Join(dir, key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config.Dir = dir
	h, err := server.New(config, io.Discard)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Start()
}

func TestHealthAndMetrics(t *testing.T) {
	h := hubtest.Start(t)
	if c, err := dial(h.MQTTAddr(), h.Fleet.Device("stranger").ClientConfig()); err == nil {
		c.Close()
		t.Error("an unregistered device was let in")
	}
	for path, want := range map[string]string{
		"/livez": "ok", "/readyz": "ok", "/metrics": `fleethub_refused_total{reason="unknown-device"} 1`,
	} {
		eventually(t, "GET "+path+" has "+want, func() bool { return strings.Contains(scrape(t, h, path), want) })
	}
}

// scrape returns an answer of the monitoring door.
func scrape(t *testing.T, h *hubtest.Hub, path string) string {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	r, err := http.Get("http://" + h.MetricsAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", path, r.Status, err)
	}
	return string(body)
}

// eventually waits for what must become true, such as what the hub notes behind an
// answer.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

func TestOperatorDoorRefusesOtherRoles(t *testing.T) {
	h := hubtest.Start(t)
	for name, c := range map[string]certtest.Credential{
		"device": h.Device("pi-1"), "service": h.Fleet.Service("backend"), "foreign operator": h.Fleet.Foreign().Operator("admin"),
	} {
		c.Roots = h.Fleet.Bundle()
		client, err := admin.NewClient("https://"+h.HTTPSAddr(), c.Credentials)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Devices(t.Context(), "", 0); !errors.Is(err, admin.ErrDenied) {
			t.Errorf("%s: got %v, want denied", name, err)
		}
		client.Close()
	}
	if strings.Contains(h.Log(), "PRIVATE KEY") {
		t.Error("the log has a key")
	}
}

func TestBadFolderIsBadConfiguration(t *testing.T) {
	good := hubtest.Start(t)
	for name, spoil := range map[string]func(dir string) error{
		"no server key":      func(dir string) error { return os.Remove(filepath.Join(dir, "tls/server.key")) },
		"key of another":     func(dir string) error { return overwriteKey(t, filepath.Join(dir, "tls/server.key")) },
		"public key file":    func(dir string) error { return os.Chmod(filepath.Join(dir, "tls/server.key"), 0o644) },
		"damaged ca.crt":     func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o644) },
		"issuer of another":  func(dir string) error { return foreignIssuer(t, filepath.Join(dir, "issuers/x.crt")) },
		"server key as root": func(dir string) error { return os.Remove(filepath.Join(dir, "ca/operational.crt")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good.Dir)); err != nil {
				t.Fatal(err)
			}
			os.Remove(filepath.Join(dir, "hub.db"))
			os.Chmod(filepath.Join(dir, "tls/server.key"), 0o600)
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			config := server.DefaultConfig(dir)
			config.TrustDomain = certtest.TrustDomain
			h, err := server.New(config, io.Discard)
			if err == nil {
				h.Close()
				t.Fatal("the hub started")
			}
			if command.Code(err) != command.BadConfig {
				t.Errorf("exit code %d for %v, want %d", command.Code(err), err, command.BadConfig)
			}
			if _, err := os.Stat(filepath.Join(dir, "hub.db")); err == nil {
				t.Error("a store was made all the same")
			}
		})
	}
}

func overwriteKey(t *testing.T, path string) error {
	return pemfile.WriteKey(path, certtest.New(t).Device("x").Key)
}

func foreignIssuer(t *testing.T, path string) error {
	return pemfile.WriteCertificates(path, certtest.New(t).Factory.Certificate())
}

// A hub's certificate is for the server side only: nobody gets in with it.
func TestServerCertificateOpensNoDoor(t *testing.T) {
	h := hubtest.Start(t)
	credentials, err := mtls.LoadCredentials(filepath.Join(h.Dir, "operator"), "operator")
	if err != nil {
		t.Fatal(err)
	}
	server := h.Fleet.Server()
	server.Roots = credentials.Roots
	if server.Identity.Role != identity.RoleHub {
		t.Fatal("not a hub's certificate")
	}
	if c, err := dial(h.MQTTAddr(), server.ClientConfig()); err == nil {
		c.Close()
		t.Error("the MQTT door took a server certificate")
	}
}
