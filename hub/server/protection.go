package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/protocol"
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

// demands is the KeyProtectionConfig in force.
type demands struct {
	current atomic.Pointer[KeyProtectionConfig]
}

func (d *demands) needsTPM(model string) bool {
	c := d.current.Load()
	return c != nil && c.needsTPM(model)
}

// reloadProtection puts other demands in force, and cuts connections of devices that don't
// meet them: first the demands, so that whoever is cut can't come back.
func (h *Hub) reloadProtection(ctx context.Context, c KeyProtectionConfig) {
	former := h.demands.current.Swap(&c)
	if former == nil || !maps.Equal(*former, c) {
		h.cutUnprotected(ctx, nil)
	}
}

// relabelled is told of devices whose labels or models were changed, nil meaning any.
func (h *Hub) relabelled(ids []string) {
	h.policies.relabelled(ids)
	h.cutUnprotected(context.Background(), ids)
}

// cutUnprotected cuts the connections of those devices, nil meaning all, whose model's keys
// must be in a TPM and whose certificate doesn't say that theirs is.
func (h *Hub) cutUnprotected(ctx context.Context, ids []string) {
	if c := h.demands.current.Load(); c == nil || len(*c) == 0 || h.broker == nil {
		return
	}
	among := make(map[string]bool, len(ids))
	for _, id := range ids {
		among[id] = true
	}
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	cut, _ := h.broker.DisconnectPeers(ctx, func(p mtls.Peer) bool {
		if p.Identity.Role != identity.RoleDevice || ids != nil && !among[p.Identity.ID] {
			return false
		}
		refusal, ok := errors.AsType[*mtls.Refusal](h.admission.Check(p))
		return ok && refusal.Reason == admission.ReasonKeyProtection
	}, protocol.ReasonKeyProtection)
	if cut > 0 {
		h.log.Warn("devices are cut off whose keys must be in a TPM", "connections", cut)
	}
}

// unprotected says what keeps a device out whose certificate is good, but for where its
// key may be; "" if nothing does.
func (h *Hub) unprotected(d *registry.Device, c registry.Certificate) string {
	if !h.demands.needsTPM(d.Model) || c.Protection() == identity.ProtectionTPM {
		return ""
	}
	return fmt.Sprintf("%s is %s, but keys of the model %s must be in a TPM (key_protection), and its certificate %s doesn't say that its key is: have it renew with its TPM's word, or replaced at a station",
		d.ID, d.State, d.Model, c.Serial)
}
