package soak

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quotaExceeded is the reason code by which version 5 hears that its message can't be stored.
const quotaExceeded = 0x97

const (
	roomyBytes = 512 << 20
	// spareBytes is what the disk has left when it is made small: the 4 MiB of a small board's log partition.
	spareBytes = 4 << 20
	// recoversWithin is how soon messages must be acknowledged again once there is room.
	recoversWithin = 5 * time.Second
	noticesWithin  = 5 * time.Second
)

// smallDisk is a tmpfs that can be made small and large while somebody works in it.
type smallDisk struct{ at string }

func newSmallDisk(t *testing.T) smallDisk {
	t.Helper()
	d := smallDisk{t.TempDir()}
	if err := unix.Mount("soak", d.at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", roomyBytes)); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if !until(func() bool { return unix.Unmount(d.at, 0) == nil }) {
			t.Errorf("%s can't be unmounted", d.at)
		}
	})
	return d
}

// leave makes the disk so small that only that much is free.
func (d smallDisk) leave(free uint64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(d.at, &s); err != nil {
		return err
	}
	return d.resize((s.Blocks-s.Bfree)*uint64(s.Bsize) + free)
}

func (d smallDisk) resize(size uint64) error {
	if err := unix.Mount("soak", d.at, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		return fmt.Errorf("make %s a disk of %d bytes: %w", d.at, size, err)
	}
	return nil
}

// sender publishes numbered messages of one size with one at a time on its way, and keeps what was acknowledged.
type sender struct {
	c        *connection
	topic    string
	qos      byte
	size     int
	n        int
	accepted map[int]bool
}

func newSender(c *connection, topic string, qos byte, size int) *sender {
	return &sender{c: c, topic: topic, qos: qos, size: size, accepted: make(map[int]bool)}
}

// numbered is the payload of message n.
func numbered(n, size int) []byte {
	return append(fmt.Appendf(nil, "%d ", n), make([]byte, size)...)
}

// next sends one more and returns the reason code of its acknowledgement.
func (s *sender) next() (code byte, err error) {
	s.n++
	s.c.write(publishFrame(s.c.version, packet{topic: s.topic, qos: s.qos, id: uint16(s.n), payload: numbered(s.n, s.size)}))
	p, err := s.c.next(patience)
	if err != nil {
		return 0xFF, err
	}
	if want := typePuback + s.qos - 1; p.kind != want || p.id != uint16(s.n) {
		return 0xFF, fmt.Errorf("packet %d of identifier %d instead of %d of %d", p.kind, p.id, want, s.n)
	}
	if p.code >= 0x80 {
		return p.code, nil
	}
	s.accepted[s.n] = true
	if s.qos == 2 {
		s.c.write(ackFrame(typePubrel, uint16(s.n)))
		_, err = s.c.next(patience)
	}
	return p.code, err
}

// collector is a persistent subscriber that keeps the numbers it got.
type collector struct {
	c    *connection
	s    *session
	mu   sync.Mutex // guards got
	got  map[string]map[int]int
	done sync.WaitGroup
}

// collect subscribes, or resumes what was subscribed, and reads until the connection ends.
func (k *collector) collect(t *testing.T, h *hub, name, filter string) {
	t.Helper()
	fresh := k.s == nil
	k.c = dial(t, h, name, connectOptions{version: v5, clean: false, keepAlive: 600})
	if fresh {
		k.s, k.got = newSession(name, v5), make(map[string]map[int]int)
		k.s.accuse = func(fault, format string, args ...any) { t.Errorf(fault+": "+format, args...) }
		k.s.deliver = k.take
		k.c.subscribe(t, filter, 2)
	} else if !k.c.connack.present {
		t.Errorf("%s: its session is gone", name)
	}
	k.c.send(func() []byte { return k.s.connected(k.c.connack.present) })
	k.done.Go(func() {
		for {
			p, err := readPacket(k.c.reader, v5)
			if err != nil {
				return
			}
			k.c.send(func() []byte { return k.s.handle(p) })
		}
	})
}

func (k *collector) take(p packet) {
	var n int
	if _, err := fmt.Sscanf(string(p.payload[:min(len(p.payload), 20)]), "%d ", &n); err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.got[p.topic] == nil {
		k.got[p.topic] = make(map[int]int)
	}
	k.got[p.topic][n]++
}

// leave hangs up and waits until nothing more is taken.
func (k *collector) leave() {
	k.c.hangUp(broken)
	k.done.Wait()
}

// missing returns how many of a sender's acknowledged messages have not come.
func (k *collector) missing(s *sender) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for number := range s.accepted {
		if k.got[s.topic][number] == 0 {
			n++
		}
	}
	return n
}

// TestAFullDiskAcknowledgesNothingAndRecovers fills the disk under the hub and makes room again.
func TestAFullDiskAcknowledgesNothingAndRecovers(t *testing.T) {
	d := newSmallDisk(t)
	h := shared.hubIn(t, d.at, smallSegments)
	if err := h.start(); err != nil {
		t.Fatal(err)
	}
	var here, away collector // one that reads all the time, one that comes back after a kill
	here.collect(t, h, "always-1", "d/+/tele/#")
	away.collect(t, h, "flap-a", "d/+/tele/x")
	away.leave()
	qos0 := watchQoS0(t, h)

	options := connectOptions{version: v5, clean: false, keepAlive: 600}
	senders := []*sender{
		newSender(dialDevice(t, h, 0, options), deviceTopic(0, "tele/large"), 1, 100<<10), // more than a queue may hold
		newSender(dialDevice(t, h, 1, options), deviceTopic(1, "tele/x"), 2, 100),
		newSender(dialDevice(t, h, 2, options), deviceTopic(2, "tele/x"), 1, 100),
	}
	old := newSender(dialDevice(t, h, 3, connectOptions{version: v311, clean: false, keepAlive: 600}), deviceTopic(3, "tele/x"), 1, 100)
	for _, s := range append(senders, old) {
		if code, err := s.next(); code != 0 || err != nil {
			t.Fatalf("before: 0x%02X, %v", code, err)
		}
	}
	if err := d.leave(spareBytes); err != nil {
		t.Fatal(err)
	}
	fill(t, senders[0])

	// Full. Every sender is told so, and nothing is acknowledged.
	for _, s := range senders {
		if code, err := s.next(); code != quotaExceeded || err != nil {
			t.Errorf("QoS %d on a full disk: 0x%02X, %v; want 0x97", s.qos, code, err)
		}
	}
	if code, err := old.next(); err == nil {
		t.Errorf("a client of 3.1.1 got 0x%02X, and should have been closed", code)
	}
	if !within(noticesWithin, func() bool { return !h.ready() }) {
		t.Error("/readyz says that a hub without a disk is ready")
	}
	qos0.wantMore(t)

	if err := d.resize(roomyBytes); err != nil {
		t.Fatal(err)
	}
	room := time.Now()
	for _, s := range senders {
		recovered := within(patience, func() bool { code, err := s.next(); return code == 0 && err == nil })
		if took := time.Since(room); !recovered || took > recoversWithin {
			t.Errorf("QoS %d: acknowledged again %v after there was room, not within %v", s.qos, took, recoversWithin)
		}
	}
	t.Logf("acknowledged again %v after there was room", time.Since(room).Round(time.Millisecond))
	if !within(noticesWithin, h.ready) {
		t.Error("/readyz says that a hub whose disk is back is not ready")
	}

	for _, s := range append(senders, old) {
		if !within(20*time.Second, func() bool { return here.missing(s) == 0 }) {
			t.Errorf("%d of %d acknowledged messages on %s did not reach a subscriber that was there", here.missing(s), len(s.accepted), s.topic)
		}
	}
	here.leave()
	h.kill()
	if err := h.start(); err != nil {
		t.Fatalf("after a full disk, the hub doesn't come back: %v", err)
	}
	away.collect(t, h, "flap-a", "")
	for _, s := range append(senders[1:], old) {
		if !within(20*time.Second, func() bool { return away.missing(s) == 0 }) {
			t.Errorf("%d of %d acknowledged messages on %s did not reach a subscriber that was away", away.missing(s), len(s.accepted), s.topic)
		}
	}
	away.leave()
	if n := len(h.lines()); n > 100 {
		t.Errorf("%d log lines about a disk that was full once", n)
	}
}

// fill publishes until the disk is full.
func fill(t *testing.T, s *sender) {
	t.Helper()
	const most = 4 * roomyBytes / (100 << 10)
	for range most {
		code, err := s.next()
		if err != nil {
			t.Fatalf("message %d of a version 5 client: %v; want 0x97 when the disk is full", s.n, err)
		}
		if code >= 0x80 {
			t.Logf("full after %d MiB", len(s.accepted)*s.size>>20)
			if code != quotaExceeded {
				t.Errorf("refused with 0x%02X, want 0x97", code)
			}
			return
		}
	}
	t.Fatalf("%d messages of %d bytes are acknowledged on a disk that has no room for them", most, s.size)
}

// qos0Watch is a device and a service that pass messages of QoS 0.
type qos0Watch struct {
	device, service *connection
	topic           string
}

func watchQoS0(t *testing.T, h *hub) qos0Watch {
	t.Helper()
	w := qos0Watch{topic: deviceTopic(9, "tele/zero")}
	w.service = dial(t, h, "witness", connectOptions{version: v5, clean: true, keepAlive: 600})
	w.service.subscribe(t, w.topic, 0)
	w.device = dialDevice(t, h, 9, connectOptions{version: v311, clean: true, keepAlive: 600})
	return w
}

// wantMore has a few messages pass.
func (w qos0Watch) wantMore(t *testing.T) {
	t.Helper()
	for n := range 20 {
		w.device.write(publishFrame(v311, packet{topic: w.topic, payload: numbered(n, 10)}))
		if p, err := w.service.next(patience); err != nil || p.kind != typePublish || string(p.payload) != string(numbered(n, 10)) {
			t.Errorf("QoS 0 message %d: %+v, %v", n, p, err)
			return
		}
	}
}

// TestAReadOnlyFolderIsRefusedWithWords starts the hub over a folder that it can't write.
func TestAReadOnlyFolderIsRefusedWithWords(t *testing.T) {
	d := newSmallDisk(t)
	h := shared.hubIn(t, d.at)
	if err := unix.Mount("soak", d.at, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	err := h.start()
	if err == nil || !h.ended() {
		t.Fatalf("the hub starts over a folder that it can't write: %v", err)
	}
	if code := h.cmd.ProcessState.ExitCode(); code <= 0 || code == 2 {
		t.Errorf("it ends with %v", h.cmd.ProcessState)
	}
	if text := h.output(); !strings.Contains(text, "read-only") || !strings.Contains(text, d.at) {
		t.Errorf("it doesn't say what is wrong with which folder:\n%s", text)
	}
}
