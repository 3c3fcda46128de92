package listener

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHalfOpenAndDrippingConnectionsDelayNobody: 1,000 that say nothing and 1,000 that
// send an octet of a good ClientHello now and then.
func TestHalfOpenAndDrippingConnectionsDelayNobody(t *testing.T) {
	const each = 1000
	h := start(t, echo, func(c *Config) { c.HandshakeTimeout = time.Hour })
	hello := helloOf(t, h.pki.Device("slow").ClientConfig())
	var all []net.Conn
	for range 2 * each {
		raw, err := net.Dial("tcp", h.addr)
		must(t, err)
		defer raw.Close()
		all = append(all, raw)
	}
	stop := make(chan struct{})
	var dripping sync.WaitGroup
	dripping.Go(func() {
		for i := 0; i < len(hello)-1; i++ {
			for _, raw := range all[each:] {
				raw.Write(hello[i : i+1])
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	until(t, "all are there", func() bool { return h.Stats().Handshaking >= 2*each })
	for i := range 20 {
		config := h.pki.Device(fmt.Sprintf("good-%d", i)).ClientConfig()
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for range 2 {
			conn, err := h.dial(config)
			must(t, err)
			roundTrip(t, conn)
			conn.Close()
		}
	}
	close(stop)
	dripping.Wait()
	if s := h.Stats(); s.Computing != 0 || s.WaitingFull != 0 || s.Handshaking < 2*each {
		t.Errorf("%+v: connections that said nothing yet are none of the lanes' business", s)
	}
}

// TestDrippingDoesNotPutTheDeadlineOff, before the ClientHello nor after it.
func TestDrippingDoesNotPutTheDeadlineOff(t *testing.T) {
	h := start(t, echo, func(c *Config) { c.HandshakeTimeout = 100 * time.Millisecond })
	hello := helloOf(t, h.pki.Device("slow").ClientConfig())
	for _, first := range [][]byte{nil, hello} {
		raw, err := net.Dial("tcp", h.addr)
		must(t, err)
		defer raw.Close()
		raw.Write(first)
		drip := bytes.NewReader(append(hello, make([]byte, 1000)...))
		for err == nil {
			b, _ := drip.ReadByte()
			_, err = raw.Write([]byte{b})
			time.Sleep(time.Millisecond) // not a wait: the peer's slowness
		}
		if len(first) == 0 {
			h.refused(ReasonHandshakeTimeout)
		}
	}
	until(t, "nothing is open", func() bool { return h.Open() == 0 })
}

func TestHugeHelloIsRefusedBeforeItIsRead(t *testing.T) {
	h := start(t, echo)
	config := h.pki.Device("pi-1").ClientConfig()
	for i := range 200 {
		config.NextProtos = append(config.NextProtos, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 200)))
	}
	if _, err := h.dial(config); err == nil {
		t.Error("a ClientHello of 40 KB was taken")
	}
	h.refused(ReasonHelloTooLarge)
}

// selfSigned returns a certificate that names so many hosts, signed by its own key.
func selfSigned(t *testing.T, hosts int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pi-1"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	for i := range hosts {
		template.DNSNames = append(template.DNSNames, fmt.Sprintf("host-%08d.example", i))
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestHugeChainsAreRefusedBeforeTheyAreParsed(t *testing.T) {
	small := selfSigned(t, 0)
	deep := small
	for range 19 {
		deep.Certificate = append(deep.Certificate, small.Certificate[0])
	}
	wide := small
	for range 200 {
		wide.Certificate = append(wide.Certificate, small.Certificate[0])
	}
	tests := []struct {
		name string
		cert tls.Certificate
		want string
	}{
		{"20 certificates", deep, ReasonChainTooLong + " pi-1"},
		{"200 certificates", wide, ReasonTooLarge},
		{"60 KB of names", selfSigned(t, 2_500), ReasonTooLarge},
		{"1 MB of names", selfSigned(t, 40_000), ReasonTooLarge},
	}
	for _, tt := range tests {
		for _, version := range versions {
			t.Run(tt.name+" over "+tls.VersionName(version), func(t *testing.T) {
				h := start(t, echo)
				config := h.pki.Device("pi-1").ClientConfig()
				config.MaxVersion = version
				config.Certificates = []tls.Certificate{tt.cert}
				if conn, err := h.dial(config); err == nil {
					ended(t, conn)
				}
				h.refused(tt.want)
			})
		}
	}
}

// TestHandshakesInFlightTakeLittleMemory: 500 peers that announce 16 MB, and send as
// much as they can.
func TestHandshakesInFlightTakeLittleMemory(t *testing.T) {
	const peers = 500
	h := start(t, echo, func(c *Config) { c.HandshakeTimeout = time.Hour })
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	hello := helloOf(t, h.pki.Device("pi-1").ClientConfig())
	before := heap()
	for range peers {
		raw, err := net.Dial("tcp", h.addr)
		must(t, err)
		defer raw.Close()
		raw.Write(hello)
		raw.Write(append([]byte{23, 3, 3, 0x40, 0}, make([]byte, 12<<10)...)) // within the budget, never whole
	}
	until(t, "all are served or wait", func() bool { s := h.Stats(); return s.Handshaking == peers && s.WaitingFull == 0 && s.Computing == 0 })
	if per := (heap() - before) / peers; per > 2*maxHandshake+(32<<10) {
		t.Errorf("%d bytes for each", per)
	}
}
