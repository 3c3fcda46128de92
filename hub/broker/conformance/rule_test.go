package conformance

import (
	"flag"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/hub/wire"
)

// TestMain lets many rules run at once, for most of their time is waiting.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// rule is one obligation of a server and its test.
type rule struct {
	v311, v5 string // the numbers it has in each version, separated by spaces; "" where it has none
	check    func(*exam)
}

// numbers returns the rule's numbers in a version.
func (r rule) numbers(version byte) []string {
	if version == wire.V5 {
		return strings.Fields(r.v5)
	}
	return strings.Fields(r.v311)
}

// theme is a chapter of rules.
type theme struct {
	name  string
	rules []rule
}

func themes() []theme {
	return []theme{
		{"data", dataRules()},
		{"identifier", identifierRules()},
		{"connect", connectRules()},
		{"connack", connackRules()},
		{"session", sessionRules()},
		{"will", willRules()},
		{"publish", publishRules()},
		{"alias", aliasRules()},
		{"property", propertyRules()},
		{"retain", retainRules()},
		{"qos", qosRules()},
		{"delivery", deliveryRules()},
		{"order", orderRules()},
		{"flow", flowRules()},
		{"size", sizeRules()},
		{"subscribe", subscribeRules()},
		{"unsubscribe", unsubscribeRules()},
		{"share", shareRules()},
		{"topic", topicRules()},
		{"disconnect", disconnectRules()},
		{"auth", authRules()},
		{"expiry", expiryRules()},
		{"unnumbered", unnumberedRules()},
	}
}

// versionName is a protocol version as test names say it.
func versionName(version byte) string {
	if version == wire.V5 {
		return "5.0"
	}
	return "3.1.1"
}

func TestConformance(t *testing.T) { examine(t, start(t), themes()) }

// examine runs every rule of the themes against a hub.
func examine(t *testing.T, h *hub, themes []theme) {
	t.Helper()
	for _, theme := range themes {
		t.Run(theme.name, func(t *testing.T) {
			t.Parallel()
			for _, version := range []byte{wire.V311, wire.V5} {
				t.Run(versionName(version), func(t *testing.T) {
					for _, rule := range theme.rules {
						for _, number := range rule.numbers(version) {
							t.Run(number, func(t *testing.T) {
								t.Parallel()
								rule.check(&exam{T: t, hub: h, version: version})
							})
						}
					}
				})
			}
		})
	}
}
