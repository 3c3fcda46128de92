// Package status publishes what the registry decides, for those who can't ask it:
// certificate revocation lists (RFC 5280 §5) and OCSP answers (RFC 6960, RFC 5019) of
// the issuing CAs whose key is at the hub, and takes in the lists of those whose key is
// elsewhere.
//
// Nothing here admits a device. The hub decides by its registry; what is published
// follows it, and a list that is out of date or gone makes nobody more welcome.
//
// A factory's CA signs at its station, so the hub can publish nothing in its name: a
// CRL that the CA didn't sign, or an OCSP signer that it didn't certify, is to be refused
// by every verifier (RFC 5280 §6.3.3, RFC 6960 §4.2.2.2). OCSP questions about a
// factory's certificates are answered "unauthorized".
package status

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
)

// Authority is an issuing CA of the hub's. Key is nil if it is kept elsewhere: what was
// signed is served until it is out of date, and where nothing was, nothing is.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// Registry says which certificates are revoked. Its methods are safe for concurrent use.
type Registry interface {
	// Lookup returns what is known of a certificate; an error that matches
	// registry.ErrUnknown if it was never issued.
	Lookup(ctx context.Context, issuer *x509.Certificate, serial *big.Int) (entry revocation.Entry, revoked bool, err error)
	// Revoked returns every revoked certificate of the issuer, in any order.
	Revoked(ctx context.Context, issuer *x509.Certificate) ([]revocation.Entry, error)
}

// Config is what a Publisher needs. Dir, Authorities, Registry and Responder are
// required.
type Config struct {
	// Dir is where lists and OCSP signers are kept. It is made if it isn't there.
	Dir string
	// Authorities returns the hub's issuing CAs as they are now.
	Authorities func() ([]Authority, error)
	Registry    Registry
	// Responder signs the certificate of an OCSP signer by an authority that has its key.
	Responder func(Authority, crypto.PublicKey) (*x509.Certificate, error)

	ListLifetime   time.Duration // until a list's next update; 0: a day. A new one is signed at half of it
	AnswerLifetime time.Duration // of an OCSP answer; 0: one hour
	Interval       time.Duration // between looks at the registry; 0: 5 s
	// Version returns a number that grows whenever the registry may have changed. Nil:
	// every look reads all.
	Version func() (uint64, error)

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Publisher keeps lists up to date and answers OCSP. It is safe for concurrent use. Run
// does the work; without it, what Refresh has published is served until it is out of
// date.
type Publisher struct {
	config  Config
	changed chan struct{}                // one slot: a look at the registry is wanted
	current atomic.Pointer[[]*authority] // what is served; replaced, never changed
	signing chan struct{}                // one token for each OCSP answer being signed

	answered, failed atomic.Uint64

	mu      sync.Mutex // held by Refresh; guards what follows
	version uint64     // of the registry when it was last read
	alarmed map[string]string
}

// authority is one issuing CA with what is published of it. It is immutable.
type authority struct {
	id        string // of its files and URLs: the subject key identifier in hex
	issuer    *x509.Certificate
	name      *revocation.IssuerName
	der       []byte // the list; nil: there is none yet
	list      revocation.List
	digest    [sha256.Size]byte // of the entries
	responder *revocation.Responder
	until     time.Time // the responder's certificate
}

// New returns a Publisher that serves what was published before, as far as it is good.
func New(config Config) (*Publisher, error) {
	if config.Authorities == nil || config.Registry == nil || config.Responder == nil || config.Dir == "" {
		return nil, errors.New("publish certificate status: Config.Dir, Authorities, Registry and Responder are required")
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&config.ListLifetime, 24 * time.Hour}, {&config.AnswerLifetime, time.Hour}, {&config.Interval, 5 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("publish certificate status: %w", err)
	}
	p := &Publisher{config: config, changed: make(chan struct{}, 1), signing: make(chan struct{}, 2*runtime.GOMAXPROCS(0)), alarmed: make(map[string]string)}
	authorities, err := config.Authorities()
	if err != nil {
		return nil, fmt.Errorf("publish certificate status: %w", err)
	}
	var current []*authority
	for _, a := range authorities {
		known, err := p.load(a)
		if err != nil {
			return nil, err
		}
		current = append(current, known)
	}
	p.current.Store(&current)
	return p, nil
}

// KeyID is what the files and URLs of a CA's list are called by: its subject key
// identifier in lower-case hex.
func KeyID(ca *x509.Certificate) string { return hex.EncodeToString(ca.SubjectKeyId) }

func (p *Publisher) listFile(id string) string { return filepath.Join(p.config.Dir, id+".crl") }

// load reads what was published of an authority. A list that can't be used is reported
// and not served; the next one gets a greater number all the same (see number).
func (p *Publisher) load(a Authority) (*authority, error) {
	name, err := revocation.NameOf(a.Certificate)
	if err != nil {
		return nil, err
	}
	known := &authority{id: KeyID(a.Certificate), issuer: a.Certificate, name: name}
	der, err := os.ReadFile(p.listFile(known.id))
	if err == nil {
		var list revocation.List
		if list, err = revocation.ReadList(der, a.Certificate); err == nil {
			known.der, known.list, known.digest = der, list, digest(list.Entries)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.alarm(known.id, "the revocation list on disk is not served: "+err.Error())
	}
	return known, nil
}

// Changed says that certificates were revoked: a new list is signed soon. It doesn't
// block.
func (p *Publisher) Changed() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Run keeps what is published up to date until ctx ends. A look at the registry is
// followed by a pause of ten times as long, so a large registry that changes all the
// time takes a tenth of a core at most.
func (p *Publisher) Run(ctx context.Context) {
	forced := true
	for {
		began := time.Now()
		p.refresh(ctx, forced)
		pause := time.NewTimer(10 * time.Since(began))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
		next := time.NewTimer(p.config.Interval)
		forced = false
		select {
		case <-p.changed:
			next.Stop()
			forced = true
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return
		}
	}
}

// Refresh reads the registry and signs what has changed or is due. It returns when that
// is served.
func (p *Publisher) Refresh(ctx context.Context) error { return p.refresh(ctx, true) }

// refresh publishes each authority's status. What can't be renewed stays as it was,
// with an alarm.
func (p *Publisher) refresh(ctx context.Context, forced bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	authorities, err := p.config.Authorities()
	if err != nil {
		p.alarm("authorities", err.Error())
		return err
	}
	p.calm("authorities")
	version, read := p.moved(forced)
	var next []*authority
	var failed error
	for _, a := range authorities {
		id := KeyID(a.Certificate)
		if slices.ContainsFunc(next, func(known *authority) bool { return known.id == id }) {
			continue // a renewal of a CA that we have, by the same key
		}
		known, err := p.renew(ctx, a, read)
		if err != nil {
			failed = errors.Join(failed, err)
			p.alarm(id, err.Error())
		} else {
			p.calm(id)
		}
		if known != nil {
			next = append(next, known)
		}
	}
	p.current.Store(&next)
	if failed == nil {
		p.version = version
	}
	return failed
}

// moved reports whether the registry must be read again.
func (p *Publisher) moved(forced bool) (version uint64, read bool) {
	if p.config.Version == nil {
		return 0, true
	}
	version, err := p.config.Version()
	if err != nil {
		return p.version, true
	}
	return version, forced || version != p.version
}

// renew returns an authority with a list and a signer that are good. On an error it
// returns what there is.
func (p *Publisher) renew(ctx context.Context, a Authority, read bool) (*authority, error) {
	known := p.find(KeyID(a.Certificate))
	if known == nil {
		var err error
		if known, err = p.load(a); err != nil {
			return nil, err
		}
	}
	next := *known
	next.issuer = a.Certificate
	err := errors.Join(p.renewResponder(&next, a), p.renewList(ctx, &next, a, read))
	return &next, err
}

func (p *Publisher) find(id string) *authority {
	for _, a := range *p.current.Load() {
		if a.id == id {
			return a
		}
	}
	return nil
}

// renewList signs a new list if the registry says something new, or half of the old
// one's time is over. It is on disk before anybody gets it, so that its number is never
// used again.
func (p *Publisher) renewList(ctx context.Context, next *authority, a Authority, read bool) error {
	now := p.config.Now().UTC().Truncate(time.Second)
	due := next.der == nil || !now.Before(next.list.ThisUpdate.Add(p.config.ListLifetime/2)) || now.Before(next.list.ThisUpdate.Add(-time.Hour))
	if !read && !due {
		return nil
	}
	entries, err := p.config.Registry.Revoked(ctx, a.Certificate)
	if err != nil {
		return fmt.Errorf("read the revoked certificates of %q: %w", a.Certificate.Subject.CommonName, err)
	}
	slices.SortFunc(entries, func(a, b revocation.Entry) int { return a.Serial.Cmp(b.Serial) })
	sum := digest(entries)
	if !due && sum == next.digest {
		return nil
	}
	if a.Key == nil && next.der == nil {
		return nil // the key never was here: there is nothing to keep up
	}
	if a.Key == nil {
		return fmt.Errorf("the revocation list of %q needs to be signed and the CA's key is not at the hub; the last one is good until %s", a.Certificate.Subject.CommonName, next.list.NextUpdate.Format(time.RFC3339))
	}
	list := revocation.List{Number: number(next.list.Number, now), ThisUpdate: now, NextUpdate: now.Add(p.config.ListLifetime), Entries: entries}
	der, err := list.Sign(a.Certificate, a.Key)
	if err != nil {
		return err
	}
	if err := pemfile.Write(p.listFile(next.id), der, 0o644); err != nil {
		return fmt.Errorf("keep the revocation list of %q: %w", a.Certificate.Subject.CommonName, err)
	}
	next.der, next.digest = der, sum
	next.list = list
	p.config.Log.Info("revocation list signed", "issuer", a.Certificate.Subject.CommonName, "number", list.Number, "entries", len(entries), "next_update", list.NextUpdate)
	return nil
}

// number returns the number of the list after last: the time in Unix seconds, or one
// more than the last. A hub whose folder was restored from a backup, or that has lost
// its list, so goes on above every number it has used, unless its clock went back.
func number(last *big.Int, now time.Time) *big.Int {
	next := big.NewInt(now.Unix())
	if last != nil && next.Cmp(last) <= 0 {
		next.Add(last, big.NewInt(1))
	}
	return next
}

// digest tells entries apart.
func digest(entries []revocation.Entry) (sum [sha256.Size]byte) {
	h := sha256.New()
	var line []byte
	for _, e := range entries {
		line = append(e.Serial.Append(line[:0], 16), ' ')
		line = append(strconv.AppendInt(line, e.At.Unix(), 10), ' ')
		h.Write(append(strconv.AppendInt(line, int64(e.Reason), 10), '\n'))
	}
	h.Sum(sum[:0])
	return sum
}

// alarm logs what is wrong with something, once until it changes or is calmed.
func (p *Publisher) alarm(what, why string) {
	if p.alarmed[what] == why {
		return
	}
	p.alarmed[what] = why
	p.config.Log.Error("certificate status not up to date", "issuer", what, "error", why)
}

func (p *Publisher) calm(what string) {
	if _, ok := p.alarmed[what]; ok {
		delete(p.alarmed, what)
		p.config.Log.Info("certificate status is up to date again", "issuer", what)
	}
}

// Published is a list as it is served.
type Published struct {
	Issuer     *x509.Certificate
	Number     *big.Int // nil: there is none
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int
	DER        []byte
}

// Lists returns what is published of each authority.
func (p *Publisher) Lists() []Published {
	var all []Published
	for _, a := range *p.current.Load() {
		all = append(all, Published{a.issuer, a.list.Number, a.list.ThisUpdate, a.list.NextUpdate, len(a.list.Entries), a.der})
	}
	return all
}

// Answered returns how many OCSP questions were answered, and how many requests weren't.
func (p *Publisher) Answered() (answered, failed uint64) { return p.answered.Load(), p.failed.Load() }
