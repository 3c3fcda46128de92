package server

import (
	"crypto/x509"
	"fmt"
	"path/filepath"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
)

// TokenVariable is the environment variable with an operator's token for the commands that
// talk to a hub. It is no setting of hub.yaml.
const TokenVariable = envPrefix + "TOKEN"

// OIDCConfig says whose tokens are good instead of operators' certificates. See admin.OIDC.
type OIDCConfig struct {
	Issuer    string            `yaml:"issuer"` // "": nobody's
	Audience  string            `yaml:"audience"`
	RoleClaim string            `yaml:"role_claim"`
	Roles     map[string]string `yaml:"roles"` // the claim's value → viewer, operator or admin
	NameClaim string            `yaml:"name_claim"`
	CAFile    string            `yaml:"ca_file"` // relative to Dir; "": the machine's list
}

// check returns an error that names the first setting that can't be used.
func (c OIDCConfig) check() error {
	if c.Issuer == "" {
		if c.Audience != "" || c.RoleClaim != "" || len(c.Roles) > 0 || c.CAFile != "" {
			return fmt.Errorf("oidc.issuer: name the provider, or leave out the rest of oidc")
		}
		return nil
	}
	config, err := c.admin()
	if err == nil {
		_, err = admin.NewTokens(config)
	}
	return err
}

// admin returns it in the terms of the API, without what is in files.
func (c OIDCConfig) admin() (admin.OIDC, error) {
	config := admin.OIDC{Issuer: c.Issuer, Audience: c.Audience, RoleClaim: c.RoleClaim, NameClaim: c.NameClaim, Roles: make(map[string]admin.Role, len(c.Roles))}
	for value, name := range c.Roles {
		role, err := admin.ParseRole(name)
		if err != nil {
			return config, fmt.Errorf("oidc.roles: %.80q: %w", value, err)
		}
		config.Roles[value] = role
	}
	return config, nil
}

// openTokens makes what judges tokens, if there is a provider. It doesn't ask it for anything.
func (h *Hub) openTokens() error {
	c := h.config.OIDC
	if c.Issuer == "" {
		return nil
	}
	config, err := c.admin()
	if err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	if config.Now = h.now; c.CAFile != "" {
		path := c.CAFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(h.config.Dir, path)
		}
		list, err := pemfile.ReadCertificates(path)
		if err != nil {
			return command.WithCode(command.BadConfig, fmt.Errorf("oidc.ca_file: %w", err))
		}
		config.Roots = x509.NewCertPool()
		for _, ca := range list {
			config.Roots.AddCert(ca)
		}
	}
	h.tokens, err = admin.NewTokens(config)
	return command.WithCode(command.BadConfig, err)
}
