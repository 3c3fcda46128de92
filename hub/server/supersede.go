package server

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// Connections of devices that have renewed their certificate wait here for the former
// one to be superseded; what the store doesn't take is tried again.
const (
	settlingQueue = 4096
	settleRetry   = 10 * time.Second
)

// reasonSuperseded is why a connection by a former certificate is cut, in the word that a
// manifest's superseding has, too.
const reasonSuperseded = "superseded"

// seen is told by the broker of every connection that was accepted or has ended. It
// doesn't block.
func (h *Hub) seen(id string, at time.Time) {
	h.fleet.Seen(id, at)
	if !h.fleet.Renewing(id) {
		return
	}
	select {
	case h.settling <- id:
	default: // both certificates stay usable until it connects again
		h.log.Warn("the former certificate of a device is superseded at its next connection, too many were renewed at once", "device", id)
	}
}

// settleRenewals supersedes the former certificates of devices that connect with new
// ones, until ctx ends.
func (h *Hub) settleRenewals(ctx context.Context) {
	retry := time.NewTicker(settleRetry)
	defer retry.Stop()
	waiting := make(map[string]bool)
	try := func(id string) {
		delete(waiting, id)
		for _, leaf := range h.presentedBy(id) {
			if err := h.settle(ctx, id, leaf); err != nil && ctx.Err() == nil {
				h.log.Error("the former certificate of a device is still good", "device", id, "error", err)
				waiting[id] = true
			}
		}
	}
	for {
		select {
		case id := <-h.settling:
			try(id)
		case <-retry.C:
			for id := range waiting {
				try(id)
			}
		case <-ctx.Done():
			return
		}
	}
}

// presentedBy returns the certificates of a device's live connections.
func (h *Hub) presentedBy(id string) (leaves []*x509.Certificate) {
	for _, c := range h.broker.Peers(func(p mtls.Peer) bool { return isDevice(p, id) }) {
		leaves = append(leaves, c.Peer.Certificate)
	}
	return leaves
}

func isDevice(p mtls.Peer, id string) bool {
	return p.Identity.Role == identity.RoleDevice && p.Identity.ID == id
}

// settle supersedes what a device has used before that certificate, and cuts what is
// connected by it: first the mark, so that it can't come back.
func (h *Hub) settle(ctx context.Context, id string, leaf *x509.Certificate) error {
	superseded, err := h.fleet.Connected(ctx, id, leaf)
	if err != nil || len(superseded) == 0 {
		return err
	}
	status, _ := h.fleet.Status(id)
	ctx, cancel := context.WithTimeout(ctx, cutTimeout)
	defer cancel()
	closed, _ := h.broker.DisconnectPeers(ctx, func(p mtls.Peer) bool {
		return isDevice(p, id) && (p.Certificate == nil || !status.Admits(p.Fingerprint()))
	}, reasonSuperseded)
	h.log.Info("former certificate superseded", "device", id, "serials", superseded, "connections_cut", closed)
	return nil
}
