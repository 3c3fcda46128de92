package status

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
)

// ErrOwn is in the chain of the error about a list of an issuer whose lists the hub
// signs itself. It matches revocation.ErrIssuer.
var ErrOwn = fmt.Errorf("%w: the hub signs that issuer's revocation lists itself", revocation.ErrIssuer)

// ForeignConfig is what Foreign needs. Dir and Issuers are required.
type ForeignConfig struct {
	// Dir is where accepted lists are kept. It is made if it isn't there.
	Dir string
	// Issuers returns the CAs whose lists are taken: those that the hub trusts.
	Issuers func() []*x509.Certificate
	// Own reports whether the hub signs that CA's lists. Nil: none's.
	Own func(*x509.Certificate) bool

	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: nothing is logged
}

// Foreign holds the revocation lists that issuers elsewhere have signed. What one of
// them revokes stays revoked here until a newer list of the issuer says otherwise,
// whether or not the list is out of date by then: age can only alarm. It is safe for
// concurrent use.
type Foreign struct {
	config  ForeignConfig
	current atomic.Pointer[map[string]*foreignList] // by KeyID; replaced, never changed
	refused atomic.Uint64

	mu      sync.Mutex // held by Import and Check; guards what follows
	known   map[string]known
	alarmed map[string]string
}

// foreignList is one accepted list. It is immutable.
type foreignList struct {
	issuer  *x509.Certificate
	list    revocation.List
	revoked map[string]revocation.Entry // by the serial number's octets
}

// known is what is kept of an issuer beside its list: a list that disappears, or is
// exchanged for an older one, is noticed.
type known struct {
	Number *big.Int  `json:"number"`
	SHA256 string    `json:"sha256"`
	Next   time.Time `json:"next_update"`
	Name   string    `json:"name"`
}

const knownFile = "known.json"

// OpenForeign reads the lists accepted before. One that is missing, damaged, of another
// issuer or older than was known is not used, with an alarm (see Lists); the devices
// that it revoked are revoked in the registry, where they stay so.
func OpenForeign(config ForeignConfig) (*Foreign, error) {
	if config.Dir == "" || config.Issuers == nil {
		return nil, errors.New("foreign revocation lists: Dir and Issuers are required")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Own == nil {
		config.Own = func(*x509.Certificate) bool { return false }
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("foreign revocation lists: %w", err)
	}
	f := &Foreign{config: config, known: make(map[string]known), alarmed: make(map[string]string)}
	f.current.Store(&map[string]*foreignList{})
	data, err := os.ReadFile(filepath.Join(config.Dir, knownFile))
	if err == nil {
		err = json.Unmarshal(data, &f.known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("foreign revocation lists: %s: %w; put it back from a backup, or remove it and import the lists again", filepath.Join(config.Dir, knownFile), err)
	}
	f.Check()
	return f, nil
}

func (f *Foreign) file(id string) string { return filepath.Join(f.config.Dir, id+".crl") }

// Check reads what isn't in memory yet, such as the list of an issuer that is trusted
// again, and raises or lifts alarms. Call it now and then.
func (f *Foreign) Check() {
	f.mu.Lock()
	defer f.mu.Unlock()
	current := maps.Clone(*f.current.Load())
	for _, issuer := range f.config.Issuers() {
		id := KeyID(issuer)
		if _, expected := f.known[id]; !expected || current[id] != nil || f.config.Own(issuer) {
			continue
		}
		if l, err := f.read(id, issuer); err == nil {
			current[id] = l
		}
	}
	f.current.Store(&current)
	for id, k := range f.known {
		why := f.problem(id, k)
		if why == f.alarmed[id] {
			continue
		}
		f.alarmed[id] = why
		if why == "" {
			f.config.Log.Info("the revocation list of a foreign issuer is in order again", "issuer", k.Name)
		} else {
			f.config.Log.Error("a foreign issuer's revocation list is not in order", "issuer", k.Name, "problem", why)
		}
	}
}

// read reads an accepted list and holds it against what is known of it.
func (f *Foreign) read(id string, issuer *x509.Certificate) (*foreignList, error) {
	der, err := os.ReadFile(f.file(id))
	if err != nil {
		return nil, err
	}
	list, err := revocation.ReadList(der, issuer)
	if err != nil {
		return nil, err
	}
	if k := f.known[id]; list.Number.Cmp(k.Number) < 0 {
		return nil, fmt.Errorf("%w: number %s is on disk, number %s was accepted", revocation.ErrOlder, list.Number, k.Number)
	}
	return newForeignList(issuer, list), nil
}

func newForeignList(issuer *x509.Certificate, list revocation.List) *foreignList {
	l := &foreignList{issuer: issuer, list: list, revoked: make(map[string]revocation.Entry, len(list.Entries))}
	for _, e := range list.Entries {
		l.revoked[string(e.Serial.Bytes())] = e
	}
	return l
}

// problem says what is wrong with an issuer's list, "" if nothing is. The caller holds mu.
func (f *Foreign) problem(id string, k known) string {
	l := (*f.current.Load())[id]
	if l == nil {
		for _, issuer := range f.config.Issuers() {
			if KeyID(issuer) != id {
				continue
			}
			_, err := f.read(id, issuer)
			if errors.Is(err, fs.ErrNotExist) {
				return "the accepted list is missing from disk: import it again"
			}
			if err != nil {
				return "the list on disk is not used, import it again: " + err.Error()
			}
		}
		return "" // an issuer that isn't trusted any more: its devices are refused for that
	}
	if now := f.config.Now(); !now.Before(l.list.NextUpdate) {
		return fmt.Sprintf("a newer list was due on %s: get it from the issuer; what the old one revokes stays revoked", l.list.NextUpdate.UTC().Format(time.RFC3339))
	}
	return ""
}

// Imported is a list that was accepted.
type Imported struct {
	Issuer  *x509.Certificate
	List    revocation.List
	Removed int // entries of the list before that the new one doesn't have
}

// Import takes a list in DER or PEM, if an issuer that the hub trusts has signed it, it
// is newer than the one known, and it is in its time. From then on Revoked says what it
// says; it is on disk when Import returns nil. Its error matches one of package revocation's.
func (f *Foreign) Import(data []byte) (Imported, error) {
	imported, err := f.take(data)
	if err != nil {
		f.refused.Add(1)
		f.config.Log.Error("a foreign revocation list is refused", "error", err)
		return imported, err
	}
	f.config.Log.Info("a foreign revocation list is in force", "issuer", imported.Issuer.Subject.CommonName, "number", imported.List.Number, "entries", len(imported.List.Entries), "next_update", imported.List.NextUpdate)
	return imported, nil
}

// Refused returns how many lists were not accepted.
func (f *Foreign) Refused() uint64 { return f.refused.Load() }

// Accepted returns the lists in use.
func (f *Foreign) Accepted() []Imported {
	var all []Imported
	for _, l := range *f.current.Load() {
		all = append(all, Imported{Issuer: l.issuer, List: l.list})
	}
	return all
}

func (f *Foreign) take(data []byte) (Imported, error) {
	if block, _ := pem.Decode(data); block != nil && block.Type == "X509 CRL" {
		data = block.Bytes
	}
	parsed, err := x509.ParseRevocationList(data)
	if err != nil {
		return Imported{}, fmt.Errorf("%w: %w", revocation.ErrMalformed, err)
	}
	issuer, list, err := f.accept(data, parsed)
	if err != nil {
		return Imported{}, err
	}
	id := KeyID(issuer)
	f.mu.Lock()
	defer f.mu.Unlock()
	var before *big.Int
	if k, ok := f.known[id]; ok {
		before = k.Number
		if (*f.current.Load())[id] == nil && list.Number.Cmp(before) == 0 {
			before = nil // it was lost here: the same again is what is wanted
		}
	}
	if err := list.Check(before, f.config.Now()); err != nil {
		return Imported{}, fmt.Errorf("the list of %q: %w", issuer.Subject.CommonName, err)
	}
	// The list before what is known of it: a kill in between leaves a list that is newer
	// than known, which is used.
	if err := pemfile.Write(f.file(id), data, 0o644); err != nil {
		return Imported{}, err
	}
	sum := sha256.Sum256(data)
	next := maps.Clone(f.known)
	next[id] = known{Number: list.Number, SHA256: hex.EncodeToString(sum[:]), Next: list.NextUpdate, Name: issuer.Subject.CommonName}
	encoded, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return Imported{}, err
	}
	if err := pemfile.Write(filepath.Join(f.config.Dir, knownFile), encoded, 0o600); err != nil {
		return Imported{}, err
	}
	f.known = next
	fresh := newForeignList(issuer, list)
	imported := Imported{Issuer: issuer, List: list}
	current := maps.Clone(*f.current.Load())
	if former := current[id]; former != nil {
		for serial := range former.revoked {
			if _, still := fresh.revoked[serial]; !still {
				imported.Removed++
			}
		}
	}
	current[id] = fresh
	f.current.Store(&current)
	f.alarmed[id] = ""
	return imported, nil
}

// accept returns the trusted issuer that signed the list, and what it says.
func (f *Foreign) accept(der []byte, parsed *x509.RevocationList) (*x509.Certificate, revocation.List, error) {
	err := fmt.Errorf("%w: no issuer that the hub trusts is called %.120q; `hub issuer list` shows those there are", revocation.ErrIssuer, parsed.Issuer)
	for _, issuer := range f.config.Issuers() {
		if string(issuer.RawSubject) != string(parsed.RawIssuer) {
			continue
		}
		var list revocation.List
		if list, err = revocation.ReadList(der, issuer); err != nil {
			continue
		}
		if f.config.Own(issuer) {
			return nil, list, fmt.Errorf("%w: %q", ErrOwn, issuer.Subject.CommonName)
		}
		return issuer, list, nil
	}
	return nil, revocation.List{}, err
}

// Revoked reports whether an accepted list of that issuer revokes a certificate, or has
// it on hold. It does no I/O: safe in a handshake.
func (f *Foreign) Revoked(issuer *x509.Certificate, serial *big.Int) (revocation.Entry, bool) {
	l := (*f.current.Load())[KeyID(issuer)]
	if l == nil {
		return revocation.Entry{}, false
	}
	e, revoked := l.revoked[string(serial.Bytes())]
	return e, revoked
}

// ForeignList is a list as `hub crl list` shows it.
type ForeignList struct {
	Name    string
	KeyID   string
	Number  *big.Int
	Next    time.Time
	Entries int    // 0 if the list isn't in use
	Problem string // empty: none
}

// Lists returns what is known of each foreign issuer that ever had a list here.
func (f *Foreign) Lists() []ForeignList {
	f.mu.Lock()
	defer f.mu.Unlock()
	current := *f.current.Load()
	all := make([]ForeignList, 0, len(f.known))
	for id, k := range f.known {
		l := ForeignList{Name: k.Name, KeyID: id, Number: k.Number, Next: k.Next, Problem: f.problem(id, k)}
		if c := current[id]; c != nil {
			l.Entries = len(c.list.Entries)
		}
		all = append(all, l)
	}
	return all
}
