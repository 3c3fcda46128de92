package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
)

type initOptions struct {
	dir, trustDomain, operator string
	hostnames                  []string
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

Nothing is ever overwritten. A killed run leaves nothing that counts: run it again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runInit(c.OutOrStdout(), o, output) },
	}
	dirFlag(c, &o.dir)
	c.Flags().StringVar(&o.trustDomain, "trust-domain", "fleet.example", "the fleet's `name` in every certificate, for ever")
	c.Flags().StringSliceVar(&o.hostnames, "hostname", nil, "a host `name` or IP address devices reach the hub by; may repeat (localhost and this host's name are always in)")
	c.Flags().StringVar(&o.operator, "operator", "admin", "`ID` of the first operator")
	return c
}

// initReport is what hub init prints.
type initReport struct {
	Dir          string            `json:"dir"`
	TrustDomain  string            `json:"trust_domain"`
	Hostnames    []string          `json:"hostnames"`
	Fingerprints map[string]string `json:"fingerprints"`
}

func runInit(w io.Writer, o initOptions, output *command.Output) error {
	if err := identity.ValidTrustDomain(o.trustDomain); err != nil {
		return command.Errorf(command.Usage, "--trust-domain: %w", err)
	}
	if err := identity.ValidID(o.operator); err != nil {
		return command.Errorf(command.Usage, "--operator: %w", err)
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
	report, err := makeHub(stage, o, names, ips)
	if err != nil {
		return err
	}
	if err := stage.Commit(); err != nil {
		return err
	}
	return output.Print(w, report, func(w io.Writer) error { return report.write(w) })
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

// makeHub writes the whole folder into the stage.
func makeHub(stage *pemfile.Stage, o initOptions, names []string, ips []net.IP) (initReport, error) {
	report := initReport{Dir: o.dir, TrustDomain: o.trustDomain, Hostnames: names, Fingerprints: map[string]string{}}
	for _, ip := range ips {
		report.Hostnames = append(report.Hostnames, ip.String())
	}
	rootKey, err := issuance.NewKey()
	if err != nil {
		return report, err
	}
	rootCert, err := issuance.NewRoot(o.trustDomain, rootKey, 0, nil)
	if err != nil {
		return report, err
	}
	root, err := issuance.NewIssuer(rootCert, rootKey, nil)
	if err != nil {
		return report, err
	}
	caKey, err := issuance.NewKey()
	if err != nil {
		return report, err
	}
	caCert, err := root.IssueCA(issuance.CARequest{Kind: identity.KindOperational, Name: "hub", TrustDomain: o.trustDomain, PublicKey: caKey.Public()})
	if err != nil {
		return report, err
	}
	ca, err := issuance.NewIssuer(caCert, caKey, nil)
	if err != nil {
		return report, err
	}
	// Who has the issuing CA in its trust bundle needs no more than the leaf of the hub,
	// in every full handshake for as long as it lives.
	bundle := []*x509.Certificate{rootCert, caCert}
	config, err := server.ShippedConfig(o.trustDomain)
	if err != nil {
		return report, err
	}
	for _, err := range []error{
		os.Mkdir(stage.Path("issuers"), 0o700),
		pemfile.WriteKey(stage.Path("root/root.key"), rootKey),
		pemfile.WriteCertificates(stage.Path("root/root.crt"), rootCert),
		pemfile.WriteKey(stage.Path("ca/operational.key"), caKey),
		pemfile.WriteCertificates(stage.Path("ca/operational.crt"), caCert),
		pemfile.WriteCertificates(stage.Path("ca.crt"), bundle...),
		pemfile.Write(stage.Path(server.PolicyFile), policy.Shipped(), 0o600),
		pemfile.Write(stage.Path(server.ConfigFile), config, 0o600),
	} {
		if err != nil {
			return report, err
		}
	}
	serverID := identity.Identity{TrustDomain: o.trustDomain, Role: identity.RoleHub, ID: "hub"}
	serverCert, err := issueCredential(ca, issuance.Request{Profile: issuance.ServerProfile(), Identity: serverID, DNSNames: names, IPAddresses: ips},
		stage.Path("ca"), credentialFiles{key: stage.Path("tls/server.key"), cert: stage.Path("tls/server.crt")})
	if err != nil {
		return report, err
	}
	operatorID := identity.Identity{TrustDomain: o.trustDomain, Role: identity.RoleOperator, ID: o.operator, OU: []string{"admin"}}
	operatorCert, err := issueCredential(ca, issuance.Request{Profile: issuance.OperatorProfile(), Identity: operatorID},
		stage.Path("ca"),
		credentialFiles{key: stage.Path("operator/operator.key"), cert: stage.Path("operator/operator.crt"), bundle: stage.Path("operator/ca.crt"), roots: bundle})
	if err != nil {
		return report, err
	}
	for name, cert := range map[string]*x509.Certificate{"root": rootCert, "operational": caCert, "server": serverCert, "operator": operatorCert} {
		report.Fingerprints[name] = identity.Fingerprint(cert)
	}
	return report, nil
}

func (r initReport) write(w io.Writer) error {
	fmt.Fprintf(w, "hub made in %s for trust domain %s, reached as %v\n\nSHA-256 fingerprints:\n", r.Dir, r.TrustDomain, r.Hostnames)
	for _, name := range []string{"root", "operational", "server", "operator"} {
		fmt.Fprintf(w, "  %-12s %s\n", name, r.Fingerprints[name])
	}
	_, err := fmt.Fprintf(w, `
Next:
  hub serve --dir %[1]s
  hub station authorize --dir %[1]s --csr station.csr --out station-authority.pem
The key in %[2]s signs stations' authorities and nothing else: once they
are signed, move that folder to a safe.
`, r.Dir, filepath.Join(r.Dir, "root"))
	return err
}
