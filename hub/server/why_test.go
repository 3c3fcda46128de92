package server_test

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/broker"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/protocol"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/why"
)

// untilWhy waits until the hub's answer about a device satisfies want.
func untilWhy(t *testing.T, h *hubtest.Hub, id, what string, want func(admin.Why) bool) admin.Why {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		answer, err := h.Operator().Why(t.Context(), id)
		if err == nil && want(answer) {
			return answer
		}
		if time.Now().After(end) {
			t.Fatalf("hub why %s doesn't say %s but %+v, %v", id, what, answer, err)
		}
	}
}

// newest reports whether the answer has such an event whose words have that text.
func has(a admin.Why, kind why.Kind, reason, text string) bool {
	for _, e := range a.Events {
		if e.Kind == string(kind) && e.Reason == reason && strings.Contains(e.Words, text) {
			return true
		}
	}
	return false
}

func TestWhySaysInWordsWhatWentWrong(t *testing.T) {
	h := hubtest.Start(t)
	refuse := func(c certtest.Credential) {
		t.Helper()
		if conn, err := dial(h.MQTTAddr(), c.ClientConfig()); err == nil {
			conn.Close()
		}
	}
	t.Run("revoked", func(t *testing.T) {
		d := h.Device("revoked-1")
		if _, err := h.Operator().Revoke(t.Context(), "revoked-1", revocation.KeyCompromise); err != nil {
			t.Fatal(err)
		}
		refuse(d)
		refuse(d)
		a := untilWhy(t, h, "revoked-1", "that it was refused twice", func(a admin.Why) bool {
			return has(a, why.Refused, "revoked", "final") && a.Events[0].Times == 2
		})
		if !strings.Contains(a.Verdict, "is revoked since 20") || !strings.Contains(a.Verdict, "(keyCompromise)") {
			t.Errorf("verdict %q", a.Verdict)
		}
	})
	t.Run("certificate of another issuer", func(t *testing.T) {
		h.Device("pi-1")
		stranger := h.Fleet.Foreign().Device("pi-1")
		stranger.Roots = h.Fleet.Bundle()
		refuse(stranger)
		a := untilWhy(t, h, "pi-1", "that a stranger came", func(a admin.Why) bool { return has(a, why.Refused, "unknown-issuer", "another issuer") })
		if a.Events[0].Own {
			t.Error("a stranger's certificate counts as the device's own")
		}
	})
	t.Run("a superseded certificate", func(t *testing.T) {
		former, next := h.Device("pi-2"), h.Fleet.Device("pi-2")
		h.Supersede(former, next)
		refuse(former)
		untilWhy(t, h, "pi-2", "that the certificate is another", func(a admin.Why) bool { return has(a, why.Refused, "certificate-unknown", "superseded") })
	})
	t.Run("a certificate that begins later", func(t *testing.T) {
		d := h.Fleet.Device("pi-3", certtest.WithValidity(time.Now().Add(72*time.Hour), 1000*time.Hour))
		h.Register(d)
		refuse(d)
		a := untilWhy(t, h, "pi-3", "that it isn't valid yet", func(a admin.Why) bool { return has(a, why.Refused, "not-yet-valid", "clock is slow") })
		if !strings.Contains(a.Verdict, "in 3 days") {
			t.Errorf("verdict %q", a.Verdict)
		}
	})
	t.Run("another client identifier", func(t *testing.T) {
		d := h.Device("pi-4")
		refuse(d) // its identifier is ?
		untilWhy(t, h, "pi-4", "that the identifier is wrong", func(a admin.Why) bool {
			return has(a, why.Refused, "client-identifier", "set it to the certificate's common name")
		})
	})
	t.Run("policy", func(t *testing.T) {
		client, err := connect(t, h.MQTTAddr(), h.Device("pi-5"), nil)
		if err != nil {
			t.Fatal(err)
		}
		client.Publish("d/other/tele/x", 0, false, "x")
		a := untilWhy(t, h, "pi-5", "the rule", func(a admin.Why) bool {
			return len(a.Events) > 0 && a.Events[0].Kind == "denied" && strings.Contains(a.Events[0].Words, `publish "d/other/tele/x"`)
		})
		if !a.Online || !strings.Contains(a.Verdict, "may connect") {
			t.Errorf("%+v", a)
		}
		client.Disconnect(100)
		untilWhy(t, h, "pi-5", "that it said goodbye", func(a admin.Why) bool { return has(a, why.Disconnected, "disconnected", "goodbye") })
	})
	t.Run("an unregistered device", func(t *testing.T) {
		refuse(h.Fleet.Device("pi-6"))
		a := untilWhy(t, h, "pi-6", "that it isn't registered", func(a admin.Why) bool { return has(a, why.Refused, "unknown-device", "manifest") })
		if a.State != "" {
			t.Errorf("state %s", a.State)
		}
	})
	t.Run("a device that refuses the hub", func(t *testing.T) {
		d := h.Device("pi-7")
		conn, err := connect(t, h.MQTTAddr(), d, nil)
		if err != nil {
			t.Fatal(err)
		}
		conn.Disconnect(100)
		config := d.ClientConfig()
		config.Time = func() time.Time { return time.Now().AddDate(-20, 0, 0) }
		if c, err := tls.Dial("tcp", h.MQTTAddr(), config); err == nil {
			c.Close()
			t.Fatal("its clock of twenty years ago accepts the hub")
		}
		// From 127.0.0.1 come several devices: nobody is guessed.
		if a := untilWhy(t, h, "pi-7", "its goodbye", func(a admin.Why) bool { return has(a, why.Disconnected, "disconnected", "") }); has(a, why.Refused, "peer-alert", "") {
			t.Error("one of many devices of an address is blamed")
		}
	})
	if _, err := h.Operator().Why(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), "nobody came under that name") {
		t.Errorf("about a name that never came: %v", err)
	}
}

func TestTheOnlyDeviceOfAnAddressIsNamedWhenItRefusesTheHub(t *testing.T) {
	h := hubtest.Start(t)
	d := h.Device("pi-1")
	client, err := connect(t, h.MQTTAddr(), d, nil)
	if err != nil {
		t.Fatal(err)
	}
	client.Disconnect(100)
	untilWhy(t, h, "pi-1", "that it was here", func(a admin.Why) bool { return has(a, why.Disconnected, "disconnected", "") })
	config := d.ClientConfig()
	config.Time = func() time.Time { return time.Now().AddDate(-20, 0, 0) }
	if c, err := tls.Dial("tcp", h.MQTTAddr(), config); err == nil {
		c.Close()
		t.Fatal("its clock of twenty years ago accepts the hub")
	}
	untilWhy(t, h, "pi-1", "that its clock is wrong", func(a admin.Why) bool { return has(a, why.Refused, "peer-alert", "clock is wrong") })
}

// askOwn asks GET /v1/why as a device does.
func askOwn(t *testing.T, h *hubtest.Hub, c certtest.Credential, date time.Time) (admin.Why, int) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: c.ClientConfig()}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+h.HTTPSAddr()+"/v1/why", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Date", date.UTC().Format(http.TimeFormat))
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer admin.Why
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer, response.StatusCode
}

func TestDeviceLearnsAboutItselfWhateverItsStateAndAboutNobodyElse(t *testing.T) {
	h := hubtest.Start(t)
	d, other := h.Device("pi-1"), h.Device("pi-2")
	now := time.Now()
	if a, code := askOwn(t, h, d, now.Add(-72*time.Hour)); code != http.StatusOK || a.ID != "pi-1" || a.Clock != "its clock is 3 days slow" || !a.MayConnect || !strings.Contains(a.Verdict, "may connect") {
		t.Errorf("%d, %+v", code, a)
	}
	stranger := h.Fleet.Foreign().Device("pi-1")
	stranger.Roots = h.Fleet.Bundle()
	if c, err := dial(h.MQTTAddr(), stranger.ClientConfig()); err == nil {
		c.Close()
	}
	untilWhy(t, h, "pi-1", "that a stranger came", func(a admin.Why) bool { return has(a, why.Refused, "unknown-issuer", "") })
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := h.Operator().Suspend(t.Context(), "pi-1", "secret words"); return err }, "pi-1 is suspended since"},
		{func() error { _, err := h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise); return err }, "pi-1 is revoked since"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		a, code := askOwn(t, h, d, now)
		if code != http.StatusOK || a.MayConnect || !strings.Contains(a.Verdict, step.want) || strings.Contains(a.Verdict, "secret") || strings.Contains(a.Verdict, "admin") || a.Clock != "" {
			t.Errorf("%d, %+v, want %q", code, a, step.want)
		}
		for _, e := range a.Events {
			if !e.Own {
				t.Errorf("the device hears of somebody else: %+v", e)
			}
		}
	}
	if a, code := askOwn(t, h, other, now); code != http.StatusOK || a.ID != "pi-2" || len(a.Events) > 0 {
		t.Errorf("another device: %d, %+v", code, a)
	}
	for name, c := range map[string]certtest.Credential{"an operator": h.Fleet.Operator("eve"), "a service": h.Fleet.Service("pi-1"), "nobody": {Credentials: mtls.Credentials{Roots: h.Fleet.Bundle()}}} {
		if _, code := askOwn(t, h, c, now); code != http.StatusForbidden {
			t.Errorf("%s is answered with %d", name, code)
		}
	}
}

func TestEveryReasonHasWords(t *testing.T) {
	for _, reason := range []string{
		string(mtls.ReasonNoCertificate), string(mtls.ReasonUnknownIssuer), string(mtls.ReasonExpired), string(mtls.ReasonNotYetValid), string(mtls.ReasonUsage),
		string(mtls.ReasonIdentity), string(mtls.ReasonTrustDomain), string(mtls.ReasonRole), string(mtls.ReasonChain),
		string(admission.ReasonUnknownDevice), string(admission.ReasonUnknownCertificate), string(admission.ReasonSuspended), string(admission.ReasonRevoked),
		string(admission.ReasonState), string(admission.ReasonKeyProtection), string(admission.ReasonQuarantined),
		fleet.RefusedForQuarantine, fleet.RefusedForBudget, fleet.RefusedForIssuer, fleet.RefusedForSerial, string(admission.ReasonClientIdentifier), string(admission.ReasonWill),
		string(broker.ReasonConnectTimeout), string(broker.ReasonNoConnect), string(broker.ReasonFirstPacket), string(broker.ReasonMalformedConnect),
		string(broker.ReasonVersion), string(broker.ReasonAuthMethod), string(broker.ReasonUnavailable), string(broker.ReasonPanic),
		listener.ReasonTooMany, listener.ReasonAddressLimit, listener.ReasonIssuerLimit, listener.ReasonDeviceLimit, listener.ReasonQueueFull, listener.ReasonQueueTimeout,
		listener.ReasonHandshakeTimeout, listener.ReasonHandshakeAborted, listener.ReasonHandshakeFailed, listener.ReasonHelloTooLarge, listener.ReasonTooLarge,
		listener.ReasonChainTooLong, listener.ReasonNotTLS, listener.ReasonPeerAlert, listener.ReasonPanic,
	} {
		if !why.Known(why.Refused, reason) {
			t.Errorf("there are no words for a refusal for %s", reason)
		}
	}
	for _, reason := range []string{
		fleet.RefusedForKey, fleet.RefusedForRate, "issuing-key", "issuing-ca", "superseded", "unknown-device", "certificate-unknown",
		string(registry.StateSuspended), string(registry.StateRevoked), string(registry.StateRetired), string(registry.StateReplaced), string(mtls.ReasonExpired), string(mtls.ReasonRole),
	} {
		if !why.Known(why.NotRenewed, reason) {
			t.Errorf("there are no words for a renewal that was refused for %s", reason)
		}
	}
	for _, reason := range []string{
		fleet.RefusedForKey, fleet.RefusedForRate, fleet.RefusedForOtherTPM, fleet.RefusedForProtection,
		"tpm-" + string(attestation.Malformed), "tpm-" + string(attestation.UntrustedEK), "tpm-" + string(attestation.BadAK), "tpm-" + string(attestation.BadKey),
		"tpm-" + string(attestation.BadCertification), "tpm-" + string(attestation.WrongStatement), "tpm-" + string(attestation.KeyMismatch), "tpm-" + string(attestation.Busy),
		"tpm-" + string(attestation.UnknownChallenge), "tpm-" + string(attestation.Expired), "tpm-" + string(attestation.Answered), "tpm-" + string(attestation.MixedUp),
		"tpm-" + string(attestation.WrongProof), "tpm-" + string(attestation.Relayed),
	} {
		if !why.Known(why.NotRenewed, reason) {
			t.Errorf("there are no words for a renewal refused for %s", reason)
		}
	}
	for _, reason := range []string{
		protocol.ReasonDisconnected, protocol.ReasonLost, protocol.ReasonKeepAlive, protocol.ReasonTakenOver, protocol.ReasonProtocol, protocol.ReasonSuspended,
		protocol.ReasonRevoked, protocol.ReasonRetired, protocol.ReasonReplaced, protocol.ReasonExpired, protocol.ReasonUntrusted, protocol.ReasonKeyProtection, protocol.ReasonShutdown, "superseded",
	} {
		if !why.Known(why.Disconnected, reason) {
			t.Errorf("there are no words for an end for %s", reason)
		}
	}
}
