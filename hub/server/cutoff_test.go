package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// versions are the ones the hub speaks.
var versions = []uint16{tls.VersionTLS13, tls.VersionTLS12}

// holding returns a TLS configuration of that version with a ticket in hand, which it
// keeps however often it is used: what a thief would do.
func holding(t *testing.T, h *hubtest.Hub, c certtest.Credential, version uint16) (config *tls.Config, ticket *kept) {
	t.Helper()
	ticket = &kept{}
	config = c.ClientConfig()
	config.MinVersion, config.MaxVersion, config.ClientSessionCache = version, version, ticket
	for i, resumed := range []bool{false, true} {
		if got := mustDial(t, h, config); got != resumed {
			t.Fatalf("connection %d of %s: resumed %v", i, c.Identity.ID, got)
		}
	}
	return config, ticket
}

// mustDial reports whether the connection was a resumption.
func mustDial(t *testing.T, h *hubtest.Hub, config *tls.Config) (resumed bool) {
	t.Helper()
	c, err := dial(h.MQTTAddr(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().DidResume
}

// cutoffs are the ways in which a device that may connect ceases to be one.
var cutoffs = []struct {
	name   string
	device func(h *hubtest.Hub) certtest.Credential // nil: a registered one
	cut    func(t *testing.T, h *hubtest.Hub, device certtest.Credential)
	reason string // in the hub's log
}{
	{"revoked", nil, func(t *testing.T, h *hubtest.Hub, _ certtest.Credential) {
		must1(h.Operator().Revoke(t.Context(), "pi-1", revocation.KeyCompromise))(t)
	}, "revoked"},
	{"suspended", nil, func(t *testing.T, h *hubtest.Hub, _ certtest.Credential) {
		must1(h.Operator().Suspend(t.Context(), "pi-1", "stolen"))(t)
	}, "suspended"},
	{"expired since", func(h *hubtest.Hub) certtest.Credential {
		d := h.Fleet.Device("pi-1", certtest.WithValidity(time.Now().Add(-time.Hour), 2*time.Hour))
		h.Register(d)
		return d
	}, func(_ *testing.T, h *hubtest.Hub, _ certtest.Credential) { h.Advance(2 * time.Hour) }, "expired"},
	{"certificate replaced", nil, func(_ *testing.T, h *hubtest.Hub, device certtest.Credential) {
		h.Supersede(device, h.Fleet.Device("pi-1"))
	}, "certificate-unknown"},
	{"issuer removed by an operator", nil, func(t *testing.T, h *hubtest.Hub, _ certtest.Credential) {
		must1(h.Operator().RemoveIssuer(t.Context(), certtest.StationName, "drill"))(t)
	}, "unknown-issuer"},
	{"issuer's file removed", nil, func(t *testing.T, h *hubtest.Hub, _ certtest.Credential) {
		removeIssuerFile(t, h)
		h.Server().Reload()
	}, "unknown-issuer"},
}

func must1[T any](_ T, err error) func(*testing.T) {
	return func(t *testing.T) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever is cut off holds a ticket that was good a moment ago. It opens nothing, nor
// does a full handshake, before and after a restart of the hub; and a bystander with a
// ticket of its own doesn't notice.
func TestTicketInHandOpensNothingOnceCutOff(t *testing.T) {
	for _, cutoff := range cutoffs {
		for _, version := range versions {
			for _, restartFirst := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/restarted between=%v", cutoff.name, tls.VersionName(version), restartFirst), func(t *testing.T) {
					h := hubtest.Start(t)
					device := certtest.Credential{}
					if cutoff.device == nil {
						device = h.Device("pi-1")
					} else {
						device = cutoff.device(h)
					}
					config, ticket := holding(t, h, device, version)
					bystander, _ := holding(t, h, h.Station("bench-2").Device("pi-2"), version)
					if restartFirst {
						h.Restart()
						if !mustDial(t, h, config) {
							t.Fatal("the ticket didn't survive the restart, so nothing is proved")
						}
					}
					stolen := ticket.state
					cutoff.cut(t, h, device)
					for _, when := range []string{"at once", "after a restart"} {
						ticket.state = stolen
						for how, c := range map[string]*tls.Config{"by ticket": config, "without a ticket": without(config)} {
							if conn, err := dial(h.MQTTAddr(), c); err == nil {
								t.Errorf("%s, %s: let in, resumed %v", when, how, conn.ConnectionState().DidResume)
								conn.Close()
							}
						}
						eventually(t, "the log says "+cutoff.reason, func() bool { return strings.Contains(h.Log(), "reason="+cutoff.reason+" id=pi-1") })
						if !mustDial(t, h, bystander) {
							t.Errorf("%s, the bystander's ticket is worthless", when)
						}
						h.Restart()
					}
				})
			}
		}
	}
}

func without(config *tls.Config) *tls.Config {
	full := config.Clone()
	full.ClientSessionCache = nil
	return full
}

// A ticket of one door is nothing at the other: neither an operator's at the device
// door, nor a device's at the operators'.
func TestTicketOfAnotherRoleOpensNothing(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			operatorTicket, deviceTicket := &kept{}, &kept{}
			operator, device := h.Fleet.Operator("ann").ClientConfig(), h.Device("pi-1").ClientConfig()
			operator.ClientSessionCache, device.ClientSessionCache = operatorTicket, deviceTicket
			operator.MaxVersion, device.MaxVersion = version, version
			mustDial(t, h, device)
			if status := get(t, h, operator); status != http.StatusOK {
				t.Fatalf("the operator got %d", status)
			}
			if operatorTicket.state == nil || deviceTicket.state == nil {
				t.Fatal("a ticket is missing")
			}
			for _, when := range []string{"at once", "after a restart"} {
				if c, err := dial(h.MQTTAddr(), operator); err == nil {
					c.Close()
					t.Errorf("%s: an operator is at the device door", when)
				}
				if status := get(t, h, device); status != http.StatusForbidden {
					t.Errorf("%s: a device got %d from the API", when, status)
				}
				h.Restart()
			}
		})
	}
}

// get asks the API for the devices and returns the status of its answer.
func get(t *testing.T, h *hubtest.Hub, config *tls.Config) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: patience}
	r, err := client.Get("https://" + h.HTTPSAddr() + "/v1/devices")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
	return r.StatusCode
}

// A service is in no registry: what opens and closes its door is its issuer and its
// certificate's end.
func TestServiceWithTicketIsRefusedOnceExpired(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			service := h.Fleet.Service("backend", certtest.WithValidity(time.Now().Add(-time.Hour), 2*time.Hour))
			config, _ := holding(t, h, service, version)
			h.Advance(2 * time.Hour)
			for how, c := range map[string]*tls.Config{"by ticket": config, "without a ticket": without(config)} {
				if conn, err := dial(h.MQTTAddr(), c); err == nil {
					conn.Close()
					t.Errorf("%s: let in", how)
				}
			}
		})
	}
}

func issuerFile(h *hubtest.Hub) string {
	return filepath.Join(h.Dir, "issuers", certtest.StationName+".crt")
}

func removeIssuerFile(t *testing.T, h *hubtest.Hub) {
	t.Helper()
	if err := os.Remove(issuerFile(h)); err != nil {
		t.Fatal(err)
	}
}

// A stolen ticket must not become an identity: however often it is resumed, and handed a new one, a chain of resumptions
// ends a ticket's lifetime after the full handshake that began it.
func TestResumptionsEndWithTheLifetimeOfTheFirstTicket(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		for name, certificates := range map[string]int{"compact": 1, "fallback": 3} {
			t.Run(tls.VersionName(version)+" "+name, func(t *testing.T) {
				h := hubtest.Start(t)
				device := h.Device("pi-1")
				for _, c := range h.Fleet.Bundle() {
					device.Certificate.Certificate = append(device.Certificate.Certificate, c.Raw)
				}
				device.Certificate.Certificate = device.Certificate.Certificate[:certificates]
				config := device.ClientConfig()
				config.MaxVersion, config.ClientSessionCache = version, &kept{}
				for i, resumed := range []bool{false, true, true, false, true} {
					c, err := dial(h.MQTTAddr(), config)
					if err != nil {
						t.Fatal(err)
					}
					if got := c.ConnectionState().DidResume; got != resumed {
						t.Fatalf("after %d hours: resumed is %v, want %v", 10*i, got, resumed)
					}
					c.Close()
					h.Advance(10 * time.Hour)
				}
			})
		}
	}
}
