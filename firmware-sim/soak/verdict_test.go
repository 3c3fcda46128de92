package soak

import (
	"maps"
	"slices"
	"testing"
)

// story is a made-up hub's work: one publisher, readers, and a ledger that is told.
type story struct {
	l *ledger
	k streamKey
}

// reader joins and is granted a subscription.
func (s story) reader(name, share string, qos byte) *reader {
	r := s.l.join(name, share, qos, func(topic string) bool { return topic == s.k.topic })
	s.l.asking(r)
	s.l.granted(r)
	return r
}

// send sends n messages, all acknowledged.
func (s story) send(n int) {
	for range n {
		seq := s.l.sending(s.k)
		s.l.accepted(s.k, seq)
		s.l.finished(s.k, seq)
	}
}

// bring delivers messages in that order.
func (s story) bring(r *reader, numbers ...int) {
	for _, n := range numbers {
		s.l.delivered(r, s.k.topic, min(r.qos, s.k.qos), content(s.k, n))
	}
}

// TestTheLedgerFindsEveryFault makes up each fault, and what looks like one and is none.
func TestTheLedgerFindsEveryFault(t *testing.T) {
	qos1, qos2 := streamKey{"d/1/tele/x", 1}, streamKey{"d/1/tele/x", 2}
	for _, c := range []struct {
		name string
		key  streamKey
		tell func(s story)
		want map[string]int
	}{
		{"all is well", qos2, func(s story) {
			r := s.reader("a", "", 2)
			s.send(3)
			s.bring(r, 1, 2, 3)
		}, nil},
		{"one is lost", qos2, func(s story) {
			r := s.reader("a", "", 2)
			s.send(3)
			s.bring(r, 1, 3)
		}, map[string]int{faultLost: 1}},
		{"the last is lost", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.send(3)
			s.bring(r, 1, 2)
		}, map[string]int{faultLost: 1}},
		{"one of two readers misses all", qos1, func(s story) {
			s.reader("a", "", 1)
			r := s.reader("b", "", 1)
			s.send(2)
			s.bring(r, 1, 2)
		}, map[string]int{faultLost: 2}},
		{"never acknowledged, never delivered", qos1, func(s story) {
			s.reader("a", "", 1)
			s.l.sending(s.k)
		}, nil},
		{"refused, never delivered", qos1, func(s story) {
			s.reader("a", "", 1)
			s.l.finished(s.k, s.l.sending(s.k))
		}, nil},
		{"never acknowledged, delivered", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.l.sending(s.k)
			s.bring(r, 1)
		}, nil},
		{"QoS 2 twice", qos2, func(s story) {
			r := s.reader("a", "", 2)
			s.send(2)
			s.bring(r, 1, 2, 1)
		}, map[string]int{faultDuplicate: 1}},
		{"QoS 1 twice, in order of first arrival", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.send(3)
			s.bring(r, 1, 2, 1, 2, 3)
		}, nil},
		{"QoS 2 twice to a reader of QoS 1", qos2, func(s story) {
			r := s.reader("a", "", 1)
			s.send(1)
			s.bring(r, 1, 1)
		}, nil},
		{"out of order", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.send(3)
			s.bring(r, 2, 1, 3)
		}, map[string]int{faultInversion: 1}},
		{"sent again over the beginning of a subscription", qos1, func(s story) {
			first, second := s.l.sending(s.k), s.l.sending(s.k)
			r := s.reader("a", "", 1)
			s.bring(r, second, first, second)
		}, nil},
		{"out of order at the beginning of a subscription", qos1, func(s story) {
			r := s.reader("a", "", 1)
			first, second := s.l.sending(s.k), s.l.sending(s.k)
			s.bring(r, second, first, second)
		}, map[string]int{faultInversion: 1}},
		{"before the subscription", qos1, func(s story) {
			s.send(2)
			r := s.reader("a", "", 1)
			s.send(1)
			s.bring(r, 3)
		}, nil},
		{"before the subscription and delivered all the same", qos1, func(s story) {
			s.send(1)
			s.bring(s.reader("a", "", 1), 1)
		}, map[string]int{faultUninvited: 1}},
		{"after the subscription's end and delivered all the same", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.l.quitting(r)
			s.l.left(r)
			s.send(1)
			s.bring(r, 1)
		}, map[string]int{faultUninvited: 1}},
		{"accepted before the subscription's end", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.send(1)
			s.l.quitting(r)
			s.l.left(r)
		}, map[string]int{faultLost: 1}},
		{"accepted while the subscription ended", qos1, func(s story) {
			r := s.reader("a", "", 1)
			seq := s.l.sending(s.k)
			s.l.quitting(r)
			s.l.accepted(s.k, seq)
			s.l.finished(s.k, seq)
			s.l.left(r)
		}, nil},
		{"sent between SUBSCRIBE and SUBACK", qos1, func(s story) {
			r := s.l.join("a", "", 1, isTelemetry)
			s.l.asking(r)
			s.send(2)
			s.l.granted(r)
			s.bring(r, 2)
		}, nil},
		{"between two subscriptions", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.l.quitting(r)
			s.l.left(r)
			s.send(1)
			s.l.asking(r)
			s.l.granted(r)
			s.send(1)
			s.bring(r, 2)
		}, nil},
		{"shared: each has one", qos2, func(s story) {
			a, b := s.reader("a", "crew", 2), s.reader("b", "crew", 2)
			s.send(3)
			s.bring(a, 2)
			s.bring(b, 3, 1)
		}, nil},
		{"shared: nobody has one", qos2, func(s story) {
			a, b := s.reader("a", "crew", 2), s.reader("b", "crew", 2)
			s.send(3)
			s.bring(a, 2)
			s.bring(b, 1)
		}, map[string]int{faultLost: 1}},
		{"shared: both have one", qos2, func(s story) {
			a, b := s.reader("a", "crew", 2), s.reader("b", "crew", 2)
			s.send(1)
			s.bring(a, 1)
			s.bring(b, 1)
		}, map[string]int{faultDuplicate: 1}},
		{"another payload", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.send(1)
			s.l.delivered(r, s.k.topic, 1, append(content(s.k, 1), 'x'))
			s.l.delivered(r, s.k.topic, 1, []byte("nonsense"))
		}, map[string]int{faultAltered: 2, faultLost: 1}},
		{"never sent", qos1, func(s story) {
			r := s.reader("a", "", 1)
			s.bring(r, 1)
		}, map[string]int{faultUnsent: 1}},
		{"another QoS", qos2, func(s story) {
			r := s.reader("a", "", 1)
			s.send(1)
			s.l.delivered(r, s.k.topic, 2, content(s.k, 1))
		}, map[string]int{faultQoS: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := story{newLedger(), c.key}
			c.tell(s)
			owed := s.l.missing()
			s.l.judge()
			if !maps.Equal(s.l.counts, c.want) {
				t.Errorf("found %v, want %v", s.l.counts, c.want)
			}
			if owed != c.want[faultLost] {
				t.Errorf("%d deliveries are missing, want %d", owed, c.want[faultLost])
			}
		})
	}
}

// TestTheAuditFindsEveryWrongRetainedValue does the same for retained topics. Each story sets values 1 to 3, of which the
// second is empty and the third may be unacknowledged.
func TestTheAuditFindsEveryWrongRetainedValue(t *testing.T) {
	const topic = "d/1/twin/reported"
	key := streamKey{topic, 1}
	for _, c := range []struct {
		name     string
		sent     int // how many of the three are sent
		accepted int // how many of those are acknowledged
		bring    [][]byte
		faults   int
		unseen   bool
	}{
		{"the newest", 1, 1, [][]byte{content(key, 1)}, 0, false},
		{"nothing", 1, 1, nil, 1, true},
		{"nothing, and nothing was acknowledged", 1, 0, nil, 0, false},
		{"deleted and absent", 2, 2, nil, 0, false},
		{"deleted and there", 2, 2, [][]byte{content(key, 1)}, 1, false},
		{"perhaps deleted and there", 2, 1, [][]byte{content(key, 1)}, 0, false},
		{"perhaps deleted and absent", 2, 1, nil, 0, false},
		{"perhaps set again and absent", 3, 2, nil, 0, false},
		{"perhaps set again and there", 3, 2, [][]byte{content(key, 3)}, 0, false},
		{"set again and old", 3, 3, [][]byte{content(key, 1)}, 1, false},
		{"set again and absent", 3, 3, nil, 1, true},
		{"altered", 1, 1, [][]byte{append(content(key, 1), 'x')}, 1, false},
		{"from the future", 1, 1, [][]byte{content(key, 3)}, 1, false},
		{"nonsense", 1, 1, [][]byte{[]byte("nonsense")}, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger()
			for n := range c.sent {
				if number, _ := l.setting(topic, 1, n == 1); n < c.accepted {
					l.settingAccepted(topic, number)
				}
			}
			a := l.audit("a", isReported)
			for _, payload := range c.bring {
				l.observed(a, topic, 1, payload)
			}
			if unseen := slices.Contains(l.unseen(a), topic); unseen != c.unseen {
				t.Errorf("unseen is %v, want %v", unseen, c.unseen)
			}
			l.closeAudit(a)
			if l.counts[faultRetained] != c.faults {
				t.Errorf("%d faults, want %d: %v", l.counts[faultRetained], c.faults, l.found)
			}
		})
	}
}
