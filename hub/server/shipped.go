package server

import (
	"bytes"
	_ "embed"
	"text/template"
)

//go:embed hub.yaml
var shipped string

// ShippedConfig returns the commented hub.yaml that says what DefaultConfig says, for
// that trust domain.
func ShippedConfig(trustDomain string) ([]byte, error) {
	t, err := template.New(ConfigFile).Parse(shipped)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct{ TrustDomain string }{trustDomain})
	return b.Bytes(), err
}
