package station

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// The station's own server credentials. Boards know the key by the pin in their token
// or claim, so the certificate is nobody's but the key's own: the station's authority
// can't sign server certificates, and none is needed.
const (
	serverKeyFile  = "server.key"
	serverCertFile = "server.crt"
)

// The server's certificate is made anew before it ends, with the same key, so that the
// pins in tokens stay good.
const (
	serverValid = 397 * 24 * time.Hour
	serverRenew = 60 * 24 * time.Hour
)

// ServerKey returns the station's server key, made on first use.
func (s *Station) ServerKey() (crypto.Signer, error) {
	s.serving.Lock()
	defer s.serving.Unlock()
	path := filepath.Join(s.dir, serverKeyFile)
	key, err := pemfile.ReadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = issuance.NewKey(); err != nil {
		return nil, err
	}
	return key, pemfile.WriteKey(path, key)
}

// ServerCertificate returns the station's server credentials for those host names and
// addresses, besides localhost, this machine's loopback addresses and the names of
// before. The certificate file is for foreign EST clients, such as curl --cacert.
func (s *Station) ServerCertificate(hosts ...string) (*tls.Certificate, error) {
	key, err := s.ServerKey()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, serverCertFile)
	names, addresses, err := splitHosts(append([]string{"localhost", "127.0.0.1", "::1"}, hosts...))
	if err != nil {
		return nil, err
	}
	certs, err := pemfile.ReadCertificates(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && covers(certs[0], key, names, addresses, s.now()) {
		return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key, Leaf: certs[0]}, nil
	}
	if err == nil {
		names, addresses = union(names, certs[0].DNSNames), unionIP(addresses, certs[0].IPAddresses)
	}
	cert, err := selfSigned(key, "station "+s.name, names, addresses, s.now())
	if err != nil {
		return nil, err
	}
	if err := pemfile.WriteCertificates(path, cert); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// selfSigned returns a certificate of the key's own for a TLS server or, without names,
// for a client.
func selfSigned(key crypto.Signer, name string, names []string, addresses []net.IP, now time.Time) (*x509.Certificate, error) {
	serial, err := issuance.NewSerial()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make the certificate of %s: %w", name, err)
	}
	id := sha256.Sum256(spki) // RFC 7093 §2 method 1
	usage := x509.ExtKeyUsageServerAuth
	if len(names) == 0 {
		usage = x509.ExtKeyUsageClientAuth
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: names, IPAddresses: addresses,
		NotBefore: now.Add(-5 * time.Minute).UTC(), NotAfter: now.Add(serverValid).UTC(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, BasicConstraintsValid: true,
		SubjectKeyId: id[:20], AuthorityKeyId: id[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate of %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

func splitHosts(hosts []string) (names []string, addresses []net.IP, err error) {
	for _, h := range hosts {
		if address, err := netip.ParseAddr(h); err == nil {
			addresses = unionIP(addresses, []net.IP{address.Unmap().AsSlice()})
			continue
		}
		if h == "" || len(h) > 253 || slices.ContainsFunc([]byte(h), func(c byte) bool {
			return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.')
		}) {
			return nil, nil, errorf(ErrInvalid, "%.80q is no host name or address the station's server could have", h)
		}
		names = union(names, []string{h})
	}
	return names, addresses, nil
}

func union(a, b []string) []string {
	for _, name := range b {
		if !slices.Contains(a, name) {
			a = append(a, name)
		}
	}
	return a
}

func unionIP(a, b []net.IP) []net.IP {
	for _, ip := range b {
		if !slices.ContainsFunc(a, ip.Equal) {
			a = append(a, ip)
		}
	}
	return a
}

// covers reports whether the certificate does for the key, names and time.
func covers(cert *x509.Certificate, key crypto.Signer, names []string, addresses []net.IP, now time.Time) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public()) &&
		!now.Before(cert.NotBefore) && now.Before(cert.NotAfter.Add(-serverRenew)) &&
		len(union(slices.Clone(cert.DNSNames), names)) == len(cert.DNSNames) &&
		len(unionIP(slices.Clone(cert.IPAddresses), addresses)) == len(cert.IPAddresses)
}
