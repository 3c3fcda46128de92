package server_test

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func online(t *testing.T, h *hubtest.Hub, c certtest.Credential) mqtt.Client {
	t.Helper()
	client, err := connect(t, h.MQTTAddr(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Disconnect(100) })
	return client
}

// twoStations is a hub with two stations, a device of each and a service online.
type twoStations struct {
	*hubtest.Hub
	second                *hubtest.Station
	ofFirst, ofSecond     certtest.Credential
	first, other, service mqtt.Client
}

func newTwoStations(t *testing.T) *twoStations {
	t.Helper()
	h := &twoStations{Hub: hubtest.Start(t)}
	h.second = h.Station("bench-2")
	h.ofFirst, h.ofSecond = h.Device("pi-1"), h.second.Device("pi-2")
	h.first, h.other, h.service = online(t, h.Hub, h.ofFirst), online(t, h.Hub, h.ofSecond), online(t, h.Hub, h.Fleet.Service("backend"))
	return h
}

// onlyFirstIsCut checks that the first station's device is gone and nobody else.
func (h *twoStations) onlyFirstIsCut(t *testing.T) {
	t.Helper()
	eventually(t, "the device of the removed issuer is disconnected", func() bool { return !h.first.IsConnectionOpen() })
	// Whoever else would be cut would have been by now: the hub tells all before it waits for the first.
	for name, client := range map[string]mqtt.Client{"device of the other issuer": h.other, "service": h.service} {
		token := client.Publish("nowhere", 0, false, "x") // refused by policy, silently: what matters is the round trip below
		if subscribed := client.Subscribe("presence/none", 1, nil); !token.WaitTimeout(patience) || !subscribed.WaitTimeout(patience) || !client.IsConnectionOpen() {
			t.Errorf("the %s was disconnected, too", name)
		}
	}
}

func TestRemovedIssuerTakesExactlyItsDevices(t *testing.T) {
	h := newTwoStations(t)
	operator := h.Operator()
	plan, err := operator.PlanIssuerRemoval(t.Context(), certtest.StationName)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Breaks != 1 || plan.Online != 1 || len(plan.Affected) != 1 || plan.Affected[0].ID != "pi-1" || !plan.Affected[0].Online {
		t.Errorf("plan %+v", plan)
	}
	if !h.first.IsConnectionOpen() {
		t.Fatal("the rehearsal was no rehearsal")
	}
	receipt, err := operator.RemoveIssuer(t.Context(), certtest.StationName, "key stolen")
	if err != nil {
		t.Fatal(err)
	}
	if receipt.SessionsClosed != 1 || !slices.Equal(receipt.Disconnected, []string{"device/pi-1"}) || receipt.Issuer.Devices != 1 || len(receipt.MovedTo) != 1 ||
		receipt.DurableAt.Before(receipt.RequestedAt) || receipt.EffectiveAt.Before(receipt.DurableAt) || receipt.LastSessionClosedAt.IsZero() {
		t.Errorf("receipt %+v", receipt)
	}
	if _, err := os.Stat(receipt.MovedTo[0]); err != nil {
		t.Error(err)
	}
	h.onlyFirstIsCut(t)
	for _, when := range []string{"at once", "after a restart"} {
		if c, err := dial(h.MQTTAddr(), h.ofFirst.ClientConfig()); err == nil {
			c.Close()
			t.Errorf("%s: a device of the removed issuer is let in", when)
		}
		mustDial(t, h.Hub, h.ofSecond.ClientConfig())
		h.Restart()
	}
	// The audit log has who, what, why and how it ended.
	records, err := h.Operator().Audit(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, r := range records.Records {
		if r.Action == "issuer.remove" {
			said = append(said, r.Subject+" "+string(r.Outcome)+" "+r.Reason)
		}
	}
	if want := []string{"issuer bench-1 requested key stolen", "issuer bench-1 done key stolen"}; !slices.Equal(said, want) {
		t.Errorf("the audit log says %q, want %q", said, want)
	}
}

func TestRemovedIssuerFileIsTakenUpByReload(t *testing.T) {
	h := newTwoStations(t)
	h.Server().Reload()
	if !h.first.IsConnectionOpen() {
		t.Fatal("a reload that changed nothing cut somebody off")
	}
	removeIssuerFile(t, h.Hub)
	h.Server().Reload()
	h.onlyFirstIsCut(t)
}

func TestReloadKeepsDevicesOfARenewedIssuer(t *testing.T) {
	h := newTwoStations(t)
	former := h.second.Issuer.Certificate()
	renewed, err := h.Fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: "bench-2", TrustDomain: certtest.TrustDomain, PublicKey: former.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	if err := pemfile.WriteCertificates(h.second.File(), renewed); err != nil {
		t.Fatal(err)
	}
	config, _ := holding(t, h.Hub, h.ofSecond, tls.VersionTLS13)
	h.Server().Reload()
	list, err := h.Operator().Issuers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(list, func(i admin.Issuer) bool { return i.Name == "bench-2" }); i < 0 || list[i].Serial != identity.SerialString(renewed.SerialNumber) || list[i].Devices != 1 || list[i].Online != 1 {
		t.Errorf("issuers %+v", list)
	}
	if !mustDial(t, h.Hub, config) {
		t.Error("the renewal made a ticket worthless")
	}
	if !h.first.IsConnectionOpen() || !h.other.IsConnectionOpen() {
		t.Error("the renewal cut a device off")
	}
}

// An issuer that is trusted again serves its devices as before, but for their tickets.
func TestIssuerMayComeBackAndItsFormerTicketsMayNot(t *testing.T) {
	for name, remove := range map[string]func(h *hubtest.Hub){
		"removed by an operator": func(h *hubtest.Hub) {
			must1(h.Operator().RemoveIssuer(t.Context(), certtest.StationName, ""))(t)
		},
		"file removed":                   func(h *hubtest.Hub) { removeIssuerFile(t, h); h.Server().Reload() },
		"file removed while the hub was": func(h *hubtest.Hub) { removeIssuerFile(t, h); h.Restart() },
	} {
		t.Run(name, func(t *testing.T) {
			h := hubtest.Start(t)
			config, ticket := holding(t, h, h.Device("pi-1"), tls.VersionTLS13)
			former := ticket.state
			remove(h)
			if err := pemfile.WriteCertificates(issuerFile(h), h.Fleet.Factory.Certificate()); err != nil {
				t.Fatal(err)
			}
			h.Server().Reload()
			h.Advance(time.Second) // tickets made within the second of the change are dropped, too
			ticket.state = former
			if mustDial(t, h, config) {
				t.Error("a ticket from before the removal was taken")
			}
			if !mustDial(t, h, config) {
				t.Error("a ticket from after the return was not taken")
			}
		})
	}
}

func TestOperationalIssuerIsNotRemoved(t *testing.T) {
	h := newTwoStations(t)
	plan, err := h.Operator().PlanIssuerRemoval(t.Context(), "hub")
	if err != nil {
		t.Fatal(err)
	}
	if plan.Online != 1 || plan.Affected[0].Role != "service" || plan.Note == "" {
		t.Errorf("plan %+v", plan)
	}
	if _, err := h.Operator().RemoveIssuer(t.Context(), "hub", ""); err == nil || !strings.Contains(err.Error(), "can't do without") {
		t.Errorf("got %v", err)
	}
	if _, err := h.Operator().RemoveIssuer(t.Context(), "bench-9", ""); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
	if !h.service.IsConnectionOpen() || !h.first.IsConnectionOpen() {
		t.Error("a refused removal cut somebody off")
	}
}

// A removal must succeed whatever else lies in the folder.
func TestIssuerIsRemovedBesideAFileThatCantBeRead(t *testing.T) {
	h := newTwoStations(t)
	if err := os.WriteFile(filepath.Join(h.Dir, "issuers", "a.crt"), []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Operator().RemoveIssuer(t.Context(), certtest.StationName, ""); err != nil {
		t.Fatal(err)
	}
	h.onlyFirstIsCut(t)
	if _, err := os.Stat(issuerFile(h.Hub)); err == nil {
		t.Error("the certificate is still where a restart finds it")
	}
}

// A folder that can't be changed must not keep a thief connected.
func TestIssuerThatCantBeMovedIsCutOffAllTheSame(t *testing.T) {
	h := newTwoStations(t)
	// Something that is no folder stands where the removed ones go.
	if err := os.WriteFile(filepath.Join(h.Dir, "issuers", "removed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Operator().RemoveIssuer(t.Context(), certtest.StationName, ""); err == nil || !strings.Contains(err.Error(), "next reload would bring it back") {
		t.Errorf("got %v", err)
	}
	h.onlyFirstIsCut(t)
}
