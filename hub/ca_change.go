package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/server"
)

type rotateOptions struct {
	dir, root, kept, name string
	valid                 command.Duration
}

func newCARotate(output *command.Output) *cobra.Command {
	var o rotateOptions
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Give the hub's issuing CA a successor, signed by the root",
		Long: `Makes a new issuing CA for the hub. If the root's key is at hand (--root, or root/ in the
hub's folder) it signs at once, and the new CA is installed; else the request is left in
ca/next.csr, for hub root sign on the stick, and hub ca install takes the answer.

From then on the hub signs by the new CA. The former one stays trusted: devices with its
certificates stay connected, and get one by the new CA when they renew; its revocation
list and OCSP go on; /cacerts and ca.crt have both. hub ca list shows who still depends on
it, and hub issuer remove ends it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runRotate(c, output, o) },
	}
	dirFlag(c, &o.dir)
	c.Flags().StringVar(&o.root, "root", "", "`folder` of the root's key and certificate (default DIR/root, if the key is there)")
	c.Flags().StringVar(&o.name, "name", "", "the CA's `name` (default hub-2, hub-3, ...)")
	keepFlag(c, &o.kept, "key", "the new CA's", "")
	c.Flags().Lookup("key").Usage += " (default as the former CA's)"
	o.valid = command.Duration(issuance.OperationalIssuerProfile().Lifetime())
	c.Flags().Var(&o.valid, "valid", "how long the new CA may issue, if the root signs here")
	return c
}

// rotation is what hub ca rotate and install print.
type rotation struct {
	Name        string    `json:"name"`
	KeyHash     string    `json:"key_sha256"`
	Request     string    `json:"request,omitempty"` // waits for the root
	Serial      string    `json:"serial,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	First       bool      `json:"first"` // the hub had none before
}

func runRotate(c *cobra.Command, output *command.Output, o rotateOptions) error {
	config, err := loadConfig(o.dir)
	if err != nil {
		return err
	}
	keys := caKeys(c, config)
	folder := authority.In(o.dir, keys)
	cas, err := folder.List()
	if err != nil {
		return err
	}
	if o.name == "" {
		o.name = successor(cas)
	}
	keep, err := keepAs(cas[0].KeyFile, o.kept)
	if err != nil {
		return err
	}
	// The root before the request: a wrong --root leaves nothing behind.
	root, err := rootAtHand(c, o)
	if err != nil {
		return err
	}
	request, err := folder.Request(o.name, keys.maker(keep))
	if err != nil {
		return err
	}
	r := rotation{Name: request.CSR.Subject.CommonName, KeyHash: identity.KeyFingerprint(request.CSR.RawSubjectPublicKeyInfo)}
	if root == nil {
		r.Request = request.File
		return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return r.write(w, o.dir) })
	}
	cert, err := root.Sign(request.CSR, authority.Authority{Kind: identity.KindOperational, Valid: time.Duration(o.valid)})
	if err != nil {
		return err
	}
	if err := installCA(o.dir, config, keys, cert); err != nil {
		return err
	}
	r.certified(cert)
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return r.write(w, o.dir) })
}

// rootAtHand opens the root that is to sign, nil if its key is not where it would be.
func rootAtHand(c *cobra.Command, o rotateOptions) (*authority.Root, error) {
	dir := o.root
	if dir == "" {
		dir = filepath.Join(o.dir, "root")
	}
	root, err := authority.OpenRoot(dir, rootKeys(c))
	if errors.Is(err, fs.ErrNotExist) {
		if o.root == "" {
			return nil, nil
		}
		return nil, command.Errorf(command.NotFound, "the root's key or certificate is not in %s: without --root the request is left for the stick", dir)
	}
	if err != nil {
		return nil, err
	}
	return root, requireRootOf(root.Certificate(), dir, o.dir)
}

// successor returns the name that a further CA gets: hub-2 after hub.
func successor(cas []authority.CA) string {
	base := cas[0].Certificate.Subject.CommonName
	if stem, digits, ok := strings.Cut(base, "-"); ok && strings.Trim(digits, "0123456789") == "" {
		base = stem
	}
	for n := 2; ; n++ {
		name := fmt.Sprintf("%s-%d", base, n)
		taken := false
		for _, ca := range cas {
			taken = taken || ca.Certificate.Subject.CommonName == name
		}
		if !taken {
			return name
		}
	}
}

// keepAs returns where a successor's key is kept: as said, or else as the former key is.
func keepAs(file, kept string) (cakey.Keep, error) {
	if kept != "" {
		return parseKeep("key", kept)
	}
	kind, err := cakey.KindOf(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cakey.KeepInFile, nil
	case err != nil:
		return "", err
	case kind == cakey.Encrypted:
		return cakey.KeepEncrypted, nil
	case kind == cakey.TPM:
		return cakey.KeepInTPM, nil
	case kind == cakey.HSM:
		return "", command.Errorf(command.Usage, "the former key is in a %s: name the new one with --key pkcs11:URI", kind)
	}
	return cakey.KeepInFile, nil
}

func newCAInstall(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "install FILE",
		Short: "Install the issuing CA that the root signed from the hub's request",
		Long: `Installs the issuing CA that hub root sign wrote to FILE. The first one makes the hub
complete: its server certificate and its first operator are issued. A later one takes over
from the CA before it, see hub ca rotate. A run that was interrupted is completed by the
next command, or by running it again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			config, err := loadConfig(dir)
			if err != nil {
				return err
			}
			certs, err := pemfile.ReadCertificates(args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return command.Errorf(command.NotFound, "there is no file %s: give the one that `hub root sign --out` wrote", args[0])
			}
			if err != nil {
				return err
			}
			_, err = os.Stat(filepath.Join(dir, firstFile))
			first := err == nil
			if err := installCA(dir, config, caKeys(c, config), certs[0]); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			r := rotation{Name: certs[0].Subject.CommonName, KeyHash: identity.KeyFingerprint(certs[0].RawSubjectPublicKeyInfo), First: first}
			r.certified(certs[0])
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return r.write(w, dir) })
		},
	}
	dirFlag(c, &dir)
	return c
}

// installCA makes a certificate of the root's the hub's issuing CA, and has it sign what
// of the hub's folder is by another or missing. The hub's server certificate is the hub's
// to renew, at its next start or SIGHUP, but for the first.
func installCA(dir string, config server.Config, keys keyOpener, cert *x509.Certificate) error {
	folder := authority.In(dir, keys)
	if err := folder.Install(cert, config.TrustDomain, time.Now()); err != nil {
		return err
	}
	issuer, err := folder.Issuer()
	if err != nil {
		return err
	}
	issuer = issuer.Publishing(config.Status.Publication(cert))
	if err := completeFirst(dir, config, issuer); err != nil {
		return err
	}
	return reissueOperator(dir, issuer)
}

func (r *rotation) certified(cert *x509.Certificate) {
	r.Serial, r.Fingerprint, r.NotAfter = identity.SerialString(cert.SerialNumber), identity.Fingerprint(cert), cert.NotAfter
}

func (r rotation) write(w io.Writer, dir string) error {
	if r.Request != "" {
		_, err := fmt.Fprintf(w, `request of %[1]s in %[2]s
key SHA-256  %[3]s (to be compared at the root)

Next, where the root is, and then here:
  hub root sign --dir STICK --kind operational --csr %[4]s --key-sha256 %[3]s --out %[1]s.crt
  hub ca install --dir %[5]s %[1]s.crt
`, r.Name, r.Request, r.KeyHash, filepath.Base(r.Request), dir)
		return err
	}
	fmt.Fprintf(w, "issuing CA %s installed, it may issue until %s\nSHA-256  %s\n", r.Name, r.NotAfter.Format(time.RFC3339), r.Fingerprint)
	if r.First {
		_, err := fmt.Fprintf(w, "\nNext:\n  hub serve --dir %s\n", dir)
		return err
	}
	_, err := fmt.Fprintf(w, `The former one stays trusted until you remove it, and the hub's folder has a new certificate
for its first operator.

Next: send SIGHUP to the hub, which then renews its own certificate. Give services and
operators new certificates (hub service issue, hub operator issue), and stations the new
ca.crt with their next authority. When hub ca list shows that nobody depends on the former:
  hub issuer remove NAME --dir %s --confirm
`, dir)
	return err
}

// firstFile is what hub init --root leaves for the first hub ca install.
const firstFile = "ca/init.json"

// first says what a hub's first certificates are to be.
type first struct {
	Hostnames []string `json:"hostnames"`
	Operator  string   `json:"operator"`
}

func (f first) write(path string) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return pemfile.Write(path, append(data, '\n'), 0o600)
}

// completeFirst issues the first certificates of a hub that was made without the root's
// key, all or none of them.
func completeFirst(dir string, config server.Config, ca *issuance.Issuer) error {
	path := filepath.Join(dir, firstFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var f first
	if err := json.Unmarshal(data, &f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tls")); errors.Is(err, fs.ErrNotExist) { // else they were issued, and the run killed
		if err := issueFirst(dir, config, ca, f); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return pemfile.SyncDir(filepath.Dir(path))
}

func issueFirst(dir string, config server.Config, ca *issuance.Issuer, f first) error {
	var names []string
	var ips []net.IP
	for _, h := range f.Hostnames {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, h)
		}
	}
	bundle, err := trustBundle(dir)
	if err != nil {
		return err
	}
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		return err
	}
	defer stage.Abort()
	if _, _, err := issueOwn(stage, ca, config.TrustDomain, filepath.Join(dir, "ca"), ownNames{names, ips, f.Operator}, bundle); err != nil {
		return err
	}
	return stage.Commit()
}

// reissueOperator gives the operator of the hub's folder a certificate by the present
// issuing CA, for the key that it has.
func reissueOperator(dir string, ca *issuance.Issuer) error {
	folder := filepath.Join(dir, "operator")
	file := filepath.Join(folder, "operator.crt")
	certs, err := pemfile.ReadCertificates(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was taken elsewhere
	}
	if err != nil {
		return err
	}
	if certs[0].CheckSignatureFrom(ca.Certificate()) == nil {
		return nil
	}
	id, err := identity.FromCertificate(certs[0])
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	cert, err := ca.Issue(issuance.Request{Profile: issuance.OperatorProfile(), Identity: id, PublicKey: certs[0].PublicKey})
	if err != nil {
		return err
	}
	if err := authority.Record(filepath.Join(dir, "ca"), cert); err != nil {
		return err
	}
	bundle, err := trustBundle(dir)
	if err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(filepath.Join(folder, "ca.crt"), bundle...); err != nil {
		return err
	}
	return pemfile.WriteCertificates(file, cert, ca.Certificate())
}
