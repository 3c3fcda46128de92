package mtls_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// negotiate makes a connection between a server and a client of those profiles and
// returns what the client sees, and how many ClientHellos the server got.
func negotiate(t *testing.T, f *certtest.Fleet, server, client mtls.Profile) (tls.ConnectionState, int) {
	t.Helper()
	verifier, err := mtls.NewVerifier(f.Trust(), nil)
	if err != nil {
		t.Fatal(err)
	}
	own := f.Server().Certificate
	config := mtls.ServerConfig(mtls.ServerOptions{
		Certificate: func() (*tls.Certificate, error) { return &own, nil },
		Verify:      func(cs tls.ConnectionState) error { _, err := verifier.Verify(cs, identity.RoleDevice); return err },
		Profile:     server,
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			served <- err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = tls.Server(raw, config).Write([]byte("!"))
		served <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	device := f.Device("pi-1")
	hellos := &helloCounter{Conn: raw}
	conn := tls.Client(hellos, mtls.ClientConfig(mtls.ClientOptions{Certificate: device.Certificate, Roots: device.Roots, ServerName: "127.0.0.1", Profile: client}))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatalf("server %s, client %s: %v", server, client, err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return conn.ConnectionState(), hellos.n
}

// helloCounter counts the records that begin with a ClientHello.
type helloCounter struct {
	net.Conn
	n int
}

func (c *helloCounter) Write(p []byte) (int, error) {
	if len(p) > 5 && p[0] == 22 && p[5] == 1 {
		c.n++
	}
	return c.Conn.Write(p)
}

func TestNoPairOfProfilesPaysAHelloRetryRequest(t *testing.T) {
	f := certtest.New(t)
	all := []mtls.Profile{mtls.ProfileDefault, mtls.ProfileConstrained, mtls.ProfilePQ}
	for _, server := range all {
		for _, client := range all {
			state, hellos := negotiate(t, f, server, client)
			if hellos != 1 {
				t.Errorf("server %s, client %s: %d ClientHellos", server, client, hellos)
			}
			if state.Version != tls.VersionTLS13 {
				t.Errorf("server %s, client %s: %s", server, client, tls.VersionName(state.Version))
			}
			want := tls.X25519
			if client == mtls.ProfileConstrained {
				want = tls.CurveP256
			}
			if client == mtls.ProfilePQ && server == mtls.ProfilePQ {
				want = tls.X25519MLKEM768
			}
			if state.CurveID != want {
				t.Errorf("server %s, client %s: %s, want %s", server, client, state.CurveID, want)
			}
		}
	}
}

func TestProfilesNegotiateNothingOldOrStatic(t *testing.T) {
	good := map[uint16]bool{}
	for _, s := range tls.CipherSuites() {
		good[s.ID] = true
	}
	for _, p := range []mtls.Profile{mtls.ProfileDefault, mtls.ProfileConstrained, mtls.ProfilePQ} {
		for name, c := range map[string]*tls.Config{
			"server": mtls.ServerConfig(mtls.ServerOptions{Profile: p}), "client": mtls.ClientConfig(mtls.ClientOptions{Profile: p}),
		} {
			if c.MinVersion < tls.VersionTLS12 || c.Renegotiation != tls.RenegotiateNever || c.InsecureSkipVerify {
				t.Errorf("%s %s: below TLS 1.2, or renegotiates, or does not verify", p, name)
			}
			for _, id := range c.CipherSuites {
				switch id {
				case tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
				default:
					t.Errorf("%s %s has %s", p, name, tls.CipherSuiteName(id))
				}
				if !good[id] {
					t.Errorf("%s %s has %s, which crypto/tls calls insecure", p, name, tls.CipherSuiteName(id))
				}
			}
		}
	}
	if _, err := mtls.ParseProfile("fast"); err == nil {
		t.Error("a profile that there isn't was parsed")
	}
}
