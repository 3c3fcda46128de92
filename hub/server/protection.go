package server

import (
	"fmt"
	"maps"
	"slices"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/registry"
)

// KeyProtectionConfig says of models what is demanded of their devices' keys: any, or
// tpm. The model OtherModels is each that isn't named; without it their keys may be
// anywhere. It isn't in the environment.
type KeyProtectionConfig map[string]string

// OtherModels is the model in a KeyProtectionConfig that stands for all that it doesn't
// name.
const OtherModels = "*"

const (
	protectionAny = "any"
	protectionTPM = string(identity.ProtectionTPM)
)

// check returns an error that names the first demand that can't be made.
func (c KeyProtectionConfig) check() error {
	for _, model := range slices.Sorted(maps.Keys(c)) {
		if demand := c[model]; demand != protectionAny && demand != protectionTPM {
			return fmt.Errorf("key_protection: %.80q is demanded of the keys of the model %.80q; it is any or tpm", demand, model)
		}
		if model == "" {
			return fmt.Errorf("key_protection: a demand has no model; %q is all that aren't named", OtherModels)
		}
	}
	return nil
}

// needsTPM reports whether a device of that model connects only with a certificate that
// says that its key is in a TPM.
func (c KeyProtectionConfig) needsTPM(model string) bool {
	if len(c) == 0 {
		return false
	}
	demand, named := c[model]
	if !named || model == OtherModels {
		demand = c[OtherModels]
	}
	return demand == protectionTPM
}

// unprotected says what keeps a device out whose certificate is good, but for where its
// key may be; "" if nothing does.
func (h *Hub) unprotected(d *registry.Device, c registry.Certificate) string {
	if !h.config.KeyProtection.needsTPM(d.Model) || c.Protection() == identity.ProtectionTPM {
		return ""
	}
	return fmt.Sprintf("%s is %s, but keys of the model %s must be in a TPM (key_protection), and its certificate %s doesn't say that its key is: have it renew with its TPM's word, or replaced at a station",
		d.ID, d.State, d.Model, c.Serial)
}
