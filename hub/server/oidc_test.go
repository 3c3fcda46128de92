package server_test

import (
	"io"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

func TestBadProviderIsBadConfiguration(t *testing.T) {
	good := hubtest.Start(t)
	for name, tt := range map[string]struct {
		change func(*server.OIDCConfig)
		say    string
	}{
		"in the clear": {func(c *server.OIDCConfig) { c.Issuer = "http://login.example" }, "oidc.issuer"},
		"no issuer":    {func(c *server.OIDCConfig) { c.Issuer = "" }, "oidc.issuer"},
		"no audience":  {func(c *server.OIDCConfig) { c.Audience = "" }, "oidc.audience"},
		"no such role": {func(c *server.OIDCConfig) { c.Roles["ops"] = "root" }, `"root" is none of viewer, operator, admin`},
		"no roles":     {func(c *server.OIDCConfig) { c.Roles = nil }, "oidc.roles"},
		"no CA file":   {func(c *server.OIDCConfig) { c.CAFile = "missing.pem" }, "oidc.ca_file"},
		"no CA in it":  {func(c *server.OIDCConfig) { c.CAFile = "tls/server.key" }, "oidc.ca_file"},
	} {
		config := server.DefaultConfig(good.Dir)
		config.OIDC = server.OIDCConfig{Issuer: "https://login.example", Audience: "hub", RoleClaim: "groups", Roles: map[string]string{"fleet": "operator"}}
		tt.change(&config.OIDC)
		h, err := server.New(config, io.Discard)
		if err == nil {
			h.Close()
		}
		if command.Code(err) != command.BadConfig || err == nil || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v (%d)", name, err, command.Code(err))
		}
	}
}
