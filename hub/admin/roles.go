package admin

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// Role is what an operator may do, each role all that the one before it may. It is an
// organizational unit of the operator's certificate.
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

// RoleOf returns the role of an operator: the highest that the certificate names.
func RoleOf(id identity.Identity) Role {
	for _, role := range []Role{Admin, Operator} {
		if slices.Contains(id.OU, role.String()) {
			return role
		}
	}
	return Viewer
}

// route is one endpoint.
type route struct {
	pattern string // method and path, as http.ServeMux has it
	role    Role   // that it takes
}

// handle adds an endpoint for operators of a role and those above. There is no other way
// to add one.
func (a *api) handle(pattern string, role Role, serve http.HandlerFunc) {
	a.routes = append(a.routes, route{pattern, role})
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		peer := r.Context().Value(peerKey{}).(mtls.Peer) // set by ServeHTTP, or we aren't here
		if has := RoleOf(peer.Identity); has < role {
			a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "operator", peer.Identity.ID, "role", has.String(), "needs", role.String())
			writeProblem(w, problem(http.StatusForbidden, codeRole, fmt.Sprintf(
				"this takes the role %s, and %s is %s by the organizational unit of the certificate; one with another is made by `hub operator issue NAME --ou %s`",
				role, peer.Identity.ID, has, role)))
			return
		}
		serve(w, r)
	})
}
