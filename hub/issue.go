package main

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/authority"
)

// credentialFiles says where a credential goes; bundle may be empty.
type credentialFiles struct {
	key, cert, bundle string
	roots             []*x509.Certificate
}

// issueCredential makes a key, has the CA sign it, writes the certificate to the CA's
// journal, and then the files. journalDir is the CA's folder.
func issueCredential(ca *issuance.Issuer, r issuance.Request, journalDir string, files credentialFiles) (*x509.Certificate, error) {
	key, err := issuance.NewKey()
	if err != nil {
		return nil, err
	}
	r.PublicKey = key.Public()
	cert, err := ca.Issue(r)
	if err != nil {
		return nil, err
	}
	if err := authority.Record(journalDir, cert); err != nil {
		return nil, err
	}
	return cert, writeCredential(key, cert, ca.Certificate(), files)
}

func writeCredential(key crypto.Signer, cert, issuer *x509.Certificate, files credentialFiles) error {
	if err := pemfile.WriteKey(files.key, key); err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(files.cert, cert, issuer); err != nil {
		return err
	}
	if files.bundle == "" {
		return nil
	}
	return pemfile.WriteCertificates(files.bundle, files.roots...)
}

type issueOptions struct {
	dir, out string
	ou       []string
	valid    command.Duration
}

// issued is what the issue commands print.
type issued struct {
	Identity    string    `json:"identity"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	Out         string    `json:"out"`
	Role        string    `json:"role,omitempty"` // of an operator
}

func newService(output *command.Output) *cobra.Command {
	return newRoleCommand(output, identity.RoleService, issuance.ServiceProfile(), "Backend applications: read what devices send, send commands")
}

func newOperator(output *command.Output) *cobra.Command {
	return newRoleCommand(output, identity.RoleOperator, issuance.OperatorProfile(), "People who operate the fleet through the HTTPS API")
}

// newRoleCommand returns "hub service" or "hub operator".
func newRoleCommand(output *command.Output, role identity.Role, profile issuance.Profile, short string) *cobra.Command {
	group := &cobra.Command{Use: string(role), Short: short}
	var o issueOptions
	issue := &cobra.Command{
		Use:   "issue NAME",
		Short: fmt.Sprintf("Issue a certificate: OUT/%[1]s.key %[1]s.crt ca.crt", role),
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return runIssue(c, output, args[0], role, profile, o)
		},
	}
	dirFlag(issue, &o.dir)
	outFlag(issue, &o.out, "`folder` for the key, the certificate and the trust bundle; nothing in it is overwritten")
	issue.Flags().StringSliceVar(&o.ou, "ou", nil, "a `role` of the bearer, in the subject's OU, such as operator or admin for operators; may repeat")
	o.valid = command.Duration(profile.Lifetime())
	issue.Flags().Var(&o.valid, "valid", "lifetime of the certificate")
	group.AddCommand(issue)
	return group
}

func runIssue(c *cobra.Command, output *command.Output, name string, role identity.Role, profile issuance.Profile, o issueOptions) error {
	config, err := loadConfig(o.dir)
	if err != nil {
		return err
	}
	id, err := identity.New(config.TrustDomain, role, name)
	if err != nil {
		return command.WithCode(command.Usage, err)
	}
	id.OU = o.ou
	ca, err := authority.In(o.dir, caKeys(c, config)).Issuer()
	if err != nil {
		return err
	}
	ca = ca.Publishing(config.Status.Publication(ca.Certificate()))
	roots, err := trustBundle(o.dir)
	if err != nil {
		return err
	}
	stage, err := pemfile.NewStage(o.out)
	if err != nil {
		return err
	}
	defer stage.Abort()
	base := string(role)
	cert, err := issueCredential(ca, issuance.Request{Profile: profile, Identity: id, Valid: time.Duration(o.valid)}, filepath.Join(o.dir, "ca"),
		credentialFiles{key: stage.Path(base + ".key"), cert: stage.Path(base + ".crt"), bundle: stage.Path("ca.crt"), roots: roots})
	if err != nil {
		return err
	}
	if err := stage.Commit(); err != nil {
		return err
	}
	r := issued{Identity: id.String(), Serial: identity.SerialString(cert.SerialNumber), Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, Out: o.out}
	if role == identity.RoleOperator {
		r.Role = admin.RoleOf(id).String()
	}
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
		if r.Role == admin.Viewer.String() {
			defer fmt.Fprintf(w, "role     viewer: sees everything and changes nothing; for more give --ou operator or --ou admin\n")
		} else if r.Role != "" {
			defer fmt.Fprintf(w, "role     %s\n", r.Role)
		}
		_, err := fmt.Fprintf(w, "issued   %s\nserial   %s\nSHA-256  %s\nuntil    %s\nin       %s: %s.key %s.crt ca.crt\n",
			r.Identity, r.Serial, r.Fingerprint, r.NotAfter.Format(time.RFC3339), o.out, base, base)
		return err
	})
}
