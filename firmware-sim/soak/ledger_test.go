package soak

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The faults that a ledger finds. Each is a broken promise of the hub's.
const (
	faultLost      = "acknowledged and lost"
	faultDuplicate = "QoS 2 twice"
	faultInversion = "out of order"
	faultUninvited = "delivered without a subscription"
	faultAltered   = "delivered with another payload"
	faultUnsent    = "delivered and never sent"
	faultQoS       = "delivered at the wrong QoS"
	faultRetained  = "retained value wrong"
	faultSession   = "session absent"
	faultReuse     = "packet identifier reused before it was free"
	faultDUP       = "sent again without DUP"
	faultRefused   = "refused"
	faultMalformed = "malformed packet"
)

// streamKey names what has an order: one publisher's messages of one topic and QoS. Here no topic has two publishers.
type streamKey struct {
	topic string
	qos   byte
}

func (k streamKey) String() string { return fmt.Sprintf("%s at QoS %d", k.topic, k.qos) }

// content is the payload of message number seq: who reads it knows which it is and whether it is whole.
func content(k streamKey, seq int) []byte {
	head := fmt.Appendf(nil, "%d %d ", k.qos, seq)
	return append(head, bytes.Repeat([]byte{byte('a' + seq%26)}, seq*37%180)...)
}

// sent is one message, with the ledger's time of what its publisher knows of it; 0 is never.
type sent struct {
	first    int64 // just before it was written for the first time
	accepted int64 // PUBACK or PUBREC: the hub has it
	finished int64 // PUBACK or PUBCOMP
	plugs    int   // how often the plug had been pulled when it was accepted
}

// stream is what was sent; message seq is at seq-1.
type stream struct {
	key      streamKey
	messages []sent
}

// interval is one subscription's life; 0 is not yet.
type interval struct {
	asked, granted int64 // SUBSCRIBE written, SUBACK read
	quit, left     int64 // UNSUBSCRIBE written, UNSUBACK read
}

// covers reports whether a message must reach the subscriber: it was first sent when the subscription was granted, and
// accepted before anyone wanted it to end.
func (i interval) covers(m sent) bool {
	return m.accepted > 0 && m.finished > 0 && i.granted > 0 && i.granted < m.first && (i.quit == 0 || m.finished < i.quit)
}

// touches reports whether a message may reach the subscriber.
func (i interval) touches(m sent) bool {
	return i.asked > 0 && (m.finished == 0 || i.asked < m.finished) && (i.left == 0 || m.first < i.left)
}

// reader is one persistent subscription of one session.
type reader struct {
	name  string
	share string // "": not shared
	qos   byte   // granted
	wants func(topic string) bool

	intervals []interval
	got       map[*stream]*reception
}

// reception is what a reader had of one stream.
type reception struct {
	times []uint8 // how often message seq came, at seq-1
	last  int     // the greatest seq so far
}

// ledger is the judge's book of who sent what, who had to get it, and who got it. It lives outside the hub's process and
// is told by the clients. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex // guards everything below, streams and readers included
	clock   int64      // counts what happens, so that "before" is well defined
	plugs   int
	streams map[streamKey]*stream
	readers []*reader
	values  map[string]*value
	found   map[string][]string // by fault: the first few, in words
	counts  map[string]int
	stats   struct{ sent, accepted, delivered, repeated int }
}

func newLedger() *ledger {
	return &ledger{streams: make(map[streamKey]*stream), values: make(map[string]*value), found: make(map[string][]string), counts: make(map[string]int)}
}

// now is the next moment. The caller holds mu.
func (l *ledger) now() int64 {
	l.clock++
	return l.clock
}

// fault writes a fault down. The caller holds mu.
func (l *ledger) fault(kind, format string, args ...any) {
	l.counts[kind]++
	if l.counts[kind] <= 12 {
		l.found[kind] = append(l.found[kind], fmt.Sprintf(format, args...))
	}
}

// accuse writes down a fault that a client saw.
func (l *ledger) accuse(kind, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault(kind, format, args...)
}

// plugPulled counts the times that the hub was killed.
func (l *ledger) plugPulled() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plugs++
}

// sending opens the next message of a stream, just before it is written for the first time, and returns its number.
func (l *ledger) sending(k streamKey) (seq int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[k]
	if s == nil {
		s = &stream{key: k}
		l.streams[k] = s
	}
	s.messages = append(s.messages, sent{first: l.now()})
	l.stats.sent++
	return len(s.messages)
}

// accepted notes a PUBACK or PUBREC; finished, a PUBACK or PUBCOMP.
func (l *ledger) accepted(k streamKey, seq int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &l.streams[k].messages[seq-1]
	m.accepted, m.plugs = l.now(), l.plugs
	l.stats.accepted++
}

func (l *ledger) finished(k streamKey, seq int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams[k].messages[seq-1].finished = l.now()
}

// refused notes an acknowledgement that says no, which no soak gives a reason for.
func (l *ledger) refused(who, what string, code byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault(faultRefused, "%s: %s with 0x%02X", who, what, code)
}

// join adds a reader that has not subscribed yet.
func (l *ledger) join(name, share string, qos byte, wants func(topic string) bool) *reader {
	r := &reader{name: name, share: share, qos: qos, wants: wants, got: make(map[*stream]*reception)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers = append(l.readers, r)
	return r
}

// asking, granted, quitting and left note the stations of a subscription.
func (l *ledger) asking(r *reader) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.intervals = append(r.intervals, interval{asked: l.now()})
}

func (l *ledger) granted(r *reader)  { l.station(r, func(i *interval) *int64 { return &i.granted }) }
func (l *ledger) quitting(r *reader) { l.station(r, func(i *interval) *int64 { return &i.quit }) }
func (l *ledger) left(r *reader)     { l.station(r, func(i *interval) *int64 { return &i.left }) }

func (l *ledger) station(r *reader, which func(*interval) *int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at := which(&r.intervals[len(r.intervals)-1]); *at == 0 {
		*at = l.now()
	}
}

// delivered notes that a message reached a reader's application.
func (l *ledger) delivered(r *reader, topic string, qos byte, payload []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.delivered++
	var k streamKey
	var seq int
	if _, err := fmt.Sscanf(string(payload), "%d %d ", &k.qos, &seq); err != nil {
		l.fault(faultAltered, "%s got %.40q on %s", r.name, payload, topic)
		return
	}
	k.topic = topic
	s := l.streams[k]
	switch {
	case s == nil || seq < 1 || seq > len(s.messages):
		l.fault(faultUnsent, "%s got number %d of %s", r.name, seq, k)
		return
	case !bytes.Equal(payload, content(k, seq)):
		l.fault(faultAltered, "%s got number %d of %s with %.60q", r.name, seq, k, payload)
		return
	case qos != min(k.qos, r.qos):
		l.fault(faultQoS, "%s subscribed at QoS %d got number %d of %s at QoS %d", r.name, r.qos, seq, k, qos)
	}
	m := s.messages[seq-1]
	if !slices.ContainsFunc(r.intervals, func(i interval) bool { return i.touches(m) }) {
		l.fault(faultUninvited, "%s got number %d of %s", r.name, seq, k)
	}
	if len(r.intervals) > 0 {
		l.receive(r, s, seq)
	}
}

// receive judges order and repetition.
func (l *ledger) receive(r *reader, s *stream, seq int) {
	had := r.got[s]
	if had == nil {
		had = &reception{}
		r.got[s] = had
	}
	for len(had.times) < seq {
		had.times = append(had.times, 0)
	}
	had.times[seq-1]++
	switch again := had.times[seq-1] > 1; {
	case again && s.key.qos == 2 && r.qos == 2:
		l.fault(faultDuplicate, "%s got number %d of %s, %d times; plug pulled %d times", r.name, seq, s.key, had.times[seq-1], l.plugs)
	case again:
		l.stats.repeated++
	case seq < had.last && r.owedOrder(s.messages[seq-1]):
		l.fault(faultInversion, "%s got number %d of %s after %d; plug pulled %d times", r.name, seq, s.key, had.last, l.plugs)
	}
	had.last = max(had.last, seq)
}

// owedOrder reports whether a message must come before all later ones. Only unshared subscriptions are owed an order
// [MQTT-4.6.0-6]. One that began after the message was first sent may see it for the first time when its publisher sends
// it, and all that followed it, again.
func (r *reader) owedOrder(m sent) bool {
	last := r.intervals[len(r.intervals)-1]
	return r.share == "" && last.granted > 0 && last.granted < m.first
}

// group is a reader, or all members of one shared subscription: whoever of them gets a message, it has arrived.
type group struct {
	name    string
	members []*reader
}

func (l *ledger) groups() []group {
	var all []group
	shares := make(map[string][]*reader)
	for _, r := range l.readers {
		if r.share == "" {
			all = append(all, group{r.name, []*reader{r}})
		} else {
			shares[r.share] = append(shares[r.share], r)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(shares)) {
		all = append(all, group{"the members of " + name, shares[name]})
	}
	return all
}

// times returns how often the group got a message, and whether it had to.
func (g group) times(s *stream, seq int) (n int, owed bool) {
	for _, r := range g.members {
		if had := r.got[s]; had != nil && seq <= len(had.times) {
			n += int(had.times[seq-1])
		}
		if !owed && slices.ContainsFunc(r.intervals, func(i interval) bool { return i.covers(s.messages[seq-1]) }) {
			owed = true
		}
	}
	return n, owed
}

// each calls do with every message that a group wants.
func (l *ledger) each(do func(g group, s *stream, seq, times int, owed bool)) {
	for _, g := range l.groups() {
		for _, s := range l.streams {
			if !g.members[0].wants(s.key.topic) {
				continue
			}
			for seq := 1; seq <= len(s.messages); seq++ {
				n, owed := g.times(s, seq)
				do(g, s, seq, n, owed)
			}
		}
	}
}

// missing returns how many deliveries are owed.
func (l *ledger) missing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	l.each(func(_ group, _ *stream, _, times int, owed bool) {
		if owed && times == 0 {
			n++
		}
	})
	return n
}

// judge finds what only shows at the end: what was lost, and what several members of a shared subscription got.
func (l *ledger) judge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(g group, s *stream, seq, times int, owed bool) {
		m := s.messages[seq-1]
		if owed && times == 0 {
			l.fault(faultLost, "%s: number %d of %s, accepted after %d plugs", g.name, seq, s.key, m.plugs)
		}
		if len(g.members) > 1 && times > 1 && s.key.qos == 2 && g.members[0].qos == 2 {
			l.fault(faultDuplicate, "%s got number %d of %s, %d times in all", g.name, seq, s.key, times)
		}
	})
}

// verdict fails the test for every kind of fault, with examples.
func (l *ledger) verdict(t *testing.T) {
	t.Helper()
	l.judge()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("plug pulled %d times; %d messages sent, %d acknowledged, %d delivered, %d of them once more at QoS 1",
		l.plugs, l.stats.sent, l.stats.accepted, l.stats.delivered, l.stats.repeated)
	for _, kind := range slices.Sorted(maps.Keys(l.counts)) {
		t.Errorf("%s: %d\n  %s", kind, l.counts[kind], strings.Join(l.found[kind], "\n  "))
	}
}
