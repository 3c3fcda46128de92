package admin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
)

// Role is what an operator may do, each role all that the one before it may. It is an
// organizational unit of the operator's certificate, or stands for a claim of a token.
type Role int

// The roles. A certificate that names none is a viewer's.
const (
	Viewer   Role = iota // sees everything, changes nothing
	Operator             // and cuts off, lifts, labels and registers devices
	Admin                // and brings devices back, and changes trust and keys
)

var roleNames = []string{"viewer", "operator", "admin"}

// String returns the role's name, which is what the certificate's organizational unit
// says.
func (r Role) String() string { return roleNames[r] }

// ParseRole returns the role of that name.
func ParseRole(name string) (Role, error) {
	i := slices.Index(roleNames, name)
	if i < 0 {
		return 0, fmt.Errorf("%.40q is none of %s", name, strings.Join(roleNames, ", "))
	}
	return Role(i), nil
}

// RoleOf returns the role of an operator: the highest that the certificate names.
func RoleOf(id identity.Identity) Role {
	for _, role := range []Role{Admin, Operator} {
		if slices.Contains(id.OU, role.String()) {
			return role
		}
	}
	return Viewer
}
