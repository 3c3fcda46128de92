package soak

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// The peers that begin and don't go on: how many of each kind.
const silentOfEach = 500

// What the hub grants, and what a busy machine may add to it before this test calls it late.
const (
	handshakeGrant = 5 * time.Second
	connectGrant   = 10 * time.Second
	late           = 4 * time.Second
	perSilentPeer  = 64 << 10
)

// mute is one kind of peer that doesn't go on. It is given a fresh TCP connection and returns when the peer has done what
// it does; the connection stays open.
type mute struct {
	name  string
	grant time.Duration
	begin func(t *testing.T, raw net.Conn, who mtls.Credentials) (net.Conn, error)
	drip  []byte // a byte a second, after begin
}

// helloOf returns the ClientHello that a client would send.
func helloOf(who mtls.Credentials) []byte {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		conn := tls.Client(theirs, mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1"}))
		_ = conn.Handshake() // it ends when ours is closed
	}()
	hello := make([]byte, 4096)
	n, _ := ours.Read(hello)
	return hello[:n]
}

func handshake(_ *testing.T, raw net.Conn, who mtls.Credentials) (net.Conn, error) {
	conn := tls.Client(raw, mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1"}))
	return conn, conn.Handshake()
}

// TestPeersThatDoNotGoOnAreClosedInTime has 2,000 of them come at once, and then good devices.
func TestPeersThatDoNotGoOnAreClosedInTime(t *testing.T) {
	h := shared.serve(t)
	b := watchBystanders(t, h)
	hello := helloOf(shared.devices[0])
	half := connectFrame(connectOptions{version: v5, id: "d-00001", keepAlive: 60})
	kinds := []mute{
		{name: "silent", grant: handshakeGrant, begin: func(_ *testing.T, raw net.Conn, _ mtls.Credentials) (net.Conn, error) { return raw, nil }},
		{name: "half-handshaken", grant: handshakeGrant, begin: func(_ *testing.T, raw net.Conn, _ mtls.Credentials) (net.Conn, error) {
			_, err := raw.Write(hello[:len(hello)/2])
			return raw, err
		}},
		{name: "half-CONNECTed", grant: connectGrant, begin: func(t *testing.T, raw net.Conn, who mtls.Credentials) (net.Conn, error) {
			conn, err := handshake(t, raw, who)
			if err == nil {
				_, err = conn.Write(half[:len(half)/2])
			}
			return conn, err
		}},
		{name: "byte-a-second", grant: connectGrant, drip: half, begin: handshake},
	}
	before := h.footprint()
	crowd := newCrowd(t, h, kinds)
	h.peak(t, before, int64(len(kinds)*silentOfEach)*perSilentPeer)
	for i := range 50 { // good devices meanwhile
		c := dialDevice(t, h, 100+i, connectOptions{version: v311, clean: true, keepAlive: 60})
		c.hangUp(goodbye)
	}
	crowd.wait()
	crowd.judge(t)
	b.judge()
	h.wantNothingLeaked(t, before, int64(len(kinds)*silentOfEach)*perSilentPeer)
	if n := len(h.lines()); n > 4*silentOfEach {
		t.Errorf("%d log lines for %d peers", n, 4*silentOfEach)
	}
}

// peak fails if the hub's memory has grown by more than that since before.
func (h *hub) peak(t *testing.T, before footprint, most int64) {
	t.Helper()
	grown := h.resident() - before.resident
	t.Logf("memory grown by %d KiB", grown>>10)
	if grown > most {
		t.Errorf("memory has grown by %d KiB, more than %d", grown>>10, most>>10)
	}
}

// crowd is all the peers that don't go on, and how long each was borne with: at least as long as since its last step, at
// most as long as since its first.
type crowd struct {
	kinds     []mute
	work      sync.WaitGroup
	mu        sync.Mutex // guards what follows
	sinceLast map[string][]time.Duration
	sinceDial map[string][]time.Duration
}

// newCrowd starts them and returns when all have begun.
func newCrowd(t *testing.T, h *hub, kinds []mute) *crowd {
	t.Helper()
	c := &crowd{kinds: kinds, sinceLast: make(map[string][]time.Duration), sinceDial: make(map[string][]time.Duration)}
	turns := make(chan struct{}, 32) // handshakes under way at a time; a storm is another test's
	var begun sync.WaitGroup
	for i := range silentOfEach * len(kinds) {
		k := kinds[i%len(kinds)]
		who := shared.devices[i/len(kinds)%100]
		begun.Add(1)
		c.work.Go(func() {
			turns <- struct{}{}
			dialled := time.Now()
			raw, err := net.DialTimeout("tcp", h.at.MQTT, dialTimeout)
			var conn net.Conn
			if err == nil {
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(dialTimeout))
				conn, err = k.begin(t, raw, who)
			}
			<-turns
			begun.Done()
			if err != nil {
				t.Errorf("%s: %v", k.name, err)
				return
			}
			c.bear(conn, k, dialled)
		})
	}
	begun.Wait()
	return c
}

// bear waits until the hub has closed the connection.
func (c *crowd) bear(conn net.Conn, k mute, dialled time.Time) {
	last := time.Now()
	conn.SetDeadline(time.Now().Add(k.grant + 20*time.Second))
	if len(k.drip) > 0 {
		ctx, cancel := context.WithCancel(context.Background())
		var dripping sync.WaitGroup
		dripping.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for _, b := range k.drip {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		})
		defer dripping.Wait()
		defer cancel()
	}
	buf := make([]byte, 512)
	for {
		if _, err := conn.Read(buf); err != nil {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sinceLast[k.name] = append(c.sinceLast[k.name], time.Since(last))
	c.sinceDial[k.name] = append(c.sinceDial[k.name], time.Since(dialled))
}

func (c *crowd) wait() { c.work.Wait() }

// judge holds the times against what is granted.
func (c *crowd) judge(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.kinds {
		if n := len(c.sinceLast[k.name]); n != silentOfEach {
			t.Errorf("%s: %d of %d peers were borne with to an end", k.name, n, silentOfEach)
			continue
		}
		shortest, longest := slices.Min(c.sinceDial[k.name]), slices.Max(c.sinceLast[k.name])
		t.Logf("%s: closed after %v to %v", k.name, shortest.Round(time.Millisecond), longest.Round(time.Millisecond))
		if shortest < k.grant || longest > k.grant+late {
			t.Errorf("%s: closed after %v to %v, granted are %v", k.name, shortest, longest, k.grant)
		}
	}
}
