package conformance

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
	"github.com/fleethub/fleethub/hub/topic"
	"github.com/fleethub/fleethub/hub/wire"
)

// openRules need what the shipped policy allows nobody: to read what one writes, and filters that begin with a wildcard.
func openRules() []rule {
	return []rule{
		{"", "MQTT-3.8.3-3", noLocal},
		{"MQTT-4.7.2-1", "MQTT-4.7.2-1", wildcardsPassOverDollarTopics},
	}
}

func TestOpenPolicy(t *testing.T) {
	examine(t, start(t, open), []theme{{"open", openRules()}})
}

// forbidden is the one topic that the open policy allows nobody, for a suite that wants to be refused.
const forbidden = "test/nosubscribe"

// open lets services publish and subscribe to everything that is well formed.
func open(c *server.Config) {
	c.Allow = func(s policy.Subject, a policy.Action, name string) policy.Decision {
		valid := topic.ValidName(name)
		if a == policy.Subscribe {
			valid = topic.ValidFilter(name)
		}
		return policy.Decision{Allowed: s.Role == identity.RoleService && valid && name != forbidden, Rule: "open"}
	}
}

// noLocal: not to the client identifier that published, whatever connection it came by, but to everybody else.
func noLocal(x *exam) {
	credential := x.hub.service()
	one, two := x.dial(credential), x.dial(credential)
	one.id, two.id = credential.Identity.ID+":one", credential.Identity.ID+":two"
	topic := "a/" + credential.Identity.ID
	for _, c := range []*client{one, two} {
		c.connect(persistent)
		c.subscribeTo(wire.Subscription{Filter: topic + "/a", QoS: 1, NoLocal: true})
		c.subscribe(topic+"/b", 1)
	}
	send := func(c *client, name, payload string) {
		x.Helper()
		id := c.newID()
		c.send(&wire.Publish{Topic: topic + "/" + name, QoS: 1, ID: id, Payload: []byte(payload)})
		c.ack(wire.TypePuback, id)
	}
	send(one, "a", "from one")
	two.takePayload("from one")
	send(one, "b", "local, and wanted")
	one.takePayload("local, and wanted")
	two.takePayload("local, and wanted")
	send(two, "a", "from two")
	one.takePayload("from two")
	one.send(&wire.Publish{Topic: topic + "/a", QoS: 1, ID: 99, Payload: []byte("by the connection before")})
	one.ack(wire.TypePuback, 99)
	one.hangUp()
	one = one.again()
	one.connect(persistent)
	two.takePayload("by the connection before")
	send(two, "b", "the end")
	one.takePayload("the end")
}

// wildcardsPassOverDollarTopics, those of applications and the hub's own.
func wildcardsPassOverDollarTopics(x *exam) {
	all, dollar := x.service(), x.service()
	all.connect()
	for _, filter := range []string{"#", "+/#", "+/" + dollar.id, "+/+", "$share/group/#"} {
		all.subscribe(filter, 0)
	}
	dollar.connect()
	for _, filter := range []string{"$other/#", "$SYS/#"} {
		dollar.subscribe(filter, 1)
	}
	dollar.send(&wire.Publish{Topic: "$other/" + dollar.id, QoS: 1, ID: 100, Payload: []byte("a dollar")})
	dollar.ack(wire.TypePuback, 100)
	dollar.takePayload("a dollar")
	stop := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() { // until the hub's statistics are due
		for {
			select {
			case <-time.After(100 * time.Millisecond):
				x.hub.Advance(20 * time.Second)
			case <-stop:
				return
			}
		}
	})
	defer clock.Wait()
	defer close(stop)
	if m := dollar.take(); !strings.HasPrefix(m.Topic, "$SYS/") {
		x.Fatalf("got %s", describe(m))
	}
	mark := x.service()
	mark.connect()
	mark.publish("mark/"+dollar.id, "mark", 1)
	for {
		switch m := all.take(); {
		case strings.HasPrefix(m.Topic, "$"):
			x.Fatalf("got %s", describe(m))
		case m.Topic == "mark/"+dollar.id:
			return
		}
	}
}
