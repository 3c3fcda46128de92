package server

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// issuers is the hub's trust as the API shows and changes it.
type issuers struct{ h *Hub }

// Issuers implements admin.Issuers.
func (s issuers) Issuers(ctx context.Context) ([]admin.Issuer, error) {
	s.h.refreshTrust()
	devices, err := s.h.fleet.Issued(ctx)
	if err != nil {
		return nil, err
	}
	var list []admin.Issuer
	for _, c := range s.h.verifier.Trust().Issuers {
		list = append(list, s.describe(c, devices[fleet.IssuerID(c)]))
	}
	slices.SortFunc(list, func(a, b admin.Issuer) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Serial, b.Serial))
	})
	return list, nil
}

func (s issuers) describe(c *x509.Certificate, devices int) admin.Issuer {
	kind, _ := identity.KindOf(c) // a trusted issuer has one
	return admin.Issuer{
		Name: c.Subject.CommonName, Kind: string(kind), Serial: identity.SerialString(c.SerialNumber), Fingerprint: identity.Fingerprint(c),
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, Devices: devices,
		Online: len(s.h.broker.Peers(func(p mtls.Peer) bool { return p.Issuer != nil && fleet.SameIssuer(p.Issuer, c) })),
	}
}

// named returns the trusted issuers of that name: usually one, or an authority of a
// station beside another's of the same name.
func (s issuers) named(name string) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for _, c := range s.h.verifier.Trust().Issuers {
		if c.Subject.CommonName == name {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %.80q; `hub issuer list` shows those there are", admin.ErrNoIssuer, name)
	case 1:
		return found, nil
	}
	if missing(found, found[:1]) == nil {
		return found, nil // one CA and its renewals
	}
	return nil, fmt.Errorf("%d issuing CAs with different keys bear the name %.80q: remove the right file from %s and send SIGHUP",
		len(found), name, issuersDir(s.h.config.Dir))
}

// PlanRemoval implements admin.Issuers: from the live chains, and from the registry.
func (s issuers) PlanRemoval(ctx context.Context, name string) (admin.IssuerPlan, error) {
	s.h.refreshTrust() // a station authorized a minute ago is there to be removed, too
	gone, err := s.named(name)
	if err != nil {
		return admin.IssuerPlan{}, err
	}
	affected := make(map[string]*admin.Affected)
	registered := 0
	err = s.h.fleet.IssuedTo(ctx, fleet.IssuerID(gone[0]), func(id string, state registry.State) {
		registered++
		affected[string(identity.RoleDevice)+"/"+id] = &admin.Affected{ID: id, Role: string(identity.RoleDevice), State: string(state)}
	})
	if err != nil {
		return admin.IssuerPlan{}, err
	}
	plan := admin.IssuerPlan{Issuer: s.describe(gone[0], registered), Affected: []admin.Affected{}}
	for _, c := range s.h.broker.Peers(func(p mtls.Peer) bool { return containsIssuer(gone, p.Issuer) }) {
		id := c.Peer.Identity
		key := string(id.Role) + "/" + id.ID
		if affected[key] == nil {
			affected[key] = &admin.Affected{ID: id.ID, Role: string(id.Role)}
		}
		affected[key].Online, affected[key].Address = true, c.Address
		plan.Online++
	}
	if isOperational(gone[0]) {
		dependents, err := s.h.cas.Dependents(gone[0], s.h.now())
		if err != nil {
			return admin.IssuerPlan{}, err
		}
		for _, id := range dependents {
			if key := string(id.Role) + "/" + id.ID; affected[key] == nil {
				affected[key] = &admin.Affected{ID: id.ID, Role: string(id.Role)}
			}
		}
		if plan.Note, err = s.needed(gone[0]); err != nil {
			return admin.IssuerPlan{}, err
		}
	}
	for _, a := range affected {
		plan.Affected = append(plan.Affected, *a)
	}
	plan.Breaks = len(plan.Affected)
	slices.SortFunc(plan.Affected, func(a, b admin.Affected) int {
		return cmp.Or(strings.Compare(a.Role, b.Role), strings.Compare(a.ID, b.ID))
	})
	return plan, nil
}

// needed says in a sentence why the hub can't do without an operational CA, "" if it can:
// it signs, or the hub's own certificate or an operator rests on it.
func (s issuers) needed(ca *x509.Certificate) (string, error) {
	present, err := s.h.cas.Certificate()
	if err != nil {
		return "", err
	}
	if fleet.SameIssuer(present, ca) {
		return "the hub's own certificate, every operator's and every service's is by this CA, whether listed or not (ca/issued.jsonl has all): it can't be removed while the hub runs; `hub ca rotate` gives it a successor", nil
	}
	own, err := s.h.certificate.Certificate()
	if err != nil {
		return "", err
	}
	if own.Leaf.CheckSignatureFrom(ca) == nil {
		return "the hub's own certificate is by this CA: send SIGHUP while the issuing key is in ca/, and it gets another", nil
	}
	dependents, err := s.h.cas.Dependents(ca, s.h.now())
	if err != nil {
		return "", err
	}
	var operators []string
	for _, id := range dependents {
		if id.Role == identity.RoleOperator {
			operators = append(operators, id.ID)
		}
	}
	if len(operators) > 0 {
		return fmt.Sprintf("operators have no certificate by another CA: %.200s; give them one with `hub operator issue`", strings.Join(operators, ", ")), nil
	}
	return "", nil
}

// Remove implements admin.Issuers. 1. The file moves to issuers/removed: from here on a
// restart doesn't bring the issuer back. 2. Its trust ends, its tickets with it, and
// its connections are cut, whatever else lies in the folder. A crash in between leaves
// the stricter outcome.
func (s issuers) Remove(ctx context.Context, name string) (admin.IssuerReceipt, error) {
	h := s.h
	h.refreshTrust()
	h.trusting.Lock()
	defer h.trusting.Unlock()
	receipt := admin.IssuerReceipt{RequestedAt: h.now(), MovedTo: []string{}, Disconnected: []string{}}
	gone, err := s.named(name)
	if err != nil {
		return receipt, err
	}
	if isOperational(gone[0]) {
		why, err := s.needed(gone[0])
		if err != nil {
			return receipt, err
		}
		if why != "" {
			return receipt, fmt.Errorf("%w: %s", admin.ErrIssuerNeeded, why)
		}
	}
	receipt.Issuer = s.describe(gone[0], h.issued(ctx)[fleet.IssuerID(gone[0])])
	own, ownErr := h.cas.Remove(gone[0])
	moved, moveErr := moveIssuers(h.config.Dir, gone)
	moveErr = errors.Join(ownErr, moveErr)
	receipt.MovedTo = append(append(receipt.MovedTo, own...), moved...)
	receipt.DurableAt = h.now()

	next := h.verifier.Trust()
	next.Issuers = missing(next.Issuers, gone)
	change, err := h.setTrust(ctx, next)
	if err != nil {
		return receipt, err
	}
	receipt.EffectiveAt, receipt.SessionsClosed, receipt.LastSessionClosedAt = change.effective, change.closed, change.last
	receipt.Disconnected = append(receipt.Disconnected, change.cut...)
	if moveErr != nil {
		return receipt, fmt.Errorf("%w: issuer %s is cut off now, but its certificate is still in %s and the next reload would bring it back: %w; remove it by hand",
			fleet.ErrNotDurable, name, issuersDir(h.config.Dir), moveErr)
	}
	return receipt, nil
}

func isOperational(c *x509.Certificate) bool {
	kind, err := identity.KindOf(c)
	return err == nil && kind == identity.KindOperational
}

// moveIssuers moves the files of those CAs to issuers/removed, under names that say
// which certificate each was, and returns where they are. That a file of another CA
// can't be read is no reason to leave these.
func moveIssuers(dir string, gone []*x509.Certificate) (moved []string, err error) {
	files, bad := issuerFiles(dir)
	if !slices.ContainsFunc(files, func(f issuerFile) bool { return containsIssuer(gone, f.cert) }) {
		return nil, bad // nothing to move: somebody has removed it, or it is the one that can't be read
	}
	removed := filepath.Join(issuersDir(dir), "removed")
	if err := os.Mkdir(removed, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	for _, f := range files {
		if !containsIssuer(gone, f.cert) {
			continue
		}
		base := strings.TrimSuffix(filepath.Base(f.path), ".crt")
		to := filepath.Join(removed, fmt.Sprintf("%s-%s.crt", base, identity.SerialString(f.cert.SerialNumber)))
		if err := os.Rename(f.path, to); err != nil {
			return moved, err
		}
		moved = append(moved, to)
	}
	return moved, errors.Join(syncDir(removed), syncDir(issuersDir(dir)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
