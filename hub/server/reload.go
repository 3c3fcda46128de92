package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// Reload opens the issuing keys anew at their next use, and reads the server certificate,
// the trust (ca.crt, the hub's issuing CAs, issuers/), the policy, and what of hub.yaml is
// said there to be reloaded, again. Each is taken up or, if it can't be used, stays as it
// was, with a line in the log. Connections whose trust is unchanged don't notice; those by
// an issuer that is gone are cut.
func (h *Hub) Reload() {
	daemon.SdNotify(false, daemon.SdNotifyReloading)
	defer daemon.SdNotify(false, daemon.SdNotifyReady)
	report := func(what string, err error) {
		if err != nil {
			h.log.Error("not reloaded, the former stays in force", "what", what, "error", err)
			return
		}
		h.log.Info("reloaded", "what", what)
	}
	h.keys.cache.Forget() // a token may have been put back
	report("server certificate", h.reloadCertificate())
	h.decideChain()
	report("trust", h.reloadTrust(context.Background()))
	if err := h.renewCertificate(h.now()); err != nil { // by a new issuing CA, perhaps
		h.log.Error("server certificate not renewed", "error", err)
	}
	report("policy", h.reloadPolicy(context.Background()))
	report("settings", h.reloadSettings())
}

// reloadCertificate takes up the server certificate and key if a device could accept
// them: a slip of the hand must not cost a running hub its fleet.
func (h *Hub) reloadCertificate() error {
	candidate, err := mtls.NewReloader(h.serverFile(".crt"), h.serverFile(".key"))
	if err != nil {
		return err
	}
	c, err := candidate.Certificate()
	if err != nil {
		return err
	}
	now := h.now()
	if err := expired(c, now, h.serverFile(".crt")); err != nil {
		return err
	}
	if now.Before(c.Leaf.NotBefore) {
		return fmt.Errorf("the server certificate %s is valid from %s only", h.serverFile(".crt"), c.Leaf.NotBefore.Format(time.RFC3339))
	}
	id, err := identity.FromCertificate(c.Leaf)
	if err != nil {
		return fmt.Errorf("the server certificate %s is no hub's: %w", h.serverFile(".crt"), err)
	}
	if id.Role != identity.RoleHub || id.TrustDomain != h.config.TrustDomain {
		return fmt.Errorf("the server certificate %s is of %s, not of a hub of %s", h.serverFile(".crt"), id, h.config.TrustDomain)
	}
	bundle, err := pemfile.ReadCertificates(filepath.Join(h.config.Dir, "ca.crt"))
	if err != nil {
		return err
	}
	if err := chains(c, bundle, now); err != nil {
		return fmt.Errorf("the server certificate %s is by no CA of the trust bundle ca.crt that devices have: %w", h.serverFile(".crt"), err)
	}
	return h.certificate.Reload()
}

// chains verifies a server certificate as a device does, with what it presents itself.
func chains(c *tls.Certificate, bundle []*x509.Certificate, now time.Time) error {
	roots, presented := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range bundle {
		roots.AddCert(ca)
	}
	for _, der := range c.Certificate[1:] {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		presented.AddCert(ca)
	}
	_, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: presented, CurrentTime: now})
	return err
}

// reloadSettings takes up what of hub.yaml can change without a restart, and names what
// else has changed in it: the rest is bound to sockets and sizes chosen at the start.
func (h *Hub) reloadSettings() error {
	config, err := LoadConfig(h.config.Dir, os.Environ())
	if err != nil {
		return err
	}
	level, err := parseLevel(config.Log.Level)
	if err != nil {
		return err
	}
	h.level.Set(level)
	if err := h.sinks.Apply(context.Background(), config.Sinks); err != nil {
		return err
	}
	if err := h.tickets.SetLifetime(config.MQTT.TicketLifetime); err != nil {
		return err
	}
	h.newcomers.set(config)
	h.reloadProtection(context.Background(), config.KeyProtection)
	h.mqtt.SetLimits(config.MQTT.MaxConnections, config.MQTT.Limits.listener())
	h.mqtt.Negotiate(mtls.ServerConfig(mtls.ServerOptions{Profile: mtls.Profile(config.MQTT.TLSProfile)}))
	former, next := h.filed, config
	for _, c := range []*Config{&former, &next} {
		c.Log.Level, c.Sinks = "", nil
		c.KeyProtection, c.Admission, c.JustInTime = nil, "", JustInTimeConfig{}
		c.MQTT.TicketLifetime, c.MQTT.MaxConnections, c.MQTT.Limits, c.MQTT.TLSProfile = 0, 0, LimitsConfig{}, ""
	}
	if keys := changed(reflect.ValueOf(former), reflect.ValueOf(next), ""); len(keys) > 0 {
		h.log.Warn("settings changed that need a restart; until then the hub goes on as before", "keys", strings.Join(keys, ", "))
	}
	return nil
}

// changed returns the keys of hub.yaml by which two configurations differ.
func changed(a, b reflect.Value, prefix string) (keys []string) {
	for i := range a.NumField() {
		tag := a.Type().Field(i).Tag.Get("yaml")
		if tag == "-" {
			continue
		}
		if kind := a.Field(i).Kind(); kind == reflect.Map || kind == reflect.Slice {
			if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
				keys = append(keys, prefix+tag)
			}
			continue
		}
		if a.Field(i).Kind() == reflect.Struct {
			keys = append(keys, changed(a.Field(i), b.Field(i), prefix+tag+".")...)
		} else if !a.Field(i).Equal(b.Field(i)) {
			keys = append(keys, prefix+tag)
		}
	}
	return keys
}
