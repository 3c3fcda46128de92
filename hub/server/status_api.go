package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/status"
)

// lists is the hub's revocation lists as the API shows and takes them.
type lists struct{ h *Hub }

// Lists implements admin.Lists.
func (s lists) Lists(context.Context) ([]admin.CRL, error) {
	all := []admin.CRL{}
	for _, l := range s.h.status.Lists() {
		if l.Number == nil {
			continue
		}
		shown := admin.CRL{
			Issuer: l.Issuer.Subject.CommonName, KeyID: status.KeyID(l.Issuer), Own: true,
			Number: l.Number.String(), ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate, Entries: l.Entries,
		}
		if !s.h.now().Before(l.NextUpdate) {
			shown.Problem = "out of date and not served; the hub's log says why no new one is signed"
		}
		all = append(all, shown)
	}
	for _, l := range s.h.foreign.Lists() {
		all = append(all, admin.CRL{Issuer: l.Name, KeyID: l.KeyID, Number: l.Number.String(), NextUpdate: l.Next, Entries: l.Entries, Problem: l.Problem})
	}
	slices.SortFunc(all, func(a, b admin.CRL) int {
		return cmp.Or(strings.Compare(a.Issuer, b.Issuer), strings.Compare(a.KeyID, b.KeyID))
	})
	return all, nil
}

// List implements admin.Lists. The newest of several authorities of one name counts.
func (s lists) List(_ context.Context, name string) ([]byte, error) {
	var newest status.Published
	for _, l := range s.h.status.Lists() {
		if l.Number != nil && l.Issuer.Subject.CommonName == name && (newest.Issuer == nil || l.Issuer.NotBefore.After(newest.Issuer.NotBefore)) {
			newest = l
		}
	}
	if newest.Issuer == nil || !s.h.now().Before(newest.NextUpdate) {
		return nil, fmt.Errorf("%w: %.80q; `hub crl list` shows those there are. A station's CA signs its own", admin.ErrNoList, name)
	}
	return newest.DER, nil
}

// ImportList implements admin.Lists. 1. The list is on disk and in force: no handshake by
// a certificate on it is admitted. 2. The registry has it, device by device, and their
// sessions are cut. A crash in between is made good at the next start.
func (s lists) ImportList(ctx context.Context, data []byte, actor fleet.Actor) (admin.CRLReceipt, error) {
	imported, err := s.h.foreign.Import(data)
	if err != nil {
		return admin.CRLReceipt{Cut: []string{}}, err
	}
	l := imported.List
	receipt := admin.CRLReceipt{
		CRL: admin.CRL{
			Issuer: imported.Issuer.Subject.CommonName, KeyID: status.KeyID(imported.Issuer),
			Number: l.Number.String(), ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate, Entries: len(l.Entries),
		},
		Lifted: imported.Removed, Cut: []string{},
	}
	cut, err := s.h.applyForeign(ctx, imported, actor)
	receipt.Cut = append(receipt.Cut, cut...)
	return receipt, err
}
