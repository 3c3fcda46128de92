package soak

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// value is one retained topic: all that its one publisher ever set, in order; number n is at n-1.
type value struct{ settings []setting }

// setting is one retained PUBLISH.
type setting struct {
	empty    bool // deletes
	accepted bool
}

// newest returns the number of the newest acknowledged setting, 0 if there is none.
func (v *value) newest() int {
	for n := len(v.settings); n > 0; n-- {
		if v.settings[n-1].accepted {
			return n
		}
	}
	return 0
}

// mayBeAbsent reports whether, from setting number floor on, there is one that leaves nothing.
func (v *value) mayBeAbsent(floor int) bool {
	return floor == 0 || slices.ContainsFunc(v.settings[floor-1:], func(s setting) bool { return s.empty })
}

// setting opens the next setting of a retained topic and returns its number and payload.
func (l *ledger) setting(topic string, qos byte, empty bool) (n int, payload []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.values[topic]
	if v == nil {
		v = &value{}
		l.values[topic] = v
	}
	v.settings = append(v.settings, setting{empty: empty})
	n = len(v.settings)
	if empty {
		return n, nil
	}
	return n, content(streamKey{topic, qos}, n)
}

// settingAccepted notes the PUBACK or PUBREC of a setting.
func (l *ledger) settingAccepted(topic string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values[topic].settings[n-1].accepted = true
}

// audit is one look at retained topics, by one fresh subscription. The ledger guards it.
type audit struct {
	who    string
	floors map[string]int // by topic: what was newest when the subscription was asked for
	seen   map[string]bool
}

// audit begins a look at the topics that are wanted, just before the SUBSCRIBE is written.
func (l *ledger) audit(who string, wants func(topic string) bool) *audit {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &audit{who: who, floors: make(map[string]int), seen: make(map[string]bool)}
	for topic, v := range l.values {
		if wants(topic) {
			a.floors[topic] = v.newest()
		}
	}
	return a
}

// observed judges one retained message that the fresh subscription brought.
func (l *ledger) observed(a *audit, topic string, qos byte, payload []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.seen[topic] = true
	v := l.values[topic]
	var key streamKey
	var n int
	if _, err := fmt.Sscanf(string(payload), "%d %d ", &key.qos, &n); err != nil || v == nil || n < 1 || n > len(v.settings) || v.settings[n-1].empty {
		l.fault(faultRetained, "%s got on %s what nobody retained: %.40q", a.who, topic, payload)
		return
	}
	key.topic = topic
	if !bytes.Equal(payload, content(key, n)) {
		l.fault(faultRetained, "%s got number %d of %s altered: %.60q", a.who, n, topic, payload)
	}
	if floor := a.floors[topic]; n < floor {
		l.fault(faultRetained, "%s got number %d of %s, though number %d was acknowledged before it asked", a.who, n, topic, floor)
	}
}

// unseen returns the topics whose value must come and has not.
func (l *ledger) unseen(a *audit) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var missing []string
	for _, topic := range slices.Sorted(maps.Keys(a.floors)) {
		if !a.seen[topic] && !l.values[topic].mayBeAbsent(a.floors[topic]) {
			missing = append(missing, topic)
		}
	}
	return missing
}

// closeAudit accuses the hub of every value that did not come.
func (l *ledger) closeAudit(a *audit) {
	for _, topic := range l.unseen(a) {
		l.accuse(faultRetained, "%s got nothing on %s, of which number %d was acknowledged before it asked", a.who, topic, a.floors[topic])
	}
}
