package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/fleet"
)

// caller is who makes a request, as the API has verified it.
type caller struct {
	name  string // for the audit log: a SPIFFE ID, or oidc:ISSUER#SUBJECT
	short string // for a person
	role  Role
	means func(wanted Role) string // where the role comes from, and how to get that one

	// again judges whoever it is once more: a stream must not outlive the right to it.
	again func() error
}

// callerKey is the context key of the verified caller.
type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who makes the request. Nobody gets behind ServeHTTP without being
// verified.
func callerOf(r *http.Request) caller { return r.Context().Value(callerKey{}).(caller) }

// actor is who the audit log names for the request.
func actor(r *http.Request) fleet.Actor {
	return fleet.Actor{Name: callerOf(r).name, Address: r.RemoteAddr}
}

// ServeHTTP admits operators, and stations with their manifests, and nobody else.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site": // not even to read: nothing here is a page
		writeProblem(w, problem(http.StatusForbidden, "cross-origin", "the request comes from another web site"))
		return
	}
	if a.config.Fleet == nil || a.config.Verifier == nil || r.TLS == nil {
		a.deny(w, r, "the API is not set up to recognize operators")
		return
	}
	var c caller
	var err error
	if _, present, _ := tokenOf(r); present {
		c, err = a.byToken(r)
	} else if a.serveStation(w, r) {
		return
	} else {
		c, err = a.byCertificate(r)
	}
	if err != nil {
		a.turnAway(w, r, err)
		return
	}
	a.handler.ServeHTTP(w, r.WithContext(withCaller(r.Context(), c)))
}

// byCertificate verifies the operator's certificate of the connection, whatever the TLS
// configuration in front of the API has let in.
func (a *api) byCertificate(r *http.Request) (caller, error) {
	peer, err := a.config.Verifier.Verify(*r.TLS, identity.RoleOperator)
	if err != nil {
		return caller{}, err
	}
	return caller{
		name: peer.Identity.String(), short: peer.Identity.ID, role: RoleOf(peer.Identity),
		means: func(wanted Role) string {
			return fmt.Sprintf("the organizational unit of the certificate; one with another is made by `hub operator issue NAME --ou %s`", wanted)
		},
		again: func() error {
			_, err := a.config.Verifier.Verify(*r.TLS, identity.RoleOperator)
			return err
		},
	}, nil
}

// turnAway answers whoever isn't known.
func (a *api) turnAway(w http.ResponseWriter, r *http.Request, err error) {
	p, ok := errors.AsType[*Problem](err)
	if !ok && a.config.Tokens != nil && len(r.TLS.PeerCertificates) == 0 {
		p, ok = problem(http.StatusUnauthorized, codeToken, "the request has neither an operator's certificate nor a token (Authorization: Bearer)"), true
	}
	if !ok {
		a.deny(w, r, err.Error())
		return
	}
	a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "reason", p.Detail)
	switch p.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="fleethub"`) // RFC 6750 §3
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(int(fetchInterval.Seconds())))
	}
	writeProblem(w, p)
}

func (a *api) deny(w http.ResponseWriter, r *http.Request, why string) {
	a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "reason", why)
	writeProblem(w, problem(http.StatusForbidden, codeDenied, "an operator's certificate is required: "+why))
}
