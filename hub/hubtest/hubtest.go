// Package hubtest runs a real hub on loopback for other packages' tests: the one that
// hub serve runs, over a throwaway PKI of package certtest and a store in the test's
// own folder.
package hubtest

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
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

	t         testing.TB
	config    server.Config
	hub       *server.Hub
	log       lockedBuffer
	ahead     atomic.Int64 // of the hub's clock before the real one, in nanoseconds
	mu        sync.Mutex   // guards manifests
	manifests map[string]uint64
}

// Option changes the configuration before the hub starts.
type Option func(*server.Config)

// Start runs a hub on free ports of 127.0.0.1.
func Start(t testing.TB, options ...Option) *Hub {
	t.Helper()
	h := &Hub{t: t, Dir: t.TempDir(), Fleet: certtest.New(t), manifests: make(map[string]uint64)}
	h.write()
	h.config = server.DefaultConfig(h.Dir)
	h.config.TrustDomain = certtest.TrustDomain
	h.config.Journal.SegmentSize = 1 << 20 // many hubs in one test
	h.config.MQTT.Addr, h.config.HTTPS.Addr, h.config.Metrics.Addr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	h.config.Now = func() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) }
	for _, o := range options {
		o(&h.config)
	}
	h.start()
	t.Cleanup(func() {
		h.hub.Close()
		if t.Failed() {
			t.Logf("end of the hub's log:\n%s", last(h.log.String(), 30))
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

// Configure changes what the hub is told at its next Restart.
func (h *Hub) Configure(options ...Option) {
	for _, o := range options {
		o(&h.config)
	}
}

// Advance puts the hub's clock forward, or back. Clients keep the real time.
func (h *Hub) Advance(d time.Duration) { h.ahead.Add(int64(d)) }

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
	h.factory().Register(devices...)
}

// RegisterTPM makes a device known whose certificate says that its key is in a TPM, the one
// of that endorsement key (registry.Device.EK).
func (h *Hub) RegisterTPM(d certtest.Credential, ek string) {
	h.t.Helper()
	h.factory().importManifest(manifest.Entry{Certificate: d.Leaf.Raw, Model: TPMModel, Protection: string(identity.ProtectionTPM), EK: ek})
}

// TPMModel is the model of devices that RegisterTPM registers. Others have none.
const TPMModel = "pi5"

// DemandingTPM has the hub demand of devices of the TPMModel that their keys be in a TPM.
func DemandingTPM() Option {
	return func(c *server.Config) { c.KeyProtection = server.KeyProtectionConfig{TPMModel: "tpm"} }
}

// Supersede registers next in the place of a device's former certificate.
func (h *Hub) Supersede(former, next certtest.Credential) {
	h.t.Helper()
	h.factory().importManifest(manifest.Entry{
		Certificate: next.Leaf.Raw, Protection: "software", Supersedes: identity.SerialString(former.Leaf.SerialNumber),
	})
}

func (h *Hub) factory() *Station {
	return &Station{Name: certtest.StationName, Issuer: h.Fleet.Factory, key: h.Fleet.FactoryKey, hub: h}
}

// Station is a further factory station.
type Station struct {
	Name   string
	Issuer *issuance.Issuer
	key    crypto.Signer
	hub    *Hub
}

// Station authorizes a further station, as hub station authorize does.
func (h *Hub) Station(name string) *Station {
	h.t.Helper()
	issuer, key := h.Fleet.IssuingCA(identity.KindFactory, name)
	s := &Station{Name: name, Issuer: issuer, key: key, hub: h}
	s.Authorize()
	return s
}

// File returns the path of the station's issuing CA in the hub's folder.
func (s *Station) File() string { return filepath.Join(s.hub.Dir, "issuers", s.Name+".crt") }

// Authorize puts the station's issuing CA into the hub's folder, again perhaps. The hub
// takes it up with the next manifest or reload.
func (s *Station) Authorize() {
	s.hub.t.Helper()
	s.hub.must(pemfile.WriteCertificates(s.File(), s.Issuer.Certificate()))
}

// Device returns the credential of a registered device by this station.
func (s *Station) Device(id string) certtest.Credential {
	s.hub.t.Helper()
	d := s.hub.Fleet.Device(id, certtest.WithIssuer(s.Issuer))
	s.Register(d)
	return d
}

// Register makes devices of this station known to the hub.
func (s *Station) Register(devices ...certtest.Credential) {
	s.hub.t.Helper()
	var entries []manifest.Entry
	for _, d := range devices {
		entries = append(entries, manifest.Entry{Certificate: d.Leaf.Raw, Protection: "software"})
	}
	s.importManifest(entries...)
}

func (s *Station) importManifest(entries ...manifest.Entry) {
	h := s.hub
	h.t.Helper()
	h.mu.Lock()
	h.manifests[s.Name]++
	number := h.manifests[s.Name]
	h.mu.Unlock()
	m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: s.Name, Number: number, CreatedAt: h.config.Now(), Devices: entries}
	data, err := manifest.Sign(m, []*x509.Certificate{s.Issuer.Certificate()}, s.key)
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

// last returns the last n lines of text.
func last(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
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
