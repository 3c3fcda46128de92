package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// compact are the characters of a JWS in compact form, RFC 7515 §7.1.
const compact = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."

// tokenOf returns the request's token. Present is true for whatever credentials are there.
func tokenOf(r *http.Request) (raw string, present bool, err error) {
	list := r.Header.Values("Authorization")
	if len(list) == 0 {
		return "", false, nil
	}
	scheme, raw, _ := strings.Cut(list[0], " ")
	raw = strings.TrimSpace(raw)
	if len(list) > 1 || !strings.EqualFold(scheme, "Bearer") || raw == "" || strings.Trim(raw, compact) != "" {
		return "", true, errors.New("the Authorization header is not of the form Bearer TOKEN")
	}
	return raw, true, nil
}

// byToken verifies who a token is about. A problem of it has the status that the answer gets.
func (a *api) byToken(r *http.Request) (caller, error) {
	raw, _, err := tokenOf(r)
	switch {
	case err != nil:
		return caller{}, problem(http.StatusUnauthorized, codeToken, err.Error())
	case len(r.TLS.PeerCertificates) > 0:
		// Which of the two would the audit log name?
		return caller{}, problem(http.StatusForbidden, "two-identities", "the request has a certificate and a token; a request is made in one name, so send one of them")
	case a.config.Tokens == nil:
		return caller{}, problem(http.StatusUnauthorized, codeToken, "this hub takes no tokens; use an operator's certificate, or have oidc set up in its hub.yaml")
	}
	t := a.config.Tokens
	b, err := t.verify(r.Context(), raw)
	switch {
	case errors.Is(err, errProvider):
		return caller{}, problem(http.StatusServiceUnavailable, codeProvider, "the token can't be judged now: "+err.Error()+"; ask again, or use an operator's certificate")
	case errors.Is(err, errNoRole):
		return caller{}, problem(http.StatusForbidden, codeRole, "the token is good, but "+err.Error())
	case err != nil:
		return caller{}, problem(http.StatusUnauthorized, codeToken, "the token is not accepted: "+err.Error())
	}
	return caller{
		name: "oidc:" + t.config.Issuer + "#" + b.subject, short: b.name, role: b.role,
		means: func(wanted Role) string {
			values := []string{}
			for value, role := range t.config.Roles {
				if role >= wanted {
					values = append(values, value)
				}
			}
			slices.Sort(values)
			return fmt.Sprintf("the claim %s of the token; it takes one of %q there", t.config.RoleClaim, values)
		},
		again: func() error {
			_, err := t.verify(context.WithoutCancel(r.Context()), raw)
			return err
		},
	}, nil
}
