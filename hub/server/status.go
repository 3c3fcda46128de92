package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/status"
)

// StatusConfig is how the status of certificates is published.
type StatusConfig struct {
	Addr           string        `yaml:"addr"` // of a plain HTTP door for CRLs and OCSP; empty: none
	URL            string        `yaml:"url"`  // that certificates name; empty: they name none
	ListLifetime   time.Duration `yaml:"list_lifetime"`
	AnswerLifetime time.Duration `yaml:"answer_lifetime"`
}

// check returns an error that names the first setting that can't be used.
func (c StatusConfig) check() error {
	if _, _, err := net.SplitHostPort(c.Addr); c.Addr != "" && err != nil {
		return fmt.Errorf("status.addr: %q is not HOST:PORT or :PORT", c.Addr)
	}
	if u, err := url.Parse(c.URL); c.URL != "" && (err != nil || u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || len(c.URL) > 128) {
		return fmt.Errorf("status.url: %q is not of the form http://HOST:PORT (RFC 5280 §8 warns of https: who follows it would first have to check a certificate)", c.URL)
	}
	if c.ListLifetime < time.Hour || c.ListLifetime > 90*24*time.Hour {
		return fmt.Errorf("status.list_lifetime: %s is not between 1h and 2160h", c.ListLifetime)
	}
	if c.AnswerLifetime < time.Minute || c.AnswerLifetime > 7*24*time.Hour {
		return fmt.Errorf("status.answer_lifetime: %s is not between 1m and 168h", c.AnswerLifetime)
	}
	return nil
}

// Publication returns where the status of certificates by that CA is published, as they
// are to say it.
func (c StatusConfig) Publication(ca *x509.Certificate) issuance.Publication {
	if c.URL == "" {
		return issuance.Publication{}
	}
	base := strings.TrimSuffix(c.URL, "/")
	return issuance.Publication{List: base + status.ListPath + status.KeyID(ca) + ".crl", OCSP: base + status.OCSPPath}
}

// statusDir is where lists, OCSP signers and foreign lists are kept in a hub's folder.
const statusDir = "status"

// openStatus makes the rooms that publish certificate status and take in foreign lists.
// The fleet is there before.
func (h *Hub) openStatus() (err error) {
	dir := filepath.Join(h.config.Dir, statusDir)
	h.status, err = status.New(status.Config{
		Dir: dir, Authorities: h.authorities, Registry: &certificates{h: h, issued: issued{path: filepath.Join(h.cas.Dir, authority.JournalFile)}},
		Responder: h.certifyResponder, ListLifetime: h.config.Status.ListLifetime, AnswerLifetime: h.config.Status.AnswerLifetime,
		Version: func() (uint64, error) {
			head, err := h.fleet.AuditHead(context.Background())
			return head.Number, err
		},
		Now: h.now, Log: h.log,
	})
	if err != nil {
		return err
	}
	h.foreign, err = status.OpenForeign(status.ForeignConfig{
		Dir: filepath.Join(dir, "foreign"), Issuers: func() []*x509.Certificate { return h.verifier.Trust().Issuers }, Own: h.signsListsOf, Now: h.now, Log: h.log,
	})
	return err
}

// authorities returns the hub's own issuing CAs, those before the present one included,
// as they lie in the hub's folder now. One whose key can't be used is like one whose key
// is elsewhere.
func (h *Hub) authorities() ([]status.Authority, error) {
	cas, err := h.cas.List()
	if err != nil {
		return nil, err
	}
	var all []status.Authority
	for _, ca := range cas {
		key, err := h.cas.Key(ca)
		if err != nil {
			key = nil // the keyring has told why
		}
		all = append(all, status.Authority{Certificate: ca.Certificate, Key: key})
	}
	return all, nil
}

func (h *Hub) signsListsOf(ca *x509.Certificate) bool {
	own, err := h.authorities()
	return err == nil && slices.ContainsFunc(own, func(a status.Authority) bool { return a.Key != nil && fleet.SameIssuer(a.Certificate, ca) })
}

func (h *Hub) certifyResponder(a status.Authority, pub crypto.PublicKey) (*x509.Certificate, error) {
	ca, err := issuance.NewIssuer(a.Certificate, a.Key, h.now)
	if err != nil {
		return nil, err
	}
	return ca.IssueResponder(pub)
}

// certificates is the registry as package status asks it.
type certificates struct {
	h      *Hub
	issued issued
}

// Lookup implements status.Registry. Certificates of devices are in the registry, those
// of services, operators and the hub itself in the CA's journal; these can't be revoked
// one by one yet.
func (c *certificates) Lookup(ctx context.Context, issuer *x509.Certificate, serial *big.Int) (revocation.Entry, bool, error) {
	e := revocation.Entry{Serial: serial}
	if serial.Sign() <= 0 || serial.BitLen() > 160 {
		return e, false, registry.ErrUnknown
	}
	text := identity.SerialString(serial)
	o, err := c.h.fleet.Certificate(ctx, fleet.IssuerID(issuer), text)
	if errors.Is(err, registry.ErrUnknown) {
		if own, ownErr := c.h.certificate.Certificate(); ownErr == nil && own.Leaf.SerialNumber.Cmp(serial) == 0 && own.Leaf.CheckSignatureFrom(issuer) == nil {
			return e, false, nil
		}
		known, readErr := c.issued.has(issuer, text)
		if readErr == nil && known {
			return e, false, nil
		}
		return e, false, errors.Join(err, readErr)
	}
	if err != nil {
		return e, false, err
	}
	return c.judge(ctx, o, serial)
}

// Revoked implements status.Registry.
func (c *certificates) Revoked(ctx context.Context, issuer *x509.Certificate) ([]revocation.Entry, error) {
	var owned []registry.Ownership // judged after the read transaction, not within
	if err := c.h.fleet.Certificates(ctx, fleet.IssuerID(issuer), func(o registry.Ownership) bool {
		owned = append(owned, o)
		return true
	}); err != nil {
		return nil, err
	}
	var entries []revocation.Entry
	for _, o := range owned {
		serial, ok := new(big.Int).SetString(o.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("the serial number %.80q of device %s is not one", o.Serial, o.Device)
		}
		e, revoked, err := c.judge(ctx, o, serial)
		if err != nil {
			return nil, err
		}
		if revoked {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// judge says what a registered certificate is worth to others: what the hub doesn't
// accept is revoked, be it by its record, by one that took its place, or by its device's
// state.
func (c *certificates) judge(ctx context.Context, o registry.Ownership, serial *big.Int) (revocation.Entry, bool, error) {
	e := revocation.Entry{Serial: serial}
	if !o.Revoked.IsZero() {
		e.At = o.Revoked
		e.Reason, _ = revocation.ParseReason(o.Reason) // an unknown one is unspecified
		return e, true, nil
	}
	device, known := c.h.fleet.Status(o.Device)
	switch {
	case !known:
		return e, false, fmt.Errorf("certificate %s is of device %s, which has no record", o.Serial, o.Device)
	case !o.Superseded && device.State.MayConnect():
		return e, false, nil
	}
	record, err := c.h.fleet.Device(ctx, o.Device)
	if err != nil {
		return e, false, err
	}
	e.At = c.h.now()
	switch i := slices.IndexFunc(record.Certificates, func(r registry.Certificate) bool { return r.Serial == o.Serial && r.Issuer == o.Issuer }); {
	case o.Superseded:
		e.Reason = revocation.Superseded
		if i >= 0 && !record.Certificates[i].Superseded.IsZero() {
			e.At = record.Certificates[i].Superseded
		}
	case device.State == registry.StateSuspended:
		e.Reason = revocation.Hold
		if since := record.Since(); since.To == registry.StateSuspended {
			e.At = since.At
		}
	}
	return e, true, nil
}

// refusedByList returns the refusal of a peer whose certificate a foreign issuer's list
// revokes, nil if none does.
func (h *Hub) refusedByList(peer mtls.Peer) error {
	if peer.Issuer == nil || peer.Certificate == nil {
		return nil
	}
	e, revoked := h.foreign.Revoked(peer.Issuer, peer.Certificate.SerialNumber)
	if !revoked {
		return nil
	}
	return &mtls.Refusal{Reason: "revoked", Identity: peer.Identity, Detail: fmt.Sprintf("its issuer %q has revoked the certificate on %s (%s)",
		peer.Issuer.Subject.CommonName, e.At.UTC().Format(time.RFC3339), e.Reason)}
}

// applyForeign brings the registry up to an accepted list: a device whose certificate in
// use is on it is revoked, or suspended if it is on hold there. Doing it again changes
// nothing. A certificate that another has superseded is nobody's loss.
func (h *Hub) applyForeign(ctx context.Context, imported status.Imported, actor fleet.Actor) (cut []string, err error) {
	id := fleet.IssuerID(imported.Issuer)
	for _, e := range imported.List.Entries {
		o, err := h.fleet.Certificate(ctx, id, identity.SerialString(e.Serial))
		if errors.Is(err, registry.ErrUnknown) || err == nil && (o.Superseded || !o.Revoked.IsZero()) {
			continue
		}
		if err != nil {
			return cut, err
		}
		device, _ := h.fleet.Status(o.Device)
		order := fleet.Order{Verb: fleet.VerbRevoke, Device: o.Device, Reason: e.Reason, Note: fmt.Sprintf("revocation list %s of %s", imported.List.Number, imported.Issuer.Subject.CommonName)}
		switch {
		case e.Reason == revocation.Hold:
			order.Verb, order.Reason = fleet.VerbSuspend, revocation.Unspecified
			if device.State == registry.StateSuspended || device.State.Final() {
				continue
			}
		case device.State.Final():
			continue
		}
		if _, known := revocationName(order.Reason); !known {
			order.Reason = revocation.Unspecified
		}
		if _, err := h.fleet.Execute(ctx, order, actor); err != nil {
			return cut, fmt.Errorf("revoke %s: %w", o.Device, err)
		}
		cut = append(cut, o.Device)
	}
	return cut, nil
}

// revocationName returns the RFC's name of a reason that a record can have.
func revocationName(r revocation.Reason) (string, bool) {
	_, err := revocation.ParseReason(r.String())
	return r.String(), err == nil
}

// foreignInterval is how often foreign lists are looked at for their age.
const foreignInterval = time.Minute

// watchForeign applies what was accepted and perhaps not applied when the hub last
// stopped, then raises alarms about lists that grow old, until ctx ends.
func (h *Hub) watchForeign(ctx context.Context) {
	for _, l := range h.foreign.Accepted() {
		if _, err := h.applyForeign(ctx, l, fleet.Actor{Name: "hub"}); err != nil && ctx.Err() == nil {
			h.log.Error("a foreign revocation list is not applied in full", "issuer", l.Issuer.Subject.CommonName, "error", err)
		}
	}
	tick := time.NewTicker(foreignInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.foreign.Check()
		case <-ctx.Done():
			return
		}
	}
}

// newStatusDoor returns the server of the plain HTTP door.
func (h *Hub) newStatusDoor() *http.Server {
	return &http.Server{
		Handler: h.status, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10,
	}
}

// withStatus serves lists and OCSP beside the API, to anybody.
func (h *Hub) withStatus(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status.Serves(r.URL.Path) {
			h.status.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// registerStatus shows the age of what is published, and of foreign lists.
func (h *Hub) registerStatus() {
	h.metrics.gauge("fleethub_crl_seconds_left", "Time until the next update of the hub's own revocation list that ends first; below 0 it is out of date. 0 without one.", func() float64 {
		least := time.Duration(0)
		for i, l := range h.status.Lists() {
			if left := l.NextUpdate.Sub(h.now()); l.Number != nil && (i == 0 || left < least) {
				least = left
			}
		}
		return least.Seconds()
	})
	h.metrics.gauge("fleethub_issuing_key_usable", "1 if the key of the hub's issuing CA is here and opens: without it no certificate is renewed.", func() float64 {
		if _, err := h.cas.Issuer(); err != nil {
			return 0
		}
		return 1
	})
	h.metrics.gauge("fleethub_foreign_crl_problems", "Foreign issuers whose revocation list is out of date, missing or damaged.", func() float64 {
		n := 0
		for _, l := range h.foreign.Lists() {
			if l.Problem != "" {
				n++
			}
		}
		return float64(n)
	})
	h.metrics.counter("fleethub_ocsp_answers_total", "Certificates whose status was answered by OCSP.", nil, func() float64 { a, _ := h.status.Answered(); return float64(a) })
	h.metrics.counter("fleethub_ocsp_failures_total", "OCSP requests that got no status.", nil, func() float64 { _, f := h.status.Answered(); return float64(f) })
	h.metrics.counter("fleethub_crl_refused_total", "Foreign revocation lists that were not accepted.", nil, func() float64 { return float64(h.foreign.Refused()) })
}
