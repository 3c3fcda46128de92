// Package hubtest runs a real hub on loopback for other packages' tests: the one that
// hub serve runs, over a throwaway PKI of package certtest and a store in the test's
// own folder.
package hubtest

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/server"
)

// Hub is a running hub and its PKI. The test's end stops it.
type Hub struct {
	Fleet *certtest.Fleet
	Dir   string

	t        testing.TB
	config   server.Config
	hub      *server.Hub
	log      lockedBuffer
	mu       sync.Mutex // guards manifest
	manifest uint64
}

// Option changes the configuration before the hub starts.
type Option func(*server.Config)

// Start runs a hub on free ports of 127.0.0.1.
func Start(t testing.TB, options ...Option) *Hub {
	t.Helper()
	h := &Hub{t: t, Dir: t.TempDir(), Fleet: certtest.New(t)}
	h.write()
	h.config = server.DefaultConfig(h.Dir)
	h.config.TrustDomain = certtest.TrustDomain
	h.config.MQTT.Addr, h.config.HTTPS.Addr, h.config.Metrics.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	for _, o := range options {
		o(&h.config)
	}
	h.start()
	t.Cleanup(func() {
		h.hub.Close()
		if t.Failed() {
			t.Logf("log of the hub:\n%s", h.log.String())
		}
	})
	return h
}

// write lays out a hub's folder as hub init does, without the keys a running hub
// doesn't use.
func (h *Hub) write() {
	h.t.Helper()
	for _, dir := range []string{"ca", "issuers"} {
		h.must(os.MkdirAll(filepath.Join(h.Dir, dir), 0o700))
	}
	config, err := server.ShippedConfig(certtest.TrustDomain)
	h.must(err)
	h.must(os.WriteFile(filepath.Join(h.Dir, server.ConfigFile), config, 0o600))
	h.must(pemfile.WriteCertificates(filepath.Join(h.Dir, "ca.crt"), h.Fleet.Bundle()...))
	h.must(pemfile.WriteCertificates(filepath.Join(h.Dir, "ca", "operational.crt"), h.Fleet.Operational.Certificate()))
	h.must(pemfile.WriteCertificates(filepath.Join(h.Dir, "issuers", certtest.StationName+".crt"), h.Fleet.Factory.Certificate()))
	h.Fleet.Server().WriteTo(filepath.Join(h.Dir, "tls"), "server")
	h.Fleet.Operator("admin", certtest.WithOU("admin")).WriteTo(filepath.Join(h.Dir, "operator"), "operator")
}

func (h *Hub) start() {
	h.t.Helper()
	var err error
	h.hub, err = server.New(h.config, &h.log)
	h.must(err)
	h.must(h.hub.Start())
}

// Restart stops the hub and starts it again over the same folder and the same ports.
func (h *Hub) Restart() {
	h.t.Helper()
	e := h.hub.Endpoint()
	h.hub.Close()
	h.config.MQTT.Addr, h.config.HTTPS.Addr, h.config.Metrics.Addr = e.MQTT, e.HTTPS, e.Metrics
	h.start()
}

// Server returns the hub itself.
func (h *Hub) Server() *server.Hub { return h.hub }

// MQTTAddr returns HOST:PORT of the device door.
func (h *Hub) MQTTAddr() string { return h.hub.Endpoint().MQTT }

// HTTPSAddr returns HOST:PORT of the operators' door.
func (h *Hub) HTTPSAddr() string { return h.hub.Endpoint().HTTPS }

// MetricsAddr returns HOST:PORT of the metrics.
func (h *Hub) MetricsAddr() string { return h.hub.Endpoint().Metrics }

// Log returns what the hub has logged so far.
func (h *Hub) Log() string { return h.log.String() }

// Register makes the devices known to the hub, by a manifest of its station.
func (h *Hub) Register(devices ...certtest.Credential) {
	h.t.Helper()
	h.mu.Lock()
	h.manifest++
	m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: h.manifest, CreatedAt: time.Now()}
	h.mu.Unlock()
	for _, d := range devices {
		m.Devices = append(m.Devices, manifest.Entry{Certificate: d.Leaf.Raw, Protection: "software"})
	}
	data, err := manifest.Sign(m, []*x509.Certificate{h.Fleet.Factory.Certificate()}, h.Fleet.FactoryKey)
	h.must(err)
	_, err = h.hub.Fleet().Import(h.t.Context(), data, fleet.Actor{Name: "hubtest"})
	h.must(err)
}

// Device returns a registered device's credential.
func (h *Hub) Device(id string) certtest.Credential {
	h.t.Helper()
	d := h.Fleet.Device(id)
	h.Register(d)
	return d
}

// Operator returns a client of the hub's API as its first operator.
func (h *Hub) Operator() *admin.Client {
	h.t.Helper()
	credentials, err := mtls.LoadCredentials(filepath.Join(h.Dir, "operator"), "operator")
	h.must(err)
	client, err := admin.NewClient("https://"+h.HTTPSAddr(), credentials)
	h.must(err)
	h.t.Cleanup(client.Close)
	return client
}

func (h *Hub) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// lockedBuffer is a log that the hub writes while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
