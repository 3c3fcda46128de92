package soak

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"
)

// auditPatience is how long retained messages may take to come.
const auditPatience = 20 * time.Second

// auditReported looks at all reported documents again and again, with a fresh subscription each time.
func (l *load) auditReported(ctx context.Context) {
	for ctx.Err() == nil {
		l.auditOnce(ctx)
		timer := time.NewTimer(500 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// auditOnce is one look. A hub that is killed meanwhile ends it without a judgement; one that says nothing is judged.
func (l *load) auditOnce(ctx context.Context) (complete bool) {
	who := l.who["auditor"]
	conn, err := connect(ctx, l.addr, who, nil, connectOptions{version: v5, clean: true, keepAlive: 60})
	if err != nil {
		return false
	}
	defer conn.hangUp(broken)
	a := l.ledger.audit("auditor", isReported)
	s := newSession(who.Identity.ID, v5)
	s.accuse = l.ledger.accuse
	s.deliver = func(p packet) {
		if p.retain {
			l.ledger.observed(a, p.topic, p.qos, p.payload)
		}
	}
	granted, asked := false, false
	conn.send(func() []byte {
		return s.request(func(id uint16) []byte { return subscribeFrame(v5, id, "d/+/twin/reported", 1) }, func([]byte) { granted = true })
	})
	for {
		p, err := conn.next(auditPatience)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			l.ledger.closeAudit(a)
			return true
		}
		if err != nil {
			return false
		}
		conn.send(func() []byte { return s.handle(p) })
		// A value that was deleted would still have come before the answer to a PINGREQ that is sent now.
		if granted && !asked && len(l.ledger.unseen(a)) == 0 {
			asked = true
			conn.write(pingFrame())
		}
		if p.kind == typePingresp {
			return true
		}
	}
}

// auditDesired has every device subscribe to what it is to become, and judges what comes. The devices must have come to
// stay.
func (l *load) auditDesired(ctx context.Context) {
	var audits []*audit
	for i, c := range l.devices {
		id := c.session.name
		topic := "d/" + id + "/twin/desired"
		a := l.ledger.audit(id, func(t string) bool { return t == topic })
		audits = append(audits, a)
		l.mu.Lock()
		l.auditing[id] = a
		l.mu.Unlock()
		l.audits.Go(func() {
			if _, err := c.ask(ctx, func(n uint16) []byte { return subscribeFrame(c.session.version, n, topic, byte(1+i%2)) }); err != nil {
				l.t.Errorf("%s subscribes to %s: %v", id, topic, err)
			}
		})
	}
	l.audits.Wait()
	within(auditPatience, func() bool {
		for _, a := range audits {
			if len(l.ledger.unseen(a)) > 0 {
				return false
			}
		}
		return true
	})
	for _, a := range audits {
		l.ledger.closeAudit(a)
	}
}

// desiredArrived takes a device's messages that are no commands.
func (l *load) desiredArrived(id string, p packet) {
	l.mu.Lock()
	a := l.auditing[id]
	l.mu.Unlock()
	switch {
	case !strings.HasSuffix(p.topic, "/twin/desired"):
		l.ledger.accuse(faultUninvited, "%s got %s", id, p.topic)
	case p.retain && a != nil:
		l.ledger.observed(a, p.topic, p.qos, p.payload)
	}
}
