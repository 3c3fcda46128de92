package tpm

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

// client returns the TLS configuration of a device whose key is in the TPM.
func client(t testing.TB, fleet *certtest.Fleet, k *Key) *tls.Config {
	t.Helper()
	csr, err := issuance.NewCSR(k, "board-7")
	if err != nil {
		t.Fatal(err)
	}
	request, err := issuance.ParseCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "board-7")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: request.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(fleet.Root.Certificate())
	return &tls.Config{
		RootCAs:    roots,
		ServerName: "localhost",
		Certificates: []tls.Certificate{{
			Certificate: [][]byte{leaf.Raw, fleet.Factory.Certificate().Raw},
			PrivateKey:  k,
			Leaf:        leaf,
		}},
	}
}

// serve accepts mutual TLS and hands each connection to f, until the test's end.
func serve(t testing.TB, fleet *certtest.Fleet, f func(*tls.Conn) error) (address string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(fleet.Root.Certificate())
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates:           []tls.Certificate{fleet.Server().Certificate},
		ClientCAs:              roots,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true, // each connection needs a signature
	})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { // until the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { // until the peer closes, or the deadline
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				if err := f(c.(*tls.Conn)); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		served.Wait()
	})
	return l.Addr().String()
}

func echo(c *tls.Conn) error {
	_, err := io.Copy(c, c)
	return err
}

func TestMutualTLSWithKeyInTheTPM(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	fleet := certtest.New(t)
	for _, pin := range [][]byte{nil, []byte("1234")} {
		config := client(t, fleet, mustCreateKey(t, d, pin))
		address := serve(t, fleet, echo)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config.MinVersion, config.MaxVersion = version, version
			wantEcho(t, address, config)
		}
		e.Restart() // between two connections: the key is found again
		wantEcho(t, address, config)
	}
}

func wantEcho(t testing.TB, address string, config *tls.Config) {
	t.Helper()
	c, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "hello" {
		t.Errorf("%q, %v", answer, err)
	}
}

// paho takes the configuration as it is, connects, and connects again by itself.
func TestPahoConnectsWithKeyInTheTPM(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	fleet := certtest.New(t)
	var mu sync.Mutex // guards connections
	connections := 0
	again := make(chan struct{})
	address := serve(t, fleet, func(c *tls.Conn) error {
		first := make([]byte, 2)
		if _, err := io.ReadFull(c, first); err != nil { // CONNECT, of up to 127 bytes
			return err
		}
		if _, err := io.CopyN(io.Discard, c, int64(first[1])); err != nil {
			return err
		}
		if name := c.ConnectionState().PeerCertificates[0].Subject.CommonName; first[0] != 0x10 || name != "board-7" {
			t.Errorf("%x from %q", first, name)
		}
		if _, err := c.Write([]byte{0x20, 2, 0, 0}); err != nil { // CONNACK
			return err
		}
		mu.Lock()
		connections++
		n := connections
		mu.Unlock()
		if n == 1 {
			return nil // hangs up
		}
		close(again)
		_, err := io.Copy(io.Discard, c)
		return err
	})
	options := mqtt.NewClientOptions().AddBroker("ssl://" + address).SetClientID("board-7").
		SetTLSConfig(client(t, fleet, mustCreateKey(t, d, nil))).SetAutoReconnect(true).SetMaxReconnectInterval(time.Second)
	device := mqtt.NewClient(options)
	token := device.Connect()
	defer device.Disconnect(100)
	if !token.WaitTimeout(time.Minute) || token.Error() != nil {
		t.Fatal(token.Error())
	}
	select {
	case <-again:
	case <-time.After(time.Minute):
		t.Error("it didn't connect again")
	}
}

func TestHandshakeSaysWhatIsWrongWithTheTPM(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	fleet := certtest.New(t)
	config := client(t, fleet, mustCreateKey(t, d, nil))
	address := serve(t, fleet, func(c *tls.Conn) error {
		_ = c.Handshake() // fails: the client gives up
		return nil
	})
	command(t, d, clearTPM)
	// crypto/tls makes text of a signer's error.
	if _, err := tls.Dial("tcp", address, config); err == nil || !strings.Contains(err.Error(), ErrCleared.Error()) {
		t.Errorf("cleared: %v", err)
	}
	e.Stop()
	if _, err := tls.Dial("tcp", address, config); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("gone: %v", err)
	}
	e.Restart()
}

func BenchmarkHandshake(b *testing.B) {
	d, _ := open(b)
	fleet := certtest.New(b)
	config := client(b, fleet, mustCreateKey(b, d, nil))
	address := serve(b, fleet, echo)
	for b.Loop() {
		wantEcho(b, address, config)
	}
}
