package fleet

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/registry"
	"golang.org/x/sync/errgroup"
)

// ErrRejected is in the chain of every error about a manifest that was refused as a
// whole. Nothing of it was stored.
var ErrRejected = errors.New("manifest rejected")

// maxLabels bounds the labels of one device.
const maxLabels = 32

// ImportReport says what an accepted manifest changed.
type ImportReport struct {
	Station    string `json:"station"`
	Number     uint64 `json:"number"`
	Devices    int    `json:"devices"`    // in the manifest
	Registered int    `json:"registered"` // new, or named for the first time after they had introduced themselves
	Superseded int    `json:"superseded"` // given a new certificate in place of the old
	Reinstated int    `json:"reinstated"` // back with a new certificate, by an operator's leave
	Unchanged  int    `json:"unchanged"`  // known with that certificate, whatever their state
}

// Import reads a signed manifest and registers its devices, all of them in one
// transaction or none. Importing it again changes nothing. It refuses a manifest that
// no factory issuer known to the hub signed, and one in which any entry isn't a device
// certificate by that issuer, or names an ID, serial number or TPM that another record
// owns, or says of a key, or of the TPM it is in, what its certificate doesn't. A known device gets a new certificate only from the station that made it, and
// only if the entry names the one it supersedes; one that was cut off for good gets none
// but by an operator's leave (Allow), which that certificate uses up. Nor may it give the
// station more devices than its authority is for.
func (f *Fleet) Import(ctx context.Context, data []byte, actor Actor) (ImportReport, error) {
	if f.config.BeforeImport != nil {
		f.config.BeforeImport()
	}
	record := f.audit(actor, "manifest.import", "")
	m, issuer, err := manifest.Open(data, f.config.Roots(), f.config.Now())
	if err == nil {
		err = f.checkIssuer(m, issuer)
	}
	var entries []entry
	if err == nil {
		record.Detail = fmt.Sprintf("manifest %d of station %s", m.Number, m.Station)
		entries, err = parseEntries(ctx, m, issuer)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ImportReport{}, ctx.Err()
		}
		if !errors.Is(err, ErrRejected) {
			err = rejected(err)
		}
		f.refused(ctx, record, err)
		return ImportReport{}, err
	}
	b := &batch{fleet: f, manifest: m, record: record, staged: make(map[string]*registry.Device, len(entries))}
	b.report = ImportReport{Station: m.Station, Number: m.Number, Devices: len(entries)}
	err = f.write(ctx, func() error {
		err := b.stage(ctx, entries)
		if err == nil {
			err = b.withinBudget(ctx, issuer)
		}
		if err == nil {
			err = b.commit(ctx)
		}
		if errors.Is(err, ErrRejected) {
			f.refused(ctx, record, err)
		}
		return err
	})
	if err != nil {
		return ImportReport{}, err
	}
	// Their sessions were made with certificates that are no longer good.
	f.disconnect(b.superseded, "superseded")
	if len(b.completed) > 0 && f.config.Changed != nil {
		f.config.Changed(b.completed)
	}
	f.config.Log.Info("manifest imported", "station", m.Station, "number", m.Number,
		"registered", b.report.Registered, "superseded", b.report.Superseded, "reinstated", b.report.Reinstated, "unchanged", b.report.Unchanged, "actor", actor.Name)
	return b.report, nil
}

// rejection is why a manifest was refused. It matches ErrRejected.
type rejection struct {
	entry int // counts from 1; 0: the manifest as a whole
	cause error
}

func rejected(cause error) error { return &rejection{cause: cause} }

func (r *rejection) Error() string {
	where := ""
	if r.entry > 0 {
		where = fmt.Sprintf("entry %d: ", r.entry)
	}
	return ErrRejected.Error() + ": " + where + strings.TrimPrefix(r.cause.Error(), manifest.ErrInvalid.Error()+": ")
}

func (r *rejection) Is(target error) bool { return target == ErrRejected }
func (r *rejection) Unwrap() error        { return r.cause }

// checkIssuer holds a manifest whose signature is good against what this hub knows.
func (f *Fleet) checkIssuer(m manifest.Manifest, issuer *x509.Certificate) error {
	if m.TrustDomain != f.config.TrustDomain {
		return fmt.Errorf("it is for the trust domain %.80q, this hub's is %s", m.TrustDomain, f.config.TrustDomain)
	}
	if f.config.Issuers != nil && !slices.ContainsFunc(f.config.Issuers(), issuer.Equal) {
		return fmt.Errorf("this hub doesn't know the issuing CA of station %q (SHA-256 %s); put its certificate in the hub's issuers folder if it is yours", issuer.Subject.CommonName, identity.Fingerprint(issuer))
	}
	if now := f.config.Now(); now.After(issuer.NotAfter) || now.Before(issuer.NotBefore) {
		return fmt.Errorf("the authority of station %q is valid from %s to %s, not now; renew it with `hub station authorize`",
			issuer.Subject.CommonName, issuer.NotBefore.UTC().Format(time.RFC3339), issuer.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// entry is one line of a manifest, verified on its own.
type entry struct {
	identity    identity.Identity
	certificate registry.Certificate
	protection  identity.Protection // as the certificate has it
	listed      manifest.Entry
}

// parseEntries verifies every entry against the issuer, on all processors, and
// reports the first bad one.
func parseEntries(ctx context.Context, m manifest.Manifest, issuer *x509.Certificate) ([]entry, error) {
	entries := make([]entry, len(m.Devices))
	failures := make([]error, len(m.Devices))
	pool := x509.NewCertPool()
	pool.AddCert(issuer)
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	const chunk = 64
	for start := 0; start < len(entries); start += chunk {
		workers.Go(func() error {
			for i := start; i < min(start+chunk, len(entries)) && ctx.Err() == nil; i++ {
				entries[i], failures[i] = parseEntry(m, i, issuer, pool)
			}
			return ctx.Err()
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(failures, func(err error) bool { return err != nil }); i >= 0 {
		return nil, &rejection{entry: i + 1, cause: failures[i]}
	}
	return entries, nil
}

func parseEntry(m manifest.Manifest, i int, issuer *x509.Certificate, pool *x509.CertPool) (entry, error) {
	listed := m.Devices[i]
	leaf, err := x509.ParseCertificate(listed.Certificate)
	if err != nil {
		return entry{}, fmt.Errorf("its certificate can't be read: %w", err)
	}
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return entry{}, err
	}
	if err := checkLeaf(leaf, id, m, issuer, pool); err != nil {
		return entry{}, fmt.Errorf("device %s: %w", id.ID, err)
	}
	if err := checkListed(listed); err != nil {
		return entry{}, fmt.Errorf("device %s: %w", id.ID, err)
	}
	return entry{identity: id, listed: listed, protection: identity.ProtectionOf(leaf), certificate: registry.Certificate{
		Serial:      identity.SerialString(leaf.SerialNumber),
		Fingerprint: identity.Fingerprint(leaf),
		Issuer:      hex.EncodeToString(issuer.SubjectKeyId),
		NotBefore:   leaf.NotBefore.UTC(),
		NotAfter:    leaf.NotAfter.UTC(),
		DER:         leaf.Raw,
	}}, nil
}

// Of a manifest with more than fullyChecked entries, one in sampled has its signature
// verified, and the others don't. That costs no security: the manifest as a whole is
// signed by the very key that signed its certificates, so who could list a certificate
// with a bad signature could as well have signed it; and no handshake, full or resumed,
// admits a certificate whose signature it has not verified itself (package mtls). What
// the check finds is a station that makes bad signatures, and for that a sample does. It
// costs 70 µs a certificate, five times all the rest.
const (
	fullyChecked = 1024
	sampled      = 16
)

// checkLeaf checks that the certificate is a device's, of this trust domain, by this
// issuer, for TLS clients. Its own validity period is for the handshake to check: a
// board may be shelved, and a station's clock a little ahead.
func checkLeaf(leaf *x509.Certificate, id identity.Identity, m manifest.Manifest, issuer *x509.Certificate, pool *x509.CertPool) error {
	if id.Role != identity.RoleDevice {
		return fmt.Errorf("the certificate is a %s's; a station registers devices only", id.Role)
	}
	if id.TrustDomain != m.TrustDomain {
		return fmt.Errorf("the certificate is of the trust domain %s, the manifest of %s", id.TrustDomain, m.TrustDomain)
	}
	if string(leaf.RawIssuer) != string(issuer.RawSubject) || string(leaf.AuthorityKeyId) != string(issuer.SubjectKeyId) || len(leaf.AuthorityKeyId) == 0 {
		return fmt.Errorf("the certificate is issued by %.120q, not by station %s, which signed the manifest", leaf.Issuer, m.Station)
	}
	if leaf.SerialNumber.Sign() <= 0 {
		return errors.New("the certificate's serial number is not positive")
	}
	if err := issuance.CheckKey(leaf.PublicKey); err != nil {
		return err
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) { // Verify takes none as any
		return errors.New("the certificate is not for TLS clients (extended key usage)")
	}
	if len(m.Devices) > fullyChecked && rand.IntN(sampled) > 0 {
		return nil
	}
	at := leaf.NotBefore
	if at.Before(issuer.NotBefore) {
		at = issuer.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("the certificate is not good for a device of station %s: %w", m.Station, err)
	}
	return nil
}

// checkListed checks what the station adds to a certificate. Labels become topic
// levels, so they have the grammar of IDs.
func checkListed(listed manifest.Entry) error {
	if err := validText("model", listed.Model); err != nil {
		return err
	}
	if err := checkListedKey(listed); err != nil {
		return err
	}
	if len(listed.Labels) > maxLabels {
		return fmt.Errorf("it has %d labels, at most %d are kept", len(listed.Labels), maxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(listed.Labels)) {
		if identity.ValidID(key) != nil || identity.ValidID(listed.Labels[key]) != nil {
			return fmt.Errorf("label %.80q=%.80q is not made of 1 to 64 letters, digits and (after the first) . _ - on each side", key, listed.Labels[key])
		}
	}
	return nil
}

// batch is one import under way. It lives in one writer's turn.
type batch struct {
	fleet      *Fleet
	manifest   manifest.Manifest
	record     registry.AuditRecord // what its audit records have in common
	report     ImportReport
	staged     map[string]*registry.Device // changed records by ID
	order      []string                    // keys of staged, in the manifest's order
	superseded []string
	completed  []string // had introduced themselves
	counted    int      // of those, whose station has them in its budget already
	audit      []registry.AuditRecord
}

// stage decides about every entry, in order, and stores nothing.
func (b *batch) stage(ctx context.Context, entries []entry) error {
	listed := make(map[string]bool, len(entries))
	for i, e := range entries {
		id := e.identity.ID
		if listed[id] && e.listed.Supersedes == "" {
			return &rejection{entry: i + 1, cause: fmt.Errorf("device %s is listed twice", id)}
		}
		listed[id] = true
		err := b.add(ctx, e)
		if r, ok := errors.AsType[*rejection](err); ok {
			r.entry = i + 1
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) add(ctx context.Context, e entry) error {
	id := e.identity.ID
	d, known := b.staged[id] // nil, false: a new device
	if _, registered := b.fleet.index.state(id); !known && registered {
		stored, err := b.fleet.config.Store.Device(ctx, id)
		switch {
		case err == nil:
			d, known = &stored, true
		case !errors.Is(err, registry.ErrUnknown):
			return err
		}
	}
	holds := known && d.Holds(e.certificate.Fingerprint)
	quarantined := known && d.State == registry.StateQuarantined
	introduced := quarantined && e.listed.Supersedes == "" || holds && d.Introduced() && !quarantined && !d.State.Final()
	if holds && !introduced && !quarantined {
		b.report.Unchanged++
		return b.learn(d, e)
	}
	model := e.listed.Model
	if known && d.Model != "" {
		model = d.Model
	}
	if err := b.checkKey(d, e, model); err != nil {
		return err
	}
	switch {
	case introduced:
		return b.named(d, e)
	case known && d.State.Final() && d.Permit != nil:
		return b.reinstate(d, e)
	case known && !quarantined:
		return b.supersede(d, e)
	case e.listed.Supersedes != "":
		return rejected(fmt.Errorf("the certificate of %s supersedes %.64s, which this hub doesn't know; import station %s's earlier manifests first", id, e.listed.Supersedes, b.manifest.Station))
	}
	d = &registry.Device{
		ID: id, Model: e.listed.Model, Batch: registry.BatchOf(e.listed.Labels, b.manifest.Station, b.manifest.Number), OU: e.identity.OU,
		BoardSerial: e.identity.BoardSerial, Protection: e.listed.Protection, EK: e.listed.EK, Labels: e.listed.Labels,
		Station: b.manifest.Station, Manifest: b.manifest.Number, Certificates: []registry.Certificate{e.certificate},
	}
	if err := d.Register(b.cause()); err != nil {
		return err
	}
	b.put(d, "", e)
	b.report.Registered++
	return nil
}

func (b *batch) cause() registry.Cause {
	return registry.Cause{Actor: b.record.Actor, Note: b.record.Detail, At: b.record.Time}
}

// reinstate brings a device that was cut off for good back with the entry's certificate.
// It is the station's that made it now.
func (b *batch) reinstate(d *registry.Device, e entry) error {
	before := d.State
	if err := d.Reinstate(e.certificate, b.cause()); err != nil {
		return rejected(err)
	}
	e.take(d) // by the operator's leave of another board, too
	d.Station, d.Manifest = b.manifest.Station, b.manifest.Number
	b.put(d, before, e)
	b.report.Reinstated++
	return nil
}

// supersede gives a known device the entry's certificate in place of an older one.
func (b *batch) supersede(d *registry.Device, e entry) error {
	if e.listed.Supersedes == "" {
		return rejected(fmt.Errorf("device %s is already registered (by station %s, serial number %s) with another certificate than %s; an ID belongs to one board", d.ID, d.Station, newest(d), e.certificate.Serial))
	}
	if d.Station != b.manifest.Station {
		return rejected(fmt.Errorf("device %s belongs to station %s; station %s can't supersede its certificate", d.ID, d.Station, b.manifest.Station))
	}
	if err := sameBoard(d, e); err != nil {
		return err
	}
	before := d.State
	if err := d.Supersede(strings.ToLower(e.listed.Supersedes), e.certificate, b.record.Time); err != nil {
		return rejected(err)
	}
	e.take(d)
	b.put(d, before, e)
	b.report.Superseded++
	b.superseded = append(b.superseded, d.ID)
	return nil
}

func newest(d *registry.Device) string {
	if len(d.Certificates) == 0 {
		return "none"
	}
	return d.Certificates[len(d.Certificates)-1].Serial
}

func (b *batch) put(d *registry.Device, before registry.State, e entry) {
	if _, ok := b.staged[d.ID]; !ok {
		b.order = append(b.order, d.ID)
	}
	b.staged[d.ID] = d
	record := b.record
	record.Device, record.Before, record.After = d.ID, before, d.State
	record.Detail = b.record.Detail + ", serial number " + e.certificate.Serial
	if e.listed.Supersedes != "" {
		record.Detail += ", supersedes " + clip(e.listed.Supersedes)
	}
	b.audit = append(b.audit, record)
}

// commit stores and publishes what stage decided, if anything changes.
func (b *batch) commit(ctx context.Context) error {
	if len(b.order) == 0 {
		return nil
	}
	change := registry.Change{Audit: b.audit, Devices: make([]registry.Device, len(b.order))}
	for i, id := range b.order {
		change.Devices[i] = *b.staged[id]
	}
	err := b.fleet.config.Store.Commit(ctx, change)
	if _, ok := errors.AsType[*registry.ConflictError](err); ok {
		return rejected(err)
	}
	if err != nil {
		return fmt.Errorf("import manifest %d of station %s: %w", b.manifest.Number, b.manifest.Station, err)
	}
	b.fleet.publishAll(change.Devices)
	return nil
}
