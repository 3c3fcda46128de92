package server_test

import (
	"testing"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// lasting connects with a session that outlives the connection; what comes is in the
// channel.
func lasting(t *testing.T, h *hubtest.Hub, c certtest.Credential) (mqtt.Client, <-chan string) {
	t.Helper()
	got := make(chan string, 16)
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker("ssl://" + h.MQTTAddr()).SetClientID(c.Identity.ID).SetCleanSession(false).
		SetTLSConfig(c.ClientConfig()).SetConnectTimeout(patience).SetAutoReconnect(false).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { got <- m.Topic() }))
	done(t, client.Connect())
	t.Cleanup(func() { client.Disconnect(100) })
	return client, got
}

func done(t *testing.T, token mqtt.Token) {
	t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatalf("MQTT: %v", token.Error())
	}
}

// granted reports whether a subscription with QoS 1 was granted.
func granted(t *testing.T, c mqtt.Client, filter string) bool {
	t.Helper()
	token := c.Subscribe(filter, 1, nil)
	if !token.WaitTimeout(patience) {
		t.Fatal("no SUBACK")
	}
	return token.(*mqtt.SubscribeToken).Result()[filter] == 1
}

// TestSubscriptionsByALabelEndWithTheLabel, of who is connected and of who is away, for
// good: that the label comes back doesn't bring them back.
func TestSubscriptionsByALabelEndWithTheLabel(t *testing.T) {
	h := hubtest.Start(t)
	live, away := h.Device("pi-1"), h.Device("pi-2")
	operator := h.Operator()
	site := func(site string) {
		t.Helper()
		answer, err := operator.Label(t.Context(), "", admin.LabelRequest{Select: "id=pi-*", Labels: map[string]string{"site": site}, Confirm: true, Count: 2})
		must(t, err)
		if answer.Changed != 2 {
			t.Fatalf("%+v", answer)
		}
	}
	site("north")
	const north = "g/site=north/cmd/#"
	first, got := lasting(t, h, live)
	second, _ := lasting(t, h, away)
	for _, c := range []mqtt.Client{first, second} {
		if !granted(t, c, north) || !granted(t, c, "d/"+map[mqtt.Client]string{first: "pi-1", second: "pi-2"}[c]+"/cmd/#") {
			t.Fatal("a subscription is refused that the label allows")
		}
	}
	second.Disconnect(100)
	service, err := connect(t, h.MQTTAddr(), h.Fleet.Service("backend"), nil)
	must(t, err)
	t.Cleanup(func() { service.Disconnect(100) })
	publish := func(topics ...string) {
		t.Helper()
		for _, topic := range topics {
			done(t, service.Publish(topic, 1, false, "x"))
		}
	}
	next := func(got <-chan string, want string) {
		t.Helper()
		eventually(t, want+" comes", func() bool {
			select {
			case topic := <-got:
				if topic != want {
					t.Errorf("%s was delivered before %s", topic, want)
				}
				return topic == want
			default:
				return false
			}
		})
	}
	publish("g/site=north/cmd/x/1")
	next(got, "g/site=north/cmd/x/1")

	site("south")
	if granted(t, first, north) {
		t.Error("a subscription is granted that the label allows no more")
	}
	site("north")
	publish("g/site=north/cmd/x/2", "d/pi-1/cmd/x/1", "d/pi-2/cmd/x/1")
	next(got, "d/pi-1/cmd/x/1")
	second, got = lasting(t, h, away)
	// The group's command of the first round was queued for it, and is allowed again.
	next(got, "g/site=north/cmd/x/1")
	next(got, "d/pi-2/cmd/x/1")
	if !granted(t, second, north) {
		t.Error("a subscription is refused that the label allows again")
	}
}
