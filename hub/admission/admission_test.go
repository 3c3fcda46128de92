package admission

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/registry"
)

type devices map[string]registry.Status

func (d devices) Status(id string) (registry.Status, bool) {
	s, ok := d[id]
	return s, ok
}

func (d devices) TrustsIssuer(ca *x509.Certificate) bool { return ca.Subject.CommonName != "removed" }

func peer(c certtest.Credential) mtls.Peer {
	return mtls.Peer{Identity: c.Identity, Certificate: c.Leaf, Issuer: c.Issuer}
}

func reason(t *testing.T, err error) mtls.Reason {
	t.Helper()
	if err == nil {
		return ""
	}
	r, ok := errors.AsType[*Refusal](err)
	if !ok {
		t.Fatalf("%v is no *Refusal", err)
	}
	return r.Reason
}

func TestCheck(t *testing.T) {
	pki := certtest.New(t)
	pi := pki.Device("pi-1")
	other := pki.Device("pi-1") // same name, another certificate
	proved, plain := pki.Device("pi-5", certtest.WithTPM()), pki.Device("pi-5")
	demanding := func(c certtest.Credential) devices {
		return devices{"pi-5": {State: registry.StateActive, NeedsTPM: true, Fingerprints: []registry.Fingerprint{sha256.Sum256(c.Leaf.Raw)}}}
	}
	removed, _ := pki.IssuingCA(identity.KindOperational, "removed")
	known := func(state registry.State) devices {
		return devices{"pi-1": {State: state, Fingerprints: []registry.Fingerprint{sha256.Sum256(pi.Leaf.Raw)}}}
	}
	tests := []struct {
		name    string
		peer    mtls.Peer
		devices devices
		want    mtls.Reason
	}{
		{"registered device", peer(pi), known(registry.StateRegistered), ""},
		{"active device", peer(pi), known(registry.StateActive), ""},
		{"suspended device", peer(pi), known(registry.StateSuspended), ReasonSuspended},
		{"revoked device", peer(pi), known(registry.StateRevoked), ReasonRevoked},
		{"quarantined device", peer(pi), known(registry.StateQuarantined), ReasonQuarantined},
		{"key in a TPM, as its model demands", peer(proved), demanding(proved), ""},
		{"key anywhere, against its model's demand", peer(plain), demanding(plain), ReasonKeyProtection},
		{"another certificate of that name, against its model's demand", peer(plain), demanding(proved), ReasonUnknownCertificate},
		{"state of a later version", peer(pi), known("retired"), ReasonState},
		{"unknown device", peer(pi), devices{}, ReasonUnknownDevice},
		{"another certificate of that name", peer(other), known(registry.StateActive), ReasonUnknownCertificate},
		{"no certificate", mtls.Peer{Identity: pi.Identity, Issuer: pi.Issuer}, known(registry.StateActive), ReasonUnknownCertificate},
		{"service", peer(pki.Service("backend")), devices{}, ""},
		{"service with a device's ID", peer(pki.Service("pi-1")), known(registry.StateRevoked), ""},
		{"device of a removed issuer", peer(pki.Device("pi-1", certtest.WithIssuer(removed))), known(registry.StateActive), mtls.ReasonUnknownIssuer},
		{"service of a removed issuer", peer(pki.Service("backend", certtest.WithIssuer(removed))), devices{}, mtls.ReasonUnknownIssuer},
		{"no issuer", mtls.Peer{Identity: pi.Identity, Certificate: pi.Leaf}, known(registry.StateActive), mtls.ReasonUnknownIssuer},
		{"operator", peer(pki.Operator("alice")), devices{}, mtls.ReasonRole},
		{"hub", peer(pki.Server()), devices{}, mtls.ReasonRole},
		{"nobody", mtls.Peer{}, devices{}, mtls.ReasonRole},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := reason(t, New(tt.devices, nil).Check(tt.peer)); got != tt.want {
				t.Errorf("reason %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckConnect(t *testing.T) {
	device := mtls.Peer{Identity: identity.Identity{Role: identity.RoleDevice, ID: "pi-1"}}
	service := mtls.Peer{Identity: identity.Identity{Role: identity.RoleService, ID: "backend"}}
	tests := []struct {
		name    string
		peer    mtls.Peer
		connect Connect
		want    mtls.Reason
	}{
		{"device's own", device, Connect{ClientID: "pi-1"}, ""},
		{"another device's", device, Connect{ClientID: "pi-2"}, ReasonClientIdentifier},
		{"other case", device, Connect{ClientID: "PI-1"}, ReasonClientIdentifier},
		{"empty", device, Connect{}, ReasonClientIdentifier},
		{"device with suffix", device, Connect{ClientID: "pi-1:2"}, ReasonClientIdentifier},
		{"service's own", service, Connect{ClientID: "backend"}, ""},
		{"service with suffix", service, Connect{ClientID: "backend:worker/1"}, ""},
		{"service with empty suffix", service, Connect{ClientID: "backend:"}, ""},
		{"service as a device", service, Connect{ClientID: "pi-1"}, ReasonClientIdentifier},
		{"service with a longer name", service, Connect{ClientID: "backend2"}, ReasonClientIdentifier},
		{"control character", service, Connect{ClientID: "backend:\n"}, ReasonClientIdentifier},
		{"too long", service, Connect{ClientID: "backend:" + strings.Repeat("x", 256)}, ReasonClientIdentifier},
		{"will on an own topic", device, Connect{ClientID: "pi-1", Will: true, WillTopic: "d/pi-1/evt/offline"}, ""},
		{"will on another's topic", device, Connect{ClientID: "pi-1", Will: true, WillTopic: "d/pi-2/evt/offline"}, ReasonWill},
		{"will on a command", device, Connect{ClientID: "pi-1", Will: true, WillTopic: "d/pi-1/cmd/reboot/1"}, ReasonWill},
		{"will on presence", device, Connect{ClientID: "pi-1", Will: true, WillTopic: "presence/pi-1"}, ReasonWill},
		{"will on a wildcard", device, Connect{ClientID: "pi-1", Will: true, WillTopic: "d/pi-1/evt/#"}, ReasonWill},
		{"will on nothing", device, Connect{ClientID: "pi-1", Will: true}, ReasonWill},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			subject := policy.Subject{Role: tt.peer.Identity.Role, ID: tt.peer.Identity.ID}
			if got := reason(t, New(devices{}, nil).CheckConnect(tt.peer, subject, tt.connect)); got != tt.want {
				t.Errorf("reason %q, want %q", got, tt.want)
			}
		})
	}
}
