package est_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
)

// What listens there is a hub's, and another door of it.
func TestAnotherPortIsNamedAsSuch(t *testing.T) {
	fleet := certtest.New(t)
	mqtt, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{fleet.Server().Certificate}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := mqtt.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 1)) // no CONNECT
			conn.Close()
		}
	})
	defer serving.Wait()
	defer mqtt.Close()
	metrics := httptest.NewServer(http.NotFoundHandler())
	defer metrics.Close()
	for addr, says := range map[string]string{
		mqtt.Addr().String():                       "without an answer: is it another port than that for HTTPS",
		strings.TrimPrefix(metrics.URL, "http://"): "doesn't speak TLS: is it another port",
	} {
		config := fleet.Device("pi-1").ClientConfig()
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		config.ServerName = host
		client, err := est.NewClient(est.ClientConfig{URL: "https://" + addr, TLS: config})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.CACerts(t.Context()); err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", addr, err)
		}
		client.Close()
	}
}
