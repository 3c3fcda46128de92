package issuance

import (
	"crypto/x509"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
)

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// Profile is what all certificates of one kind have in common. Profiles are made
// here and nowhere else, so their fields are not exported.
type Profile struct {
	name        string
	role        identity.Role // "" for CAs
	extKeyUsage []x509.ExtKeyUsage
	serverNames bool
	valid       time.Duration
	maxValid    time.Duration
}

// String returns the profile's name.
func (p Profile) String() string { return p.name }

// lifetime returns the wanted lifetime, the profile's own for 0, its maximum at most.
func (p Profile) lifetime(want time.Duration) time.Duration {
	if want == 0 {
		want = p.valid
	}
	return min(want, p.maxValid)
}

// DeviceProfile is for a board: TLS client, 10 years by default and at most.
func DeviceProfile() Profile {
	return Profile{name: "device", role: identity.RoleDevice, extKeyUsage: client(), valid: 10 * year, maxValid: 10 * year}
}

// ServiceProfile is for a backend application: TLS client, one year.
func ServiceProfile() Profile {
	return Profile{name: "service", role: identity.RoleService, extKeyUsage: client(), valid: year, maxValid: 2 * year}
}

// OperatorProfile is for a person at the API: TLS client, 90 days.
func OperatorProfile() Profile {
	return Profile{name: "operator", role: identity.RoleOperator, extKeyUsage: client(), valid: 90 * day, maxValid: year}
}

// StationProfile is for a factory station that sends its manifests to the hub itself:
// TLS client, one year.
func StationProfile() Profile {
	return Profile{name: "station", role: identity.RoleStation, extKeyUsage: client(), valid: year, maxValid: 2 * year}
}

// ServerProfile is for a hub node: TLS server, with host names, one year.
func ServerProfile() Profile {
	return Profile{name: "server", role: identity.RoleHub, extKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, serverNames: true, valid: year, maxValid: 2 * year}
}

// FactoryIssuerProfile is for a station's issuing CA. Its extended key usage bounds
// what it can issue to TLS clients, for every verifier that nests them.
func FactoryIssuerProfile() Profile {
	return Profile{name: "factory issuer", extKeyUsage: client(), valid: 90 * day, maxValid: 20 * year}
}

// OperationalIssuerProfile is for the hub's issuing CA: clients and servers, five years.
func OperationalIssuerProfile() Profile {
	return Profile{name: "operational issuer", extKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, valid: 5 * year, maxValid: 20 * year}
}

// RootProfile is for the offline root, 25 years.
func RootProfile() Profile {
	return Profile{name: "root", valid: 25 * year, maxValid: 30 * year}
}

func client() []x509.ExtKeyUsage { return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// Lifetime returns the lifetime of a certificate when none is asked for.
func (p Profile) Lifetime() time.Duration { return p.valid }
