package broker

import (
	"net"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/policy"
)

// counted is an Observer that remembers what it was told of messages.
type counted struct {
	messages []int
	in       []time.Duration
}

func (*counted) OnRefusal(identity.Identity, net.Addr, string, string)     {}
func (*counted) OnConnected(identity.Identity, net.Addr, bool)             {}
func (*counted) OnEnded(identity.Identity, net.Addr, string, string)       {}
func (*counted) OnDenied(identity.Identity, policy.Action, string, string) {}
func (o *counted) OnPublished(_ identity.Identity, messages int, in time.Duration) {
	o.messages, o.in = append(o.messages, messages), append(o.in, in)
}

func TestObserverHearsOncePerWindowHowManyMessagesThereWere(t *testing.T) {
	seen := &counted{}
	c := &client{b: &Broker{config: Config{Observer: seen}}}
	now := time.Unix(1_700_000_000, 0)
	for range 250 { // 25 seconds, ten messages in each
		c.count(now)
		now = now.Add(100 * time.Millisecond)
	}
	now = now.Add(time.Hour) // silence, then one more
	c.count(now)
	want := []int{100, 100, 50}
	if len(seen.messages) != len(want) {
		t.Fatalf("told %v over %v", seen.messages, seen.in)
	}
	for i, n := range want {
		if seen.messages[i] != n || seen.in[i] < PublishWindow {
			t.Errorf("window %d: %d messages in %s, want %d", i, seen.messages[i], seen.in[i], n)
		}
	}
	if seen.in[2] < time.Hour {
		t.Errorf("after a silence the window is %s", seen.in[2])
	}
	none := &client{b: &Broker{}}
	none.count(now) // nobody to tell
}
