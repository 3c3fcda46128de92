package server_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

func TestHandshakesAreAccountedForPerDevice(t *testing.T) {
	h := hubtest.Start(t)
	device := h.Device("pi-1")
	account := func() *admin.Handshakes {
		d, err := h.Operator().Device(t.Context(), "pi-1")
		if err != nil {
			t.Fatal(err)
		}
		return d.Handshakes
	}
	if a := account(); a != nil {
		t.Errorf("before its first connect a device has the account %+v", a)
	}
	config := device.ClientConfig()
	config.ClientSessionCache = &kept{}
	full := countConnect(t, h, device, config)
	first := account()
	if first == nil || first.Full != 1 || first.Resumed != 0 || first.Refused != 0 || first.LastRefusal != nil || first.Last == nil {
		t.Fatalf("account %+v", first)
	}
	if l := first.Last; l.Resumed || l.TLS != "TLS 1.3" || l.Suite != "TLS_AES_128_GCM_SHA256" || l.Curve != full.curve || l.Seconds <= 0 || l.At.IsZero() {
		t.Errorf("last handshake %+v", l)
	}
	// The first handshake of a hub is one of those whose processor time is measured.
	if runtime.GOOS == "linux" && (first.CPUSampled != 1 || first.CPUSeconds <= 0) {
		t.Errorf("processor time %v s in %d", first.CPUSeconds, first.CPUSampled)
	}
	// The client counted CONNECT and CONNACK as well, some 40 octets each way with their records.
	if near := func(hub int64, client int) bool { return hub > 0 && hub <= int64(client) && hub >= int64(client-64) }; !near(first.BytesUp, full.up) || !near(first.BytesDown, full.down) {
		t.Errorf("the hub counted %d up and %d down, the client %d and %d", first.BytesUp, first.BytesDown, full.up, full.down)
	}
	if n := countConnect(t, h, device, config); !n.resumed {
		t.Fatal("not resumed")
	}
	second := account()
	if second.Full != 1 || second.Resumed != 1 || !second.Last.Resumed || second.BytesUp != first.BytesUp+second.Last.BytesUp || second.Last.BytesUp >= first.BytesUp {
		t.Errorf("account %+v after %+v", second, first)
	}
	// A stranger under the device's name.
	impostor := h.Fleet.Foreign().Device("pi-1")
	impostor.Roots = h.Fleet.Bundle()
	if c, err := dial(h.MQTTAddr(), impostor.ClientConfig()); err == nil {
		c.Close()
		t.Fatal("an impostor was let in")
	}
	eventually(t, "the refusal is in the account", func() bool { return account().Refused == 1 })
	if r := account().LastRefusal; r.Reason != "unknown-issuer" || !strings.HasPrefix(r.Address, "127.0.0.1:") {
		t.Errorf("last refusal %+v", r)
	}
	// In total: by kind, direction and parameters, and no device's name.
	metrics := scrape(t, h, "/metrics")
	for _, want := range []string{
		fmt.Sprintf(`fleethub_handshake_bytes_total{direction="up",kind="full"} %d`, first.BytesUp),
		fmt.Sprintf(`fleethub_handshake_bytes_total{direction="down",kind="resumed"} %d`, second.Last.BytesDown),
		`fleethub_handshake_parameters_total{curve="` + full.curve + `",kind="full",suite="TLS_AES_128_GCM_SHA256",version="TLS 1.3"} 1`,
		`fleethub_handshakes_total{kind="resumed"} 1`,
		`fleethub_refused_total{reason="unknown-issuer"} 1`,
		`fleethub_tickets_total{outcome="accepted"} 1`,
		`fleethub_tickets_total{outcome="minted"} 2`,
		`fleethub_ticket_keys 1`,
		`fleethub_issuers 2`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if strings.Contains(metrics, "pi-1") {
		t.Error("/metrics names a device")
	}
}

func TestAccountIsBoundedAndKeepsStrangersOut(t *testing.T) {
	h := hubtest.Start(t)
	for _, id := range []string{"a", "b", "c"} {
		h.Device(id)
	}
	a := server.NewAccount(h.Server().Fleet(), time.Now, 2)
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	for _, id := range []string{"a", "b", "a", "c", "stranger", ""} {
		server.Refused(a, "expired", remote, id)
	}
	for id, want := range map[string]uint64{"a": 2, "b": 0, "c": 1, "stranger": 0, "": 0} {
		if got, _ := server.AccountOf(a, id); got.Refused != want {
			t.Errorf("%q: %d refusals are kept, want %d", id, got.Refused, want)
		}
	}
}

func TestLiveSessionTellsItsTLSParameters(t *testing.T) {
	h := hubtest.Start(t)
	online(t, h, h.Device("pi-1"))
	d, err := h.Operator().Device(t.Context(), "pi-1")
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Session; s == nil || s.TLS != "TLS 1.3" || s.Suite == "" || s.Curve == "" {
		t.Errorf("session %+v", s)
	}
}

func TestTicketsAreShownAndRotatedByOperators(t *testing.T) {
	h := hubtest.Start(t)
	device, _ := holding(t, h, h.Device("pi-1"), tls.VersionTLS13)
	operator := h.Operator()
	shown, err := operator.Tickets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if shown.Minted != 2 || shown.Accepted != 1 || shown.Fallback != 0 || shown.Rejected != 0 || shown.LifetimeSeconds != 86400 || len(shown.Keys) != 1 || !shown.Keys[0].Seals || shown.Since.IsZero() {
		t.Errorf("tickets %+v", shown)
	}
	rotated, err := operator.RotateTickets(t.Context(), "drill")
	if err != nil {
		t.Fatal(err)
	}
	if len(rotated.Keys) != 2 || rotated.Keys[1].ID != shown.Keys[0].ID || !rotated.Keys[0].Seals || rotated.Keys[1].Seals {
		t.Errorf("rotated to %+v", rotated.Keys)
	}
	dropped, err := operator.DropTickets(t.Context(), "stolen laptop")
	if err != nil {
		t.Fatal(err)
	}
	if len(dropped.Keys) != 1 || dropped.Keys[0].ID == rotated.Keys[0].ID {
		t.Errorf("dropped to %+v", dropped.Keys)
	}
	if mustDial(t, h, device) {
		t.Error("resumed with a ticket of a dropped key")
	}
	if after, err := operator.Tickets(t.Context()); err != nil || after.Rejected == 0 || after.Accepted != 1 || after.Minted != 3 {
		t.Errorf("tickets %+v, %v after one was presented in vain", after, err)
	}
	page, err := operator.Audit(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, r := range page.Records {
		if r.Subject == "ticket keys" {
			said = append(said, r.Action+" "+string(r.Outcome)+" "+r.Reason+" "+r.Detail)
		}
	}
	want := []string{
		"tickets.rotate requested drill ", "tickets.rotate done drill 1 keys before, 2 after",
		"tickets.drop requested stolen laptop ", "tickets.drop done stolen laptop 2 keys before, 1 after",
	}
	if strings.Join(said, "\n") != strings.Join(want, "\n") {
		t.Errorf("the audit log says %q, want %q", said, want)
	}
}
