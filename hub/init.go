package main

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
)

type initOptions struct {
	dir, trustDomain, operator string
	hostnames                  []string

	name, key string // of the issuing CA; where its key is kept
	rootKey   string // where the root's is
	root      string // a file with the root's certificate: its key is elsewhere
}

func newInit(output *command.Output) *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a hub's folder: offline root, issuing CA, server and first operator certificate",
		Long: `Makes everything a hub needs in --dir and prints the fingerprints:

  root/      the fleet's root key and certificate: move it to a safe, it is needed
             only to authorize stations
  ca/        the hub's operational issuing CA
  ca.crt     the trust bundle: the root, and the hub's issuing CA
  tls/       the hub's server certificate
  operator/  the first operator's certificate
  issuers/   the stations' issuing CAs
  hub.yaml   the configuration, every key explained
  policy.yaml  who may use which topic

Nothing is ever overwritten. A killed run leaves nothing that counts: run it again.

With --root the root's key never comes near this machine: the hub's issuing CA is asked for
(ca/next.csr), the root signs it on its stick (hub root sign), and hub ca install makes the
hub complete. See hub root init.

A key that is kept in a file with a passphrase, or in a token with a PIN, needs it at each
start of the hub: as the systemd credential operational.key.passphrase. A TPM that is not
this machine's is named by the variable FLEETHUB_ISSUING_KEY__TPM, then in hub.yaml.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runInit(c, o, output) },
	}
	dirFlag(c, &o.dir)
	c.Flags().StringVar(&o.trustDomain, "trust-domain", "fleet.example", "the fleet's `name` in every certificate, for ever")
	c.Flags().StringSliceVar(&o.hostnames, "hostname", nil, "a host `name` or IP address devices reach the hub by; may repeat (localhost and this host's name are always in)")
	c.Flags().StringVar(&o.operator, "operator", "admin", "`ID` of the first operator")
	c.Flags().StringVar(&o.name, "name", "hub", "`name` of the issuing CA, for a second hub under one root")
	keepFlag(c, &o.key, "key", "the issuing CA's", string(cakey.KeepInFile))
	keepFlag(c, &o.rootKey, "root-key", "the root's", string(cakey.KeepInFile))
	c.Flags().StringVar(&o.root, "root", "", "`file` with the certificate of a root whose key is elsewhere")
	c.MarkFlagsMutuallyExclusive("root", "root-key")
	return c
}

// initReport is what hub init prints.
type initReport struct {
	Dir          string            `json:"dir"`
	TrustDomain  string            `json:"trust_domain"`
	Hostnames    []string          `json:"hostnames"`
	Fingerprints map[string]string `json:"fingerprints"`
	Request      string            `json:"request,omitempty"`    // waits for the root
	KeyHash      string            `json:"key_sha256,omitempty"` // of the request
	Kept         cakey.Kind        `json:"kept"`                 // where the issuing CA's key is
}

func runInit(c *cobra.Command, o initOptions, output *command.Output) error {
	if o.root != "" {
		if err := o.adoptRoot(c.Flags().Changed("trust-domain")); err != nil {
			return err
		}
	}
	if err := identity.ValidTrustDomain(o.trustDomain); err != nil {
		return command.Errorf(command.Usage, "--trust-domain: %w", err)
	}
	if err := identity.ValidID(o.operator); err != nil {
		return command.Errorf(command.Usage, "--operator: %w", err)
	}
	if err := identity.ValidID(o.name); err != nil {
		return command.Errorf(command.Usage, "--name: %w", err)
	}
	keep, err := parseKeep("key", o.key)
	if err != nil {
		return err
	}
	rootKeep, err := parseKeep("root-key", o.rootKey)
	if err != nil {
		return err
	}
	names, ips, err := splitHostnames(o.hostnames)
	if err != nil {
		return command.Errorf(command.Usage, "--hostname: %w", err)
	}
	if err := requireFresh(o.dir); err != nil {
		return err
	}
	stage, err := pemfile.NewStage(o.dir)
	if err != nil {
		return err
	}
	defer stage.Abort()
	m := hubMaker{o: o, stage: stage, names: names, ips: ips, key: newKeyOpener(c, server.DefaultConfig("").IssuingKey.Source(), os.Getenv(tpmVariable)).maker(keep), rootKey: rootKeys(c).maker(rootKeep)}
	report, err := m.make()
	if err != nil {
		return err
	}
	if err := stage.Commit(); err != nil {
		return err
	}
	return output.Print(c.OutOrStdout(), report, func(w io.Writer) error { return report.write(w) })
}

// adoptRoot reads the certificate of a root whose key is elsewhere, which names the trust
// domain.
func (o *initOptions) adoptRoot(domainGiven bool) error {
	certs, err := pemfile.ReadCertificates(o.root)
	if errors.Is(err, fs.ErrNotExist) {
		return command.Errorf(command.NotFound, "there is no file %s: `hub root init` writes root.crt", o.root)
	}
	if err != nil {
		return err
	}
	if err := authority.RequireRoot(certs[0]); err != nil {
		return fmt.Errorf("%s: %w", o.root, err)
	}
	domain := certs[0].Subject.CommonName
	if domainGiven && domain != o.trustDomain {
		return command.Errorf(command.Usage, "--trust-domain %s: the root in %s is of %s", o.trustDomain, o.root, domain)
	}
	o.trustDomain = domain
	return nil
}

// requireFresh refuses a folder that holds anything but the leftover of a killed init.
func requireFresh(dir string) error {
	if _, err := pemfile.Finish(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == server.ConfigFile }) {
		return fmt.Errorf("%s already holds a hub, which is never overwritten: name another folder with --dir", dir)
	}
	for _, e := range entries {
		switch e.Name() {
		case ".partial", "lost+found":
		default:
			return fmt.Errorf("%s is not empty (it has %s): name an empty or new folder with --dir", dir, e.Name())
		}
	}
	return nil
}

// splitHostnames sorts names from addresses, and adds those a hub always answers to.
func splitHostnames(given []string) (names []string, ips []net.IP, err error) {
	all := append([]string{"localhost", "127.0.0.1"}, given...)
	if own, err := os.Hostname(); err == nil && identity.ValidID(own) == nil {
		all = append(all, own)
	}
	seen := make(map[string]bool)
	for _, h := range all {
		if seen[h] {
			continue
		}
		seen[h] = true
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else if identity.ValidTrustDomain(strings.ToLower(h)) == nil {
			names = append(names, h)
		} else {
			return nil, nil, fmt.Errorf("%.80q is neither a host name nor an IP address", h)
		}
	}
	return names, ips, nil
}

// hubMaker writes a hub's folder into a stage.
type hubMaker struct {
	o            initOptions
	stage        *pemfile.Stage
	names        []string
	ips          []net.IP
	key, rootKey func(path string) (crypto.Signer, []byte, error)
}

// make writes the whole folder, or, with a root elsewhere, all that needs no certificate.
func (m hubMaker) make() (initReport, error) {
	report := initReport{Dir: m.o.dir, TrustDomain: m.o.trustDomain, Hostnames: m.hostnames(), Fingerprints: map[string]string{}}
	config, err := server.ShippedConfig(m.o.trustDomain)
	if err != nil {
		return report, err
	}
	for _, err := range []error{
		os.Mkdir(m.stage.Path("issuers"), 0o700),
		os.Mkdir(m.stage.Path("ca"), 0o700),
		pemfile.Write(m.stage.Path(server.PolicyFile), policy.Shipped(), 0o600),
		pemfile.Write(m.stage.Path(server.ConfigFile), config, 0o600),
	} {
		if err != nil {
			return report, err
		}
	}
	keyFile, fill := "ca/operational.key", m.issue
	if m.o.root != "" {
		keyFile, fill = "ca/next.key", m.ask
	}
	if err := fill(&report); err != nil {
		return report, err
	}
	report.Kept, err = cakey.KindOf(m.stage.Path(keyFile))
	return report, err
}

func (m hubMaker) hostnames() []string {
	all := slices.Clone(m.names)
	for _, ip := range m.ips {
		all = append(all, ip.String())
	}
	return all
}

// ask leaves the request for the issuing CA, and what is to be issued once it is there.
func (m hubMaker) ask(report *initReport) error {
	certs, err := pemfile.ReadCertificates(m.o.root)
	if err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(m.stage.Path("ca.crt"), certs[0]); err != nil {
		return err
	}
	request, err := authority.In(m.stage.Path(""), nil).Request(m.o.name, func(string) (crypto.Signer, []byte, error) {
		return m.key(filepath.Join(m.o.dir, "ca", "next.key")) // where it will be: the passphrase is asked for under that name
	})
	if err != nil {
		return err
	}
	report.Fingerprints["root"] = identity.Fingerprint(certs[0])
	report.Request, report.KeyHash = filepath.Join(m.o.dir, "ca", filepath.Base(request.File)), identity.KeyFingerprint(request.CSR.RawSubjectPublicKeyInfo)
	return first{Hostnames: m.hostnames(), Operator: m.o.operator}.write(m.stage.Path(firstFile))
}

// issue makes the root, has it sign the issuing CA, and has that sign the rest.
func (m hubMaker) issue(report *initReport) error {
	rootKey, rootFile, err := m.rootKey(filepath.Join(m.o.dir, "root", "root.key"))
	if err != nil {
		return err
	}
	rootCert, err := issuance.NewRoot(m.o.trustDomain, rootKey, 0, nil)
	if err != nil {
		return err
	}
	root, err := issuance.NewIssuer(rootCert, rootKey, nil)
	if err != nil {
		return err
	}
	caKey, caFile, err := m.key(filepath.Join(m.o.dir, "ca", "operational.key"))
	if err != nil {
		return err
	}
	caCert, err := root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: m.o.name, TrustDomain: m.o.trustDomain, PublicKey: caKey.Public()})
	if err != nil {
		return err
	}
	ca, err := issuance.NewIssuer(caCert, caKey, nil)
	if err != nil {
		return err
	}
	// Who has the issuing CA in its trust bundle needs no more than the leaf of the hub,
	// in every full handshake for as long as it lives.
	bundle := []*x509.Certificate{rootCert, caCert}
	rootDir := filepath.Dir(m.stage.Path("root/root.key"))
	for _, err := range []error{
		authority.WriteRoot(rootDir, rootCert, rootFile),
		authority.Record(rootDir, caCert),
		pemfile.Write(m.stage.Path("ca/operational.key"), caFile, 0o600),
		pemfile.WriteCertificates(m.stage.Path("ca/operational.crt"), caCert),
		pemfile.WriteCertificates(m.stage.Path("ca.crt"), bundle...),
	} {
		if err != nil {
			return err
		}
	}
	serverCert, operatorCert, err := issueOwn(m.stage, ca, m.o.trustDomain, m.stage.Path("ca"), ownNames{m.names, m.ips, m.o.operator}, bundle)
	if err != nil {
		return err
	}
	for name, cert := range map[string]*x509.Certificate{"root": rootCert, "operational": caCert, "server": serverCert, "operator": operatorCert} {
		report.Fingerprints[name] = identity.Fingerprint(cert)
	}
	return nil
}

// ownNames is whom a hub's first certificates name.
type ownNames struct {
	hosts    []string
	ips      []net.IP
	operator string
}

// issueOwn issues the hub's server certificate and its first operator's into a stage, and
// has them on record in journalDir.
func issueOwn(stage *pemfile.Stage, ca *issuance.Issuer, trustDomain, journalDir string, names ownNames, bundle []*x509.Certificate) (serverCert, operatorCert *x509.Certificate, err error) {
	serverID := identity.Identity{TrustDomain: trustDomain, Role: identity.RoleHub, ID: "hub"}
	serverCert, err = issueCredential(ca, issuance.Request{Profile: issuance.ServerProfile(), Identity: serverID, DNSNames: names.hosts, IPAddresses: names.ips},
		journalDir, credentialFiles{key: stage.Path("tls/server.key"), cert: stage.Path("tls/server.crt")})
	if err != nil {
		return nil, nil, err
	}
	operatorID := identity.Identity{TrustDomain: trustDomain, Role: identity.RoleOperator, ID: names.operator, OU: []string{"admin"}}
	operatorCert, err = issueCredential(ca, issuance.Request{Profile: issuance.OperatorProfile(), Identity: operatorID}, journalDir,
		credentialFiles{key: stage.Path("operator/operator.key"), cert: stage.Path("operator/operator.crt"), bundle: stage.Path("operator/ca.crt"), roots: bundle})
	return serverCert, operatorCert, err
}

func (r initReport) write(w io.Writer) error {
	if r.Request != "" {
		_, err := fmt.Fprintf(w, `hub begun in %[1]s for trust domain %[2]s, reached as %[3]v
root SHA-256  %[4]s (is it what hub root init printed?)
key SHA-256   %[5]s (of the request: to be compared at the root)

Next, where the root is, and then here:
  hub root sign --dir STICK --kind operational --csr %[6]s --key-sha256 %[5]s --out hub.crt
  hub ca install --dir %[1]s hub.crt
`, r.Dir, r.TrustDomain, r.Hostnames, r.Fingerprints["root"], r.KeyHash, filepath.Base(r.Request))
		return errors.Join(err, r.credential(w))
	}
	fmt.Fprintf(w, "hub made in %s for trust domain %s, reached as %v\n\nSHA-256 fingerprints:\n", r.Dir, r.TrustDomain, r.Hostnames)
	for _, name := range []string{"root", "operational", "server", "operator"} {
		fmt.Fprintf(w, "  %-12s %s\n", name, r.Fingerprints[name])
	}
	_, err := fmt.Fprintf(w, `
Next:
  hub serve --dir %[1]s
  hub station authorize --dir %[1]s --csr station.csr --key-sha256 HEX --out station-authority.pem
The key in %[2]s signs stations' authorities and the hub's issuing CAs,
and nothing else: once they are signed, move that folder to a safe.
`, r.Dir, filepath.Join(r.Dir, "root"))
	return errors.Join(err, r.credential(w))
}

// credential says how the hub opens its issuing key, if that takes anything.
func (r initReport) credential(w io.Writer) error {
	if r.Kept != cakey.Encrypted && r.Kept != cakey.HSM {
		return nil
	}
	_, err := fmt.Fprintf(w, `The issuing CA's key is in: %s. The hub opens it with the systemd credential
operational.key.passphrase (LoadCredentialEncrypted= in its unit), without which it serves
its devices but renews no certificate.
`, r.Kept)
	return err
}
