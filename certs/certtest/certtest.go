// Package certtest is a throwaway fleet PKI for tests, as net/http/httptest is a
// throwaway server: a root, an operational and a factory issuing CA, and credentials of
// every role, all in memory.
package certtest

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// TrustDomain is the trust domain of every Fleet, StationName its station.
const (
	TrustDomain = "fleet.example"
	StationName = "bench-1"
)

// Fleet is one PKI. Two fleets share names but no keys: each is foreign to the other.
type Fleet struct {
	Root, Operational, Factory *issuance.Issuer
	OperationalKey, FactoryKey crypto.Signer // the factory's signs manifests

	t testing.TB
}

// New returns a fresh PKI.
func New(t testing.TB) *Fleet {
	t.Helper()
	f := &Fleet{t: t}
	rootKey := f.key()
	rootCert, err := issuance.NewRoot(TrustDomain, rootKey, 0, lastYear)
	f.must(err)
	f.Root = f.issuer(rootCert, rootKey)
	f.Operational, f.OperationalKey = f.IssuingCA(identity.KindOperational, "hub")
	f.Factory, f.FactoryKey = f.IssuingCA(identity.KindFactory, StationName)
	return f
}

// lastYear is when the CAs are made, so that certificates that have expired since can be.
func lastYear() time.Time { return time.Now().AddDate(-1, 0, 0) }

// Foreign returns a PKI of the same names and other keys.
func (f *Fleet) Foreign() *Fleet { return New(f.t) }

// IssuingCA returns a further issuing CA under the fleet's root, and its key.
func (f *Fleet) IssuingCA(kind identity.IssuerKind, name string) (*issuance.Issuer, crypto.Signer) {
	f.t.Helper()
	key := f.key()
	cert, err := f.Root.At(lastYear).IssueCA(issuance.CARequest{Kind: kind, Name: name, TrustDomain: TrustDomain, PublicKey: key.Public(), Valid: 10 * 365 * 24 * time.Hour})
	f.must(err)
	return f.issuer(cert, key), key
}

// Bundle is the trust bundle of the fleet's clients: the root and the hub's issuing CA.
func (f *Fleet) Bundle() []*x509.Certificate {
	return []*x509.Certificate{f.Root.Certificate(), f.Operational.Certificate()}
}

// Trust is what a hub of this fleet trusts.
func (f *Fleet) Trust() mtls.Trust {
	return mtls.Trust{
		TrustDomain: TrustDomain,
		Roots:       []*x509.Certificate{f.Root.Certificate()},
		Issuers:     []*x509.Certificate{f.Operational.Certificate(), f.Factory.Certificate()},
	}
}

// Credential is a certificate with its key, and its fleet's trust bundle.
type Credential struct {
	mtls.Credentials
	Key    crypto.Signer
	Issuer *x509.Certificate
	t      testing.TB
}

// Option changes how a credential is issued.
type Option func(*options)

type options struct {
	issuer *issuance.Issuer
	at     time.Time
	valid  time.Duration
	ou     []string
	proved identity.Protection
}

// WithValidity has the certificate issued at that time, within the last year or the
// next nine, for that long, so that it may have expired or not begun.
func WithValidity(at time.Time, valid time.Duration) Option {
	return func(o *options) { o.at, o.valid = at, valid }
}

// WithIssuer has another CA sign.
func WithIssuer(i *issuance.Issuer) Option { return func(o *options) { o.issuer = i } }

// WithOU sets the subject's organizational units.
func WithOU(ou ...string) Option { return func(o *options) { o.ou = ou } }

// Device returns a device's credential, by the factory issuer.
func (f *Fleet) Device(id string, opts ...Option) Credential {
	f.t.Helper()
	return f.credential(f.Factory, issuance.DeviceProfile(), identity.RoleDevice, id, nil, opts)
}

// Service returns a backend application's credential.
func (f *Fleet) Service(name string, opts ...Option) Credential {
	f.t.Helper()
	return f.credential(f.Operational, issuance.ServiceProfile(), identity.RoleService, name, nil, opts)
}

// Operator returns an operator's credential.
func (f *Fleet) Operator(name string, opts ...Option) Credential {
	f.t.Helper()
	return f.credential(f.Operational, issuance.OperatorProfile(), identity.RoleOperator, name, nil, opts)
}

// Server returns a hub's server credential for 127.0.0.1, localhost and those names.
func (f *Fleet) Server(dnsNames ...string) Credential {
	f.t.Helper()
	return f.credential(f.Operational, issuance.ServerProfile(), identity.RoleHub, "hub", append(dnsNames, "localhost"), nil)
}

// WithTPM has the certificate say that its key is in a TPM that has proved it. It isn't.
func WithTPM() Option { return func(o *options) { o.proved = identity.ProtectionTPM } }

func (f *Fleet) credential(by *issuance.Issuer, profile issuance.Profile, role identity.Role, id string, dnsNames []string, opts []Option) Credential {
	f.t.Helper()
	o := options{issuer: by}
	for _, opt := range opts {
		opt(&o)
	}
	issuer := o.issuer
	if !o.at.IsZero() {
		issuer = issuer.At(func() time.Time { return o.at })
	}
	name, err := identity.New(TrustDomain, role, id)
	f.must(err)
	name.OU = o.ou
	key := f.key()
	request := issuance.Request{Profile: profile, Identity: name, PublicKey: key.Public(), Valid: o.valid, DNSNames: dnsNames, Protection: o.proved}
	if len(dnsNames) > 0 {
		request.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	leaf, err := issuer.Issue(request)
	f.must(err)
	return Credential{
		Credentials: mtls.Credentials{
			Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw, issuer.Certificate().Raw}, PrivateKey: key, Leaf: leaf},
			Leaf:        leaf,
			Roots:       f.Bundle(),
			Identity:    name,
		},
		Key: key, Issuer: issuer.Certificate(), t: f.t,
	}
}

// WriteTo writes <base>.key, <base>.crt and ca.crt below dir, as the programs read
// them, and returns dir.
func (c Credential) WriteTo(dir, base string) string {
	c.t.Helper()
	for _, err := range []error{
		os.MkdirAll(dir, 0o700),
		pemfile.WriteKey(filepath.Join(dir, base+".key"), c.Key),
		pemfile.WriteCertificates(filepath.Join(dir, base+".crt"), c.Leaf, c.Issuer),
		pemfile.WriteCertificates(filepath.Join(dir, "ca.crt"), c.Roots...),
	} {
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return dir
}

// ClientConfig returns the TLS configuration of a client that dials 127.0.0.1.
func (c Credential) ClientConfig() *tls.Config {
	return mtls.ClientConfig(mtls.ClientOptions{Certificate: c.Certificate, Roots: c.Roots, ServerName: "127.0.0.1"})
}

func (f *Fleet) key() crypto.Signer {
	f.t.Helper()
	key, err := issuance.NewKey()
	f.must(err)
	return key
}

func (f *Fleet) issuer(cert *x509.Certificate, key crypto.Signer) *issuance.Issuer {
	f.t.Helper()
	i, err := issuance.NewIssuer(cert, key, nil)
	f.must(err)
	return i
}

func (f *Fleet) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}
