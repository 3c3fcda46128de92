package conformance

import (
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
	"github.com/fleethub/fleethub/hub/topic"
	"github.com/fleethub/fleethub/hub/wire"
)

// openRules need one client that may read what it writes, which the shipped policy
// allows nobody.
func openRules() []rule {
	return []rule{
		{"", "MQTT-3.8.3-3", noLocal},
	}
}

func TestOpenPolicy(t *testing.T) {
	examine(t, start(t, open), []theme{{"open", openRules()}})
}

// below is where an opened policy lets services read and write: short, because suites
// count bytes.
const below = "i/"

// open adds that to the shipped policy.
func open(c *server.Config) {
	c.Allow = func(s policy.Subject, a policy.Action, name string) policy.Decision {
		if s.Role != identity.RoleService {
			return policy.Allow(s, a, name)
		}
		valid := topic.ValidName(name)
		if a == policy.Subscribe {
			valid = topic.ValidFilter(name)
			_, name, _ = topic.CutShare(name)
		}
		if valid && strings.HasPrefix(name, below) {
			return policy.Decision{Allowed: true, Rule: "open"}
		}
		return policy.Allow(s, a, name)
	}
}

// noLocal: not to the client identifier that published, whatever connection it came by, but to everybody else.
func noLocal(x *exam) {
	credential := x.hub.service()
	one, two := x.dial(credential), x.dial(credential)
	one.id, two.id = credential.Identity.ID+":one", credential.Identity.ID+":two"
	topic := below + credential.Identity.ID
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
