package soak

import (
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// badConnects are CONNECTs that no hub may accept, by what is wrong with them. Each is the work of an authenticated device.
var badConnects = map[string][]byte{
	"announced 256 MB":            {0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4},
	"reserved header flags":       {0x11, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 0},
	"reserved connect flag":       {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 3, 0, 60, 0, 0},
	"will QoS 3":                  {0x10, 20, 0, 4, 'M', 'Q', 'T', 'T', 4, 0x1E, 0, 60, 0, 1, 'a', 0, 1, 'b', 0, 1, 'c', 0},
	"another protocol":            {0x10, 12, 0, 4, 'H', 'T', 'T', 'P', 4, 2, 0, 60, 0, 0},
	"version 9":                   {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 9, 2, 0, 60, 0, 0},
	"text longer than the packet": {0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0xFF, 0xFF},
	"remaining length of 5 bytes": {0x10, 0x80, 0x80, 0x80, 0x80, 0x01},
	"properties cut short":        {0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 9, 0x11, 0, 0},
	"property twice":              {0x10, 19, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 6, 0x21, 0, 1, 0x21, 0, 1, 0, 0},
	"receive maximum 0":           {0x10, 16, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 60, 3, 0x21, 0, 0, 0, 0},
	"NUL in the identifier":       {0x10, 15, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, 3, 'a', 0, 'b'},
	"another packet first":        {0xC0, 0},
	"SUBSCRIBE first":             {0x82, 6, 0, 1, 0, 1, 'a', 0},
	"PUBLISH first":               {0x30, 5, 0, 1, 'a', 'b', 'c'},
}

// TestMalformedConnects sends malformed CONNECTs, each over a connection of its own, and looks that memory stays flat.
func TestMalformedConnects(t *testing.T) {
	h := shared.serve(t, "FLEETHUB_LOG__LEVEL=warn", collected)
	b := watchBystanders(t, h)
	total := count(t, "SOAK_CONNECTS", 1500)
	// The first fill what the hub keeps ready; after them, memory is to be flat.
	spray(t, h, max(total/10, 500))
	before := h.footprint()
	spray(t, h, total)
	b.judge()
	h.wantNothingLeaked(t, before, 24<<20)
	if n, ok := h.metric("fleethub_refused_total"); !ok || int(n) < total {
		t.Errorf("%v refusals are counted for %d malformed CONNECTs", n, total)
	}
	if n := len(h.lines()); n > 20*len(badConnects)+int(time.Since(startOf(h))/time.Second)*len(badConnects) {
		t.Errorf("%d log lines for %d malformed CONNECTs", n, total)
	}
}

// startOf returns when the hub was started, about.
func startOf(h *hub) time.Time {
	seconds, _ := h.metric("process_start_time_seconds")
	return time.Unix(int64(seconds), 0)
}

// spray sends that many malformed CONNECTs of every sort and waits until each connection was closed by the hub.
func spray(t *testing.T, h *hub, total int) {
	t.Helper()
	var names []string
	for name := range badConnects {
		names = append(names, name)
	}
	var next atomic.Int64
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			who := shared.devices[w]
			config := mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1", Sessions: tls.NewLRUClientSessionCache(4)})
			for n := next.Add(1); n <= int64(total) && !t.Failed(); n = next.Add(1) {
				name := names[int(n)%len(names)]
				if err := refuses(h, config, badConnects[name]); err != "" {
					t.Errorf("%s: %s", name, err)
				}
			}
		})
	}
	work.Wait()
}

// refuses sends one malformed CONNECT and returns what was wrong with the answer: the hub may send a CONNACK that says no,
// and must close.
func refuses(h *hub, config *tls.Config, first []byte) string {
	raw, err := net.DialTimeout("tcp", h.at.MQTT, dialTimeout)
	if err != nil {
		return err.Error()
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, config)
	if _, err := conn.Write(first); err != nil {
		return err.Error()
	}
	var answer [256]byte
	length := 0
	for err == nil {
		var n int
		n, err = conn.Read(answer[length:])
		length += n
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "the connection stays open"
	case length >= 4 && answer[0] == typeConnack<<4 && answer[3] == 0:
		return "the hub accepts it"
	case length > 0 && answer[0] != typeConnack<<4:
		return "the hub answers with something else than a CONNACK"
	}
	return ""
}

// TestTheLiveReadPathSurvivesNonsense has a good client turn bad: after its CONNECT come packets that were good until bits
// of them were turned, in both versions, again and again. The hub may close each of these connections, and nothing else
// may happen.
func TestTheLiveReadPathSurvivesNonsense(t *testing.T) {
	h := shared.serve(t, "FLEETHUB_LOG__LEVEL=warn")
	b := watchBystanders(t, h)
	chosen := seed(t)
	before := h.footprint()
	end := time.Now().Add(duration(t, "SOAK_FUZZ", 5*time.Second))
	var tried atomic.Int64
	var work sync.WaitGroup
	for w := range 6 {
		random := rand.New(rand.NewPCG(chosen, uint64(w)))
		work.Go(func() {
			tickets := tls.NewLRUClientSessionCache(4)
			for time.Now().Before(end) && !h.ended() {
				version := v311 + byte(random.IntN(2))
				c, err := connect(t.Context(), h.at.MQTT, shared.devices[10+w], tickets, connectOptions{version: version, clean: random.IntN(2) == 0, keepAlive: 60})
				if err != nil {
					t.Errorf("a good CONNECT after all that nonsense: %v", err)
					return
				}
				for range 1 + random.IntN(20) {
					c.write(mutate(random, goodPackets(version, 10+w)[random.IntN(8)]))
					tried.Add(1)
				}
				_, _, _ = c.drain(time.Duration(1+random.IntN(30)) * time.Millisecond)
				c.hangUp(parting(random.IntN(2)))
			}
		})
	}
	work.Wait()
	if h.ended() {
		t.Fatalf("the hub ended: %v", h.cmd.ProcessState)
	}
	panics, _ := h.metric("fleethub_panics_total")
	t.Logf("%d packets, %.0f panics contained", tried.Load(), panics)
	b.judge()
	h.wantNothingLeaked(t, before, 96<<20)
}

// goodPackets are eight packets that a device may send.
func goodPackets(version byte, device int) [][]byte {
	topic := deviceTopic(device, "tele/x")
	return [][]byte{
		publishFrame(version, packet{topic: topic, payload: []byte("hello")}),
		publishFrame(version, packet{topic: topic, payload: []byte("hello"), qos: 1, id: 5}),
		publishFrame(version, packet{topic: topic, payload: []byte("hello"), qos: 2, id: 6, retain: true}),
		subscribeFrame(version, 7, deviceTopic(device, "cmd/#"), 2),
		unsubscribeFrame(version, 8, deviceTopic(device, "cmd/#")),
		ackFrame(typePubrel, 6),
		ackFrame(typePuback, 9),
		pingFrame(),
	}
}

// mutate damages a packet: bits turned, octets put in, cut off or doubled, in most cases with a length that fits again.
func mutate(r *rand.Rand, good []byte) []byte {
	p := append([]byte(nil), good...)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(p))
		switch r.IntN(5) {
		case 0:
			p[at] ^= 1 << r.IntN(8)
		case 1:
			p[at] = byte(r.IntN(256))
		case 2:
			p = append(p[:at], append([]byte{byte(r.IntN(256))}, p[at:]...)...)
		case 3:
			p = append(p[:at], p[at+1:]...)
		case 4:
			p = append(p, p[at:]...)
		}
		if len(p) < 2 {
			return p
		}
	}
	if n := len(p) - 2; r.IntN(4) > 0 && n < 128 {
		p[1] = byte(n)
	}
	return p
}
