// Package enrolment gets a device its certificate over EST: its first from a factory
// station, and later ones in place of it.
//
// The private key is made here, in the machine's TPM if it has one, and never leaves.
// It is durable before anybody is asked to certify it, and the credentials change in
// one step, so whatever is killed when, repeating the command is right.
package enrolment

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

// ErrInvalid is in the chain of errors about what the caller asked for.
var ErrInvalid = errors.New("invalid")

// TPM says where the key is made, besides the address of a TPM, which is required then.
const (
	TPMAuto    = "auto"    // in the machine's TPM if it has one
	TPMRequire = "require" // in the machine's TPM, which the server must have found genuine
	TPMOff     = "off"     // in a file
)

// Config says whom to ask, and as whom.
type Config struct {
	Dir    string // the credential folder
	Server string // https://HOST:PORT of the station or, to renew, the hub
	Token  string // an enrolment token as the station told it, or ""
	Claim  string // a folder with claim.key, claim.crt and station.pin, or ""
	Pin    string // of the server's key, if neither token nor claim nor trust bundle has it
	TPM    string // TPMAuto, TPMRequire, TPMOff or an address; "": TPMAuto

	// Stage has Renew keep the new credentials beside those in place, for keystore.Promote
	// once the hub has taken them.
	Stage bool

	// Notice is called with what a person should know, one sentence each. Nil: nobody.
	Notice func(string)
}

// Result says what the device has now.
type Result struct {
	Identity    identity.Identity
	Fingerprint string
	Serial      string
	Issuer      string
	NotAfter    time.Time
	TPM         string // address of the TPM that the key is in, "" if it is in a file
	Attested    bool   // the TPM proved it to the server
}

// Enroll gets the device its first certificate and installs it. A folder that has one
// already is refused.
func Enroll(ctx context.Context, c Config) (Result, error) {
	if c.Notice == nil {
		c.Notice = func(string) {}
	}
	keys, err := keystore.Open(c.Dir)
	if err == nil {
		return Result{}, fmt.Errorf("%s holds the certificate of %s already: renew it with `device-agent renew`, or enrol into another folder", c.Dir, keys.Identity())
	}
	if _, has := os.Lstat(filepath.Join(c.Dir, "device.crt")); has == nil {
		return Result{}, fmt.Errorf("%s holds a device's certificate that can't be used (%w); move it away first", c.Dir, err)
	}
	client, err := c.client(nil)
	if err != nil {
		return Result{}, err
	}
	defer client.Close()
	draft, err := keystore.NewDraft(c.Dir)
	if err != nil {
		return Result{}, err
	}
	key, t, err := c.makeKey(draft)
	if err != nil {
		return Result{}, err
	}
	x := &exchange{config: c, client: client, key: key, tpm: t}
	if err := x.trust(ctx); err != nil {
		return Result{}, err
	}
	leaf, err := x.enroll(ctx)
	if err != nil {
		return Result{}, err
	}
	return x.install(draft, leaf)
}

// Renew gets the device another certificate, for a new key and the same identity, with
// the one it has, and installs it. A key in a TPM comes with the TPM's word for it, as far
// as the server wants that; with TPMRequire or an address it must. An agent that runs uses it from its next connection.
func Renew(ctx context.Context, c Config) (Result, error) {
	if c.Notice == nil {
		c.Notice = func(string) {}
	}
	keys, err := keystore.Open(c.Dir)
	if err != nil {
		return Result{}, err
	}
	client, err := c.client(keys)
	if err != nil {
		return Result{}, err
	}
	defer client.Close()
	draft, err := keystore.NewDraft(c.Dir)
	if err != nil {
		return Result{}, err
	}
	vouched := c.required()
	if c.TPM == "" || c.TPM == TPMAuto {
		if c.TPM = TPMOff; keys.TPM() != "" { // a key stays as well kept as it was
			c.TPM = keys.TPM()
		}
	}
	key, t, err := c.makeKey(draft)
	if err != nil {
		return Result{}, err
	}
	x := &exchange{config: c, client: client, key: key, tpm: t, current: keys}
	if err := x.trust(ctx); err != nil {
		return Result{}, err
	}
	leaf, err := x.reenroll(ctx, vouched)
	if err != nil {
		return Result{}, err
	}
	return x.install(draft, leaf)
}

// client returns the EST client: of a station known by its pin, or of a hub by the
// trust bundle in the folder.
func (c Config) client(current *keystore.Keystore) (*est.Client, error) {
	u, err := url.Parse(c.Server)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("%w: the server's URL %.200q is not of the form https://HOST:PORT", ErrInvalid, c.Server)
	}
	config := est.ClientConfig{URL: c.Server}
	if c.Token != "" {
		token, err := est.ParseToken(c.Token)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		config.Token, config.Pin = token.Secret, &token.Pin
	}
	if c.Claim != "" {
		if config.Certificate, config.Pin, err = loadClaim(c.Claim); err != nil {
			return nil, err
		}
	}
	if c.Pin != "" {
		pin, err := est.ParsePin(c.Pin)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if config.Pin != nil && *config.Pin != pin {
			return nil, fmt.Errorf("%w: the pin given is not the one in the token or claim: they are of two stations", ErrInvalid)
		}
		config.Pin = &pin
	}
	var presented tls.Certificate
	var roots []*x509.Certificate
	if current != nil {
		presented, roots = current.Credentials().Certificate, current.Credentials().Roots
		config.Certificate = &presented
	}
	if config.Pin == nil && len(roots) == 0 {
		return nil, fmt.Errorf("%w: by nothing could this board tell the station from somebody else: give a --token or --claim of that station, or its --pin", ErrInvalid)
	}
	if config.Pin == nil || len(roots) > 0 {
		config.TLS = mtls.ClientConfig(mtls.ClientOptions{Certificate: presented, Roots: roots, ServerName: u.Hostname()})
	}
	client, err := est.NewClient(config)
	if errors.Is(err, est.ErrMalformed) {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return client, err
}

func loadClaim(dir string) (*tls.Certificate, *est.Pin, error) {
	key, err := pemfile.ReadKey(filepath.Join(dir, "claim.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("claim certificate: %w", err)
	}
	certs, err := pemfile.ReadCertificates(filepath.Join(dir, "claim.crt"))
	if err != nil {
		return nil, nil, fmt.Errorf("claim certificate: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "station.pin"))
	if err != nil {
		return nil, nil, fmt.Errorf("claim certificate: %w", err)
	}
	pin, err := est.ParsePin(string(text))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(dir, "station.pin"), err)
	}
	return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key, Leaf: certs[0]}, &pin, nil
}

// exchange is one enrolment under way.
type exchange struct {
	config  Config
	client  *est.Client
	key     crypto.Signer
	tpm     *machineTPM        // nil: the key is in a file
	current *keystore.Keystore // nil: none yet

	attested bool
	roots    []*x509.Certificate
	bundle   []*x509.Certificate // roots, then the hub's issuing CAs
	issuers  []*x509.Certificate // every CA that isn't a root
}

// maxTries and firstWait are for a server that says it is busy without saying for how
// long.
const (
	maxTries  = 8
	firstWait = 2 * time.Second
	maxWait   = 2 * time.Minute
)

// retry calls do until it succeeds, fails for good, or has been tried often enough.
func retry[T any](ctx context.Context, notice func(string), do func() (T, error)) (T, error) {
	wait := firstWait
	for try := 1; ; try++ {
		result, err := do()
		refusal, ok := errors.AsType[*est.ServerError](err)
		if err == nil || !ok || !refusal.Temporary() || try == maxTries {
			return result, err
		}
		pause := min(max(refusal.RetryAfter, wait), maxWait)
		notice(fmt.Sprintf("%v; trying again in %s", err, pause))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return result, errors.Join(err, ctx.Err())
		case <-timer.C:
		}
		wait *= 2
	}
}

// trust fetches the fleet's CA certificates, and holds them against those there are.
func (x *exchange) trust(ctx context.Context) error {
	certs, err := retry(ctx, x.config.Notice, func() ([]*x509.Certificate, error) { return x.client.CACerts(ctx) })
	if err != nil {
		return err
	}
	var hubs []*x509.Certificate
	for _, c := range certs {
		kind, err := identity.KindOf(c)
		if err != nil {
			return fmt.Errorf("the server's CA certificates: %w", err)
		}
		switch kind {
		case identity.KindRoot:
			x.roots = append(x.roots, c)
			continue
		case identity.KindOperational:
			hubs = append(hubs, c)
		}
		x.issuers = append(x.issuers, c)
	}
	x.bundle = append(append([]*x509.Certificate{}, x.roots...), hubs...)
	if len(x.roots) == 0 {
		return errors.New("the server's CA certificates have no root among them")
	}
	known, err := pemfile.ReadCertificates(filepath.Join(x.config.Dir, "ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, k := range known {
		for _, r := range x.roots {
			if k.Equal(r) {
				return nil
			}
		}
	}
	return fmt.Errorf("the server is of another fleet than %s: none of its roots is in there", filepath.Join(x.config.Dir, "ca.crt"))
}

// install checks what came and puts it in place.
func (x *exchange) install(draft *keystore.Draft, leaf *x509.Certificate) (Result, error) {
	id, issuer, err := x.check(leaf)
	if err != nil {
		return Result{}, fmt.Errorf("the certificate that came is not installed: %w", err)
	}
	put := draft.Install
	if x.config.Stage && x.current != nil {
		put = draft.Stage
	}
	if err := put([]*x509.Certificate{leaf, issuer}, x.bundle); err != nil {
		return Result{}, err
	}
	r := Result{
		Identity: id, Fingerprint: identity.Fingerprint(leaf), Serial: identity.SerialString(leaf.SerialNumber),
		Issuer: leaf.Issuer.CommonName, NotAfter: leaf.NotAfter, Attested: x.attested,
	}
	if x.tpm != nil {
		r.TPM = x.tpm.Address()
	}
	return r, nil
}

// check verifies the certificate as the hub will. The time is that of its beginning: this
// machine's clock may never have been set.
func (x *exchange) check(leaf *x509.Certificate) (identity.Identity, *x509.Certificate, error) {
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return id, nil, err
	}
	if id.Role != identity.RoleDevice {
		return id, nil, fmt.Errorf("it is for a %s, not for a device", id.Role)
	}
	if x.current != nil {
		if old := x.current.Identity(); id.String() != old.String() {
			return id, nil, fmt.Errorf("it is for %s, and this device is %s", id, old)
		}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range x.roots {
		roots.AddCert(r)
	}
	for _, c := range x.issuers {
		between.AddCert(c)
	}
	at := leaf.NotBefore
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return id, nil, err
	}
	issuer := chains[0][1]
	if kind, err := identity.KindOf(issuer); err != nil || !kind.MayIssue(identity.RoleDevice) || len(chains[0]) != 3 {
		return id, nil, fmt.Errorf("%q may not issue devices' certificates", issuer.Subject.CommonName)
	}
	return id, issuer, nil
}

// csr returns a request for the key. The name in it is for the reader, and for servers
// that hold a renewal against the certificate (RFC 7030 §4.2.2).
func (x *exchange) csr() ([]byte, error) {
	name := "unnamed"
	if x.current != nil {
		name = x.current.Identity().ID
	}
	return issuance.NewCSR(x.key, name)
}

// host returns the server's name for messages.
func (c Config) host() string { return strings.TrimPrefix(c.Server, "https://") }
