package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// online reports whether the hub has a connection of pi-1.
func online(t *testing.T, h *hubtest.Hub) bool {
	t.Helper()
	d, err := h.Operator().Device(t.Context(), "pi-1")
	return err == nil && d.Session != nil
}

// refusal waits for a refusal that says so in the status.
func refusal(t *testing.T, dir, says string) *link.Failure {
	t.Helper()
	return eventually(t, dir, func(r Report) bool {
		return r.Last != nil && r.Last.Link.LastRefusal != nil && strings.Contains(r.Last.Link.LastRefusal.Error(), says)
	}).Last.Link.LastRefusal
}

func TestSuspendedDeviceSaysSoAndIsBackSoonAfterItIsResumed(t *testing.T) {
	h := hubtest.Start(t)
	dir := h.Device("pi-1").WriteTo(t.TempDir(), "device")
	startAs(t, Config{Dir: dir, Hub: h.MQTTAddr(), HTTPS: "https://" + h.HTTPSAddr(), RefusedRetry: time.Second})
	waitFor(t, "connected", func() bool { return online(t, h) })
	_, err := h.Operator().Suspend(t.Context(), "pi-1", "look")
	noError(t, err)
	if f := refusal(t, dir, "the hub says: pi-1 is suspended since 20"); f.Kind != link.KindRefused {
		t.Errorf("%+v", f)
	}
	_, err = h.Operator().Resume(t.Context(), "pi-1", "looked")
	noError(t, err)
	waitFor(t, "back", func() bool { return online(t, h) })
}

func TestDeviceThatIsNotRegisteredYetHearsItAndComesInOnceItIs(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Fleet.Device("pi-1")
	dir := device.WriteTo(t.TempDir(), "device")
	startAs(t, Config{Dir: dir, Hub: h.MQTTAddr(), HTTPS: "https://" + h.HTTPSAddr(), RefusedRetry: time.Second})
	refusal(t, dir, "pi-1 is not registered: import the manifest")
	h.Register(device)
	waitFor(t, "connected", func() bool { return online(t, h) })
}

func TestRevokedDeviceAsksOnce(t *testing.T) {
	h := hubtest.Start(t)
	dir := h.Device("pi-1").WriteTo(t.TempDir(), "device")
	_, err := h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise)
	noError(t, err)
	a, err := New(Config{Dir: dir, Hub: h.MQTTAddr(), HTTPS: "https://" + h.HTTPSAddr(), TPM: TPMOff})
	noError(t, err)
	defer a.lock.release()
	if got := a.ask(t.Context()); got != (link.Answer{}) {
		t.Errorf("asked before any attempt: %+v", got)
	}
	_, err = a.credentials()
	noError(t, err)
	first := a.ask(t.Context())
	if !first.ForGood || !strings.Contains(first.Verdict, "pi-1 is revoked since") {
		t.Errorf("the hub says %+v", first)
	}
	a.config.HTTPS = "https://127.0.0.1:1" // nobody is asked again
	if got := a.ask(t.Context()); got != first {
		t.Errorf("asked again: %+v", got)
	}
	// Another certificate is another question.
	certtest.New(t).Device("pi-1").WriteTo(dir, "device")
	_, err = a.credentials()
	noError(t, err)
	if got := a.ask(t.Context()); got != (link.Answer{}) {
		t.Errorf("what was said of another certificate is said of this one: %+v", got)
	}
}
