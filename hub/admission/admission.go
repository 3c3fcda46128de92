// Package admission answers: may this peer connect now? It holds a peer whose
// certificate package mtls found good against the device registry, and a
// CONNECT packet against the identity that sent it.
//
// It does no I/O, so it can run inside a TLS handshake.
package admission

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/registry"
)

// The reasons that the registry and a CONNECT packet can give, besides those of
// the certificate alone in package mtls.
const (
	ReasonUnknownDevice      mtls.Reason = "unknown-device"
	ReasonUnknownCertificate mtls.Reason = "certificate-unknown"
	ReasonSuspended          mtls.Reason = "suspended"
	ReasonRevoked            mtls.Reason = "revoked"
	ReasonState              mtls.Reason = "not-admitted" // any other state than those that may connect
	ReasonQuarantined        mtls.Reason = "quarantined"
	ReasonKeyProtection      mtls.Reason = "key-protection"
	ReasonClientIdentifier   mtls.Reason = "client-identifier"
	ReasonWill               mtls.Reason = "will-not-authorized"
)

// Refusal is the error of everything that is refused here. It is the type of
// package mtls, so that one look finds the reason wherever it arose.
type Refusal = mtls.Refusal

// Devices is what admission needs of the fleet, from memory. fleet.Fleet satisfies
// it.
type Devices interface {
	// Status returns the status of a device, false if there is none of that ID.
	Status(id string) (registry.Status, bool)
	// TrustsIssuer reports whether a certificate by that CA is still accepted. A
	// handshake may have ended just before it no longer was.
	TrustsIssuer(ca *x509.Certificate) bool
}

// Admission decides for one hub. It is immutable and safe for concurrent use.
type Admission struct {
	devices Devices
	allow   func(policy.Subject, policy.Action, string) policy.Decision
}

// New returns an Admission over the devices of a fleet. allow is the policy; nil:
// policy.Allow.
func New(devices Devices, allow func(policy.Subject, policy.Action, string) policy.Decision) *Admission {
	if allow == nil {
		allow = policy.Allow
	}
	return &Admission{devices, allow}
}

// Check returns nil if the peer may connect over MQTT now, else a *Refusal. A
// device must be registered, in a state that may connect, and present a
// certificate that is registered for it and not revoked or superseded; where its model's
// keys must be in a TPM, the certificate says that this one is. A
// service needs no registration: its certificate is the registration. No other
// role has business on MQTT. The issuer of either must be trusted now.
//
// It runs in the handshake, full or resumed; after session.Table.Track; and at
// CONNECT.
func (a *Admission) Check(peer mtls.Peer) error {
	id := peer.Identity
	if id.Role != identity.RoleDevice && id.Role != identity.RoleService {
		return refuse(id, mtls.ReasonRole, "%s certificates are not accepted over MQTT", id.Role)
	}
	if peer.Issuer == nil || !a.devices.TrustsIssuer(peer.Issuer) {
		return refuse(id, mtls.ReasonUnknownIssuer, "the issuing CA of the certificate of %s is no longer trusted", id.ID)
	}
	if id.Role == identity.RoleService {
		return nil
	}
	status, known := a.devices.Status(id.ID)
	switch {
	case !known:
		return refuse(id, ReasonUnknownDevice, "device %s is not registered: import the manifest that names it", id.ID)
	case status.State == registry.StateRevoked:
		return refuse(id, ReasonRevoked, "device %s is revoked", id.ID)
	case status.State == registry.StateSuspended:
		return refuse(id, ReasonSuspended, "device %s is suspended", id.ID)
	case status.State == registry.StateQuarantined:
		return refuse(id, ReasonQuarantined, "device %s waits for approval: no manifest has named it yet, and no operator approved it", id.ID)
	case !status.State.MayConnect():
		return refuse(id, ReasonState, "device %s is in state %q, which may not connect", id.ID, status.State)
	case peer.Certificate == nil || !status.Admits(peer.Fingerprint()):
		return refuse(id, ReasonUnknownCertificate, "the certificate presented is not one that is registered for device %s", id.ID)
	case status.NeedsTPM && identity.ProtectionOf(peer.Certificate) != identity.ProtectionTPM:
		return refuse(id, ReasonKeyProtection, "keys of the model %.64s must be in a TPM, and the certificate of device %s doesn't say that its key is", status.Model, id.ID)
	}
	return nil
}

// Connect is what CheckConnect needs of a CONNECT packet.
type Connect struct {
	ClientID  string
	Will      bool
	WillTopic string // if Will
}

// CheckConnect returns nil if the peer may connect with that client identifier
// and that will, else a *Refusal. A device's client identifier is its ID; a
// service's is its ID, or its ID, a colon and anything printable, so that one
// service can have several sessions. Sessions therefore belong to identities
// and can't be taken by a client that merely knows a name. A will is a publish
// that the hub makes later in the peer's name, so it must be allowed as one.
func (a *Admission) CheckConnect(peer mtls.Peer, subject policy.Subject, c Connect) error {
	id := peer.Identity
	if !ownClientID(id, c.ClientID) {
		want := id.ID
		if id.Role == identity.RoleService {
			want += " or " + id.ID + ":…"
		}
		return refuse(id, ReasonClientIdentifier, "client identifier %.80q is not that of the %s certificate: use %s", c.ClientID, id.Role, want)
	}
	if !c.Will {
		return nil
	}
	if d := a.allow(subject, policy.Publish, c.WillTopic); !d.Allowed {
		return refuse(id, ReasonWill, "%s may not publish to its will topic %.120q (%s)", id.ID, c.WillTopic, d.Rule)
	}
	return nil
}

// maxClientID bounds a client identifier; 23 bytes is what every server must
// take [MQTT-3.1.3-5].
const maxClientID = 256

func ownClientID(id identity.Identity, clientID string) bool {
	if clientID == id.ID {
		return id.ID != ""
	}
	if id.Role != identity.RoleService || len(clientID) > maxClientID {
		return false
	}
	suffix, ok := strings.CutPrefix(clientID, id.ID+":")
	if !ok {
		return false
	}
	for _, r := range suffix {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return false
		}
	}
	return true
}

func refuse(id identity.Identity, reason mtls.Reason, format string, args ...any) error {
	return &Refusal{Reason: reason, Identity: id, Detail: fmt.Sprintf(format, args...)}
}
