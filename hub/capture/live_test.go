package capture

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
)

// scene is a server, a client, and what must be said about them.
type scene struct {
	name    string
	server  *tls.Config
	client  func(address string) error // its error is of no interest: many are refused
	connect int                        // connections that client makes; 0 is 1. The last is explained
	outcome Outcome
	alert   string
	steps   []string // all of TLS, in order; nil: not looked at. Whose comes first when both send is left open
	says    []string // must be in the text
}

var (
	connect = []byte("\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06device")
	connack = []byte("\x20\x02\x00\x00")
)

// dial returns a client that connects n times, sends an MQTT CONNECT and waits for the answer.
func dial(config *tls.Config, n int) func(string) error {
	return func(address string) error {
		for range n {
			if err := talk(address, config); err != nil {
				return err
			}
		}
		return nil
	}
}

func talk(address string, config *tls.Config) error {
	raw, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return err
	}
	conn := tls.Client(raw, config)
	defer conn.Close()
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), conn.Handshake()); err != nil {
		return err
	}
	if _, err := conn.Write(connect); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, len(connack)))
	return err
}

// serve answers n connections one after another.
func serve(l net.Listener, config *tls.Config, n int) error {
	for range n {
		raw, err := l.Accept()
		if err != nil {
			return err
		}
		conn := tls.Server(raw, config)
		err = errors.Join(conn.SetDeadline(time.Now().Add(patience)), conn.Handshake())
		if err == nil {
			if _, err = io.ReadFull(conn, make([]byte, len(connect))); err == nil {
				_, err = conn.Write(connack)
			}
		}
		if err != nil {
			raw.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, raw) // until the client hangs up; and so no RST overtakes an alert
		raw.Close()
	}
	return nil
}

// openssl returns a client that is openssl s_client with these arguments; it sends nothing.
func openssl(args ...string) func(string) error {
	return func(address string) error {
		c := exec.Command("openssl", append([]string{"s_client", "-connect", address}, args...)...)
		c.Stdin = strings.NewReader("")
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}

// pki is what the scenes are made of.
type pki struct {
	fleet, foreign *certtest.Fleet
	server         certtest.Credential
	dir            string // pi-1's folder, for openssl
	foreignDir     string // and another fleet's
}

// hub is the server side of a hub, which lets in whom verify does.
func (p *pki) hub(verify func(tls.ConnectionState) error) *tls.Config {
	return mtls.ServerConfig(mtls.ServerOptions{Certificate: func() (*tls.Certificate, error) { return &p.server.Certificate, nil }, Verify: verify})
}

// plain is a server that is not a hub: crypto/tls checks the client.
func (p *pki) plain(trusted *certtest.Fleet, change func(*tls.Config)) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(trusted.Root.Certificate())
	c := &tls.Config{Certificates: []tls.Certificate{p.server.Certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MaxVersion: tls.VersionTLS12}
	if change != nil {
		change(c)
	}
	return c
}

// device is the client side of one, changed.
func (p *pki) device(version uint16, changes ...func(*tls.Config)) *tls.Config {
	c := p.fleet.Device("pi-1").ClientConfig()
	c.MaxVersion, c.CurvePreferences = version, []tls.CurveID{tls.CurveP256}
	for _, change := range changes {
		change(c)
	}
	return c
}

func anybody(tls.ConnectionState) error { return nil }

func sessions(c *tls.Config) { c.ClientSessionCache = tls.NewLRUClientSessionCache(1) }

func certificate(credential certtest.Credential) func(*tls.Config) {
	return func(c *tls.Config) { c.Certificates = []tls.Certificate{credential.Certificate} }
}

func TestHandshakesThatTSharkRecordedAreExplained(t *testing.T) {
	fleet := certtest.New(t)
	p := &pki{fleet: fleet, foreign: fleet.Foreign(), server: fleet.Server("hub.fleet.example"), dir: t.TempDir()}
	fleet.Device("pi-1").WriteTo(p.dir, "device")
	p.foreignDir = p.foreign.Device("pi-1").WriteTo(t.TempDir(), "device")
	scenes := slices.Concat(p.goodScenes(), p.refusals())

	listeners, ports := make([]net.Listener, len(scenes)), make([]int, len(scenes))
	for i := range scenes {
		listeners[i] = listen(t)
		ports[i] = portOf(listeners[i])
	}
	refusals := make([]error, len(scenes))
	file := record(t, "handshakes.pcapng", ports, func() {
		for i, s := range scenes {
			served := make(chan error, 1)
			go func() { served <- serve(listeners[i], s.server, max(1, s.connect)) }()
			refusals[i] = s.client(listeners[i].Addr().String())
			select {
			case err := <-served:
				if err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			case <-time.After(patience):
				t.Fatalf("%s: the client did not come: %v", s.name, refusals[i])
			}
		}
	})
	c := read(t, file)
	if c.OtherTCP != 1 {
		t.Errorf("%d connections without TLS; want the one that ended the recording", c.OtherTCP)
	}
	if path := os.Getenv("CAPTURE_TEXT"); path != "" { // for whoever wants to read them all
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := c.WriteText(f); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			var conn *Connection
			for _, found := range c.Connections {
				if found.Server == listeners[i].Addr().String() {
					conn = found
				}
			}
			if conn == nil {
				t.Fatalf("it isn't in the capture; the client says %v", refusals[i])
			}
			s.check(t, conn)
		})
	}
}

// check compares an explanation with what the scene must give.
func (s *scene) check(t *testing.T, conn *Connection) {
	said := explanation(conn)
	if conn.Outcome != s.outcome || conn.Alert != s.alert {
		t.Errorf("outcome %s, alert %q; want %s, %q", conn.Outcome, conn.Alert, s.outcome, s.alert)
	}
	if conn.Problem != "" {
		t.Errorf("problem: %s", conn.Problem)
	}
	if got := stepNames(conn); s.steps != nil && !(slices.Equal(only("→", got), only("→", s.steps)) && slices.Equal(only("←", got), only("←", s.steps))) {
		t.Errorf("the steps are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(s.steps, "\n"))
	}
	for _, want := range s.says {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	// What the steps say of bytes is what went over the wire, to the byte.
	var sum Traffic
	for _, step := range conn.Steps {
		sum.add(step.From, step.Bytes)
	}
	if sum != conn.TCPData {
		t.Errorf("the steps have %+v bytes, TCP %+v", sum, conn.TCPData)
	}
	if conn.ClosedBy == "" || conn.TCPRoundTrip <= 0 || conn.WireData.Up <= conn.TCPData.Up {
		t.Errorf("closed by %q, TCP round trip %v, on the wire %+v", conn.ClosedBy, conn.TCPRoundTrip, conn.WireData)
	}
	if t.Failed() {
		t.Logf("%s", said)
	}
}

// only returns one side's steps.
func only(arrow string, steps []string) []string {
	return slices.DeleteFunc(slices.Clone(steps), func(s string) bool { return !strings.HasPrefix(s, arrow) })
}

func (p *pki) goodScenes() []scene {
	return []scene{
		{
			name: "full TLS 1.3", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS13, sessions), 1), outcome: Full,
			steps: []string{"→ ClientHello", "← ServerHello", "← ChangeCipherSpec", "← EncryptedExtensions", "← CertificateRequest", "← Certificate",
				"← CertificateVerify", "← Finished", "→ ChangeCipherSpec", "→ Certificate", "→ CertificateVerify", "→ Finished", "→ application data",
				"← NewSessionTicket", "← application data", "→ Alert, probably close_notify (0)"},
			says: []string{"A full handshake, with certificates.", "chosen TLS 1.3, TLS_AES_128_GCM_SHA256, CurveP256", "up to TLS 1.3", "1 round trip,",
				"cipher suites TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "groups CurveP256", "key shares CurveP256 (65 bytes)", "signature algorithms",
				"ECDSAWithP256AndSHA256", "versions TLS 1.3, TLS 1.2", "closed by the client (FIN)", "MQTT CONNECT, if this is MQTT"},
		},
		{
			name: "resumed TLS 1.3", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS13, sessions), 2), connect: 2, outcome: Resumed,
			steps: []string{"→ ClientHello", "← ServerHello", "← ChangeCipherSpec", "← EncryptedExtensions", "← Finished", "← NewSessionTicket",
				"→ ChangeCipherSpec", "→ Finished", "→ application data", "← application data", "→ Alert, probably close_notify (0)"},
			says: []string{"Resumed with a ticket of ", "takes the ticket: resumed", "bytes (TLS 1.3 pre_shared_key)", "1 round trip,"},
		},
		{
			name: "full TLS 1.2", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12), 1), outcome: Full,
			steps: []string{"→ ClientHello", "← ServerHello", "← Certificate", "← ServerKeyExchange", "← CertificateRequest", "← ServerHelloDone", "→ Certificate",
				"→ ClientKeyExchange", "→ CertificateVerify", "→ ChangeCipherSpec", "→ Finished", "← ChangeCipherSpec", "← Finished", "→ application data",
				"← application data", "→ Alert, probably close_notify (0)"},
			says: []string{"chosen TLS 1.2, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, CurveP256", "2 round trips,", "ServerKeyExchange: curve CurveP256",
				"any CA may be tried", "types rsa_sign, ecdsa_sign", "2 certificates of ", "URI spiffe://fleet.example/device/pi-1", "subject CN=pi-1",
				"client spiffe://fleet.example/device/pi-1", "names hub.fleet.example localhost", "proves that the client has the certificate's key"},
		},
		{
			name: "full TLS 1.2 with a ticket for next time", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12, sessions), 1), outcome: Full,
			says: []string{"NewSessionTicket: a ticket of ", "bytes for the next connect", "ticket none to offer, but would take one"},
		},
		{
			name: "resumed TLS 1.2", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12, sessions), 2), connect: 2, outcome: Resumed,
			steps: []string{"→ ClientHello", "← ServerHello", "← NewSessionTicket", "← ChangeCipherSpec", "← Finished", "→ ChangeCipherSpec", "→ Finished",
				"→ application data", "← application data", "→ Alert, probably close_notify (0)"},
			says: []string{"Resumed with a ticket of ", "bytes (TLS 1.2 session_ticket)", "1 round trip,"},
		},
		{
			name: "TLS 1.3 with a HelloRetryRequest", server: p.plain(p.fleet, func(c *tls.Config) { c.MaxVersion, c.CurvePreferences = 0, []tls.CurveID{tls.CurveP384} }),
			client:  dial(p.device(tls.VersionTLS13, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384} }), 1),
			outcome: Full,
			says: []string{"HelloRetryRequest: the client's key share doesn't suit the server", "key shares X25519 (32 bytes)", "key shares CurveP384 (97 bytes)",
				"2 round trips,", "should be of the curve that the server prefers, CurveP384"},
		},
		{
			name: "names and protocols", server: p.plain(p.fleet, func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }),
			client: dial(p.device(tls.VersionTLS12, func(c *tls.Config) {
				c.ServerName, c.NextProtos = "hub.fleet.example", []string{"x-\x1b[31mred", "mqtt"}
			}), 1), outcome: Full,
			says: []string{"up to TLS 1.2, for hub.fleet.example", "ALPN x-\ufffd[31mred, mqtt", "the client must show a certificate of one of 1 CAs", "acceptable CAs CN="},
		},
		{
			name: "OpenSSL, TLS 1.3, two tickets", server: p.hub(anybody), client: openssl("-cert", p.dir+"/device.crt", "-key", p.dir+"/device.key", "-tls1_3"), outcome: Full,
			says: []string{"groups X25519, CurveP256, X448, CurveP521", "ffdhe2048", "Ed448", "≈ CertificateVerify", "≈ Finished", "encrypt_then_mac"},
		},
		{
			name: "a server that asks for no certificate", server: p.plain(p.fleet, func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.NoClientCert, 0 }),
			client: dial(p.device(tls.VersionTLS13), 1), outcome: Full,
			steps: []string{"→ ClientHello", "← ServerHello", "← ChangeCipherSpec", "← EncryptedExtensions", "← Certificate", "← CertificateVerify", "← Finished",
				"→ ChangeCipherSpec", "→ Finished", "→ application data", "← application data", "→ Alert, probably close_notify (0)"},
			says: []string{"The server asked for no client certificate"},
		},
		{
			name: "a ticket that the server does not know", server: freshKeys(p.hub(anybody)), client: dial(p.device(tls.VersionTLS13, sessions), 2), connect: 2, outcome: Full,
			says: []string{"The client offered a ticket of ", "that the server didn't take"},
		},
	}
}

// freshKeys has a server forget its ticket keys with each connection.
func freshKeys(c *tls.Config) *tls.Config {
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		fresh := c.Clone()
		fresh.GetConfigForClient = nil
		var key [32]byte
		rand.Read(key[:])
		fresh.SetSessionTicketKeys([][32]byte{key})
		return fresh, nil
	}
	return c
}

func (p *pki) refusals() []scene {
	expired := p.fleet.Device("pi-1", certtest.WithValidity(time.Now().AddDate(0, -2, 0), 24*time.Hour))
	refuse := func(tls.ConnectionState) error { return errors.New("revoked") }
	return []scene{
		{
			name: "unknown CA", server: p.plain(p.foreign, nil), client: dial(p.device(tls.VersionTLS12), 1), outcome: Refused, alert: "unknown_ca (48)",
			says: []string{"The server refused the handshake, with the alert unknown_ca (48): the server doesn't know the issuer"},
		},
		{
			name: "server of another fleet", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12, func(c *tls.Config) {
				c.RootCAs = x509.NewCertPool()
				c.RootCAs.AddCert(p.foreign.Root.Certificate())
			}), 1), outcome: Refused, alert: "bad_certificate (42)",
			says: []string{"The client refused the handshake, with the alert bad_certificate (42): the client refused the server's certificate: another fleet's root in ca.crt"},
		},
		{
			name: "server of another fleet, TLS 1.3", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS13, func(c *tls.Config) {
				c.RootCAs = x509.NewCertPool()
				c.RootCAs.AddCert(p.foreign.Root.Certificate())
			}), 1), outcome: Refused, alert: "probably bad_certificate (42) or unknown_ca (48)",
			says: []string{"The client refused the handshake, probably with the alert", "another fleet's root in ca.crt"},
		},
		{
			name: "server under another name", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12, func(c *tls.Config) { c.ServerName = "old.fleet.example" }), 1),
			outcome: Refused, alert: "bad_certificate (42)", says: []string{"which is not made out to old.fleet.example"},
		},
		{
			name: "OpenSSL refuses an unknown CA", server: p.hub(anybody), client: openssl("-tls1_2", "-verify_return_error", "-CAfile", p.foreignDir+"/ca.crt"),
			outcome: Refused, alert: "unknown_ca (48)", says: []string{"the client doesn't trust the server's issuer: ca.crt on the device must hold this fleet's root"},
		},
		{
			name: "expired", server: p.plain(p.fleet, nil), client: dial(p.device(tls.VersionTLS12, certificate(expired)), 1), outcome: Refused, alert: "certificate_expired (45)",
			says: []string{"the client's certificate is out of its validity (valid ", "EXPIRED when this was captured", "`hub device show pi-1`"},
		},
		{
			name: "bad certificate", server: p.hub(refuse), client: dial(p.device(tls.VersionTLS12), 1), outcome: Refused, alert: "bad_certificate (42)",
			says: []string{"the server refused the client's certificate: revoked, suspended, expired", "`hub device show pi-1`"},
		},
		{
			name: "bad certificate, TLS 1.3", server: p.hub(refuse), client: dial(p.device(tls.VersionTLS13), 1), outcome: Refused, alert: "probably bad_certificate (42)",
			says: []string{"The server refused the handshake", "revoked, suspended, expired", "`hub device show ID`", "≈ Alert, probably bad_certificate (42)"},
		},
		{
			name: "bad certificate, resumed", server: p.hub(func(cs tls.ConnectionState) error {
				if cs.DidResume {
					return errors.New("revoked since")
				}
				return nil
			}), client: dial(p.device(tls.VersionTLS12, sessions), 2), connect: 2, outcome: Refused, alert: "bad_certificate (42)",
		},
		{
			name: "version too old", server: p.hub(anybody), client: openssl("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), outcome: Refused, alert: "protocol_version (70)",
			steps: []string{"→ ClientHello", "← Alert protocol_version (70)"},
			says:  []string{"the client is too old: it offers at most TLS 1.1", "versions TLS 1.1"},
		},
		{
			name: "no common suite", server: p.hub(anybody), client: openssl("-tls1_2", "-cipher", "AES256-SHA:DHE-RSA-AES128-GCM-SHA256"), outcome: Refused, alert: "handshake_failure (40)",
			says: []string{"no common cipher suite: the client offers none that a hub takes", "TLS_RSA_WITH_AES_256_CBC_SHA, TLS_DHE_RSA_WITH_AES_128_GCM_SHA256"},
		},
		{
			name: "no common curve", server: p.hub(anybody), client: openssl("-groups", "P-521"), outcome: Refused, alert: "handshake_failure (40)",
			says: []string{"no common curve: the client offers none that a hub takes"},
		},
		{
			name: "no client certificate", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS12, func(c *tls.Config) { c.Certificates = nil }), 1),
			outcome: Refused, alert: "handshake_failure (40)", says: []string{"→ 12 Certificate: empty", "the client showed no certificate, and a hub needs one"},
		},
		{
			name: "no client certificate, TLS 1.3", server: p.hub(anybody), client: dial(p.device(tls.VersionTLS13, func(c *tls.Config) { c.Certificates = nil }), 1),
			outcome: Refused, alert: "probably certificate_required (116)", says: []string{"Certificate: probably empty", "the client showed no certificate, and a hub needs one"},
		},
		{
			name: "no common protocol", server: p.plain(p.fleet, func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }),
			client:  dial(p.device(tls.VersionTLS12, func(c *tls.Config) { c.NextProtos = []string{"mqtt"} }), 1),
			outcome: Refused, alert: "no_application_protocol (120)", says: []string{"the server doesn't speak mqtt on this port"},
		},
	}
}

func TestBothFileFormatsOfTSharkAreRead(t *testing.T) {
	fleet := certtest.New(t)
	p := &pki{fleet: fleet, server: fleet.Server()}
	l := listen(t)
	file := record(t, "one.pcapng", []int{portOf(l)}, func() {
		served := make(chan error, 1)
		go func() { served <- serve(l, p.hub(anybody), 1) }()
		if err := errors.Join(talk(l.Addr().String(), p.device(tls.VersionTLS13)), <-served); err != nil {
			t.Fatal(err)
		}
	})
	want := read(t, file)
	old := filepath.Join(t.TempDir(), "one.pcap")
	if out, err := exec.Command("tshark", "-r", file, "-F", "pcap", "-w", old).CombinedOutput(); err != nil {
		t.Fatalf("tshark: %v: %s", err, out)
	}
	got := read(t, old)
	if len(want.Connections) != 1 || len(got.Connections) != 1 {
		t.Fatalf("pcapng has %d connections and pcap %d", len(want.Connections), len(got.Connections))
	}
	a, b := want.Connections[0], got.Connections[0]
	if a.Verdict != b.Verdict || a.WireData != b.WireData || !slices.Equal(stepNames(a), stepNames(b)) {
		t.Errorf("pcapng: %+v\npcap: %+v", a, b)
	}
}
