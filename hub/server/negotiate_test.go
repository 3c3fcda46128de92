package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

// The name in a ClientHello selects nothing: the hub presents the same certificate, and
// it is the client who refuses a hub of another name.
func TestServerNameMismatch(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			config, ticket := holding(t, h, h.Device("pi-1"), version)
			wrong := config.Clone()
			wrong.ServerName = "other.example"
			if c, err := dial(h.MQTTAddr(), without(wrong)); err == nil {
				c.Close()
				t.Error("a client took the hub for another")
			} else if _, ok := errors.AsType[x509.HostnameError](err); !ok {
				t.Errorf("got %v, want a wrong name", err)
			}
			// Nor does its ticket lead a client astray: what it resumed is verified against the name it dialled.
			if c, err := dial(h.MQTTAddr(), wrong); err == nil {
				if c.ConnectionState().DidResume {
					t.Error("a ticket of one name was used under another")
				}
				c.Close()
				t.Error("a client took the hub for another by its ticket")
			}
			if ticket.state == nil {
				t.Fatal("the ticket is lost")
			}
			// A client that doesn't look, or sends no name, is a client like any other.
			for _, name := range []string{"other.example", ""} {
				careless := without(config)
				careless.ServerName, careless.InsecureSkipVerify, careless.VerifyConnection = name, true, nil
				mustDial(t, h, careless)
			}
			mustDial(t, h, config)
		})
	}
}

// The device door offers no application protocols, and so none is agreed on, whatever a
// client offers; the API speaks HTTP/1.1 and ends a handshake that offers other things only.
func TestApplicationProtocolMismatch(t *testing.T) {
	for _, version := range versions {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			h := hubtest.Start(t)
			for _, offer := range [][]string{{"mqtt"}, {"http/1.1"}, {"h2", "x"}} {
				config, _ := holding(t, h, h.Device("d-"+offer[0][:2]), version)
				config.NextProtos = offer
				for _, c := range []*tls.Config{config, without(config)} {
					conn, err := dial(h.MQTTAddr(), c)
					if err != nil {
						t.Fatalf("offering %v: %v", offer, err)
					}
					if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
						t.Errorf("offering %v: agreed on %q", offer, got)
					}
					conn.Close()
				}
			}
			operator := h.Fleet.Operator("ann").ClientConfig()
			operator.MaxVersion, operator.NextProtos = version, []string{"mqtt"}
			if c, err := tls.Dial("tcp", h.HTTPSAddr(), operator); err == nil {
				c.Close()
				t.Error("the API agreed to speak MQTT")
			} else if !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What a board may offer that is older or weaker than the policy is refused, in every
// profile of the hub.
func TestWeakerThanThePolicyIsRefused(t *testing.T) {
	weak := map[string]func(*tls.Config){
		"TLS 1.1":         func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"CBC":             only(tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256),
		"RSA suites":      only(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256),
		"P-521 alone":     func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} },
		"no certificate":  func(c *tls.Config) { c.Certificates = nil },
		"P-384 alone 1.2": func(c *tls.Config) { c.MaxVersion, c.CurvePreferences = tls.VersionTLS12, []tls.CurveID{tls.CurveP384} },
	}
	for _, profile := range []mtls.Profile{mtls.ProfileDefault, mtls.ProfileConstrained, mtls.ProfilePQ} {
		t.Run(string(profile), func(t *testing.T) {
			h := hubtest.Start(t, func(c *server.Config) { c.MQTT.TLSProfile = string(profile) })
			device := h.Device("pi-1")
			mustDial(t, h, device.ClientConfig())
			for name, change := range weak {
				config := device.ClientConfig()
				change(config)
				if c, err := dial(h.MQTTAddr(), config); err == nil {
					c.Close()
					t.Errorf("%s: let in", name)
				}
			}
		})
	}
}

func only(suites ...uint16) func(*tls.Config) {
	return func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, suites }
}
