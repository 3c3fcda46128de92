package link

import (
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

func TestRenewalIsAskedForByTheCertificateThatIsInUse(t *testing.T) {
	p := goodPeer(t)
	device := p.fleet.Device("pi-1")
	due := make(chan struct{}, 8)
	p.tell("d/pi-1/sys/renewal", `{"certificate":"`+identity.Fingerprint(p.fleet.Device("pi-1").Leaf)+`"}`) // of the one before
	start(t, p.address, device, func(c *Config) {
		c.StableAfter = time.Millisecond
		c.RenewalDue = func() { due <- struct{}{} }
	})
	p.next("evt/online")
	for {
		if _, asked := p.seen(); len(asked) == 2 && asked[1] == "d/pi-1/sys/renewal" {
			break
		}
		time.Sleep(time.Millisecond) // polls; the condition above is what is waited for
	}
	p.tell("d/pi-1/sys/renewal", "nonsense")
	p.tell("d/pi-1/sys/renewal", `{"certificate":"`+identity.Fingerprint(device.Leaf)+`"}`)
	select {
	case <-due:
	case <-time.After(patience):
		t.Fatal("the link isn't told that the renewal is due")
	}
	if len(due) > 0 {
		t.Error("told of another certificate, too")
	}
}
