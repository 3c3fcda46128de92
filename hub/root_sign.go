package main

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

// The kinds of issuing CA, as commands call them: those in certificates are short.
const (
	factoryWord     = "factory"
	operationalWord = "operational"
)

func kindWord(k identity.IssuerKind) string {
	if k == identity.KindOperational {
		return operationalWord
	}
	return string(k)
}

func parseKind(word string) (identity.IssuerKind, error) {
	switch word {
	case factoryWord:
		return identity.KindFactory, nil
	case operationalWord:
		return identity.KindOperational, nil
	}
	return "", command.Errorf(command.Usage, "--kind %.40q: it is factory (a station's) or operational (the hub's)", word)
}

// rootSigned is what hub root sign prints.
type rootSigned struct {
	Kind        string    `json:"kind"`
	Name        string    `json:"name"`
	KeyHash     string    `json:"key_sha256"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	MaxDevices  int       `json:"max_devices,omitempty"`
	Out         string    `json:"out"`

	Root     string   `json:"root_fingerprint"`
	Plain    bool     `json:"root_key_plain"`    // whoever reads its file has the fleet
	Recorded int      `json:"recorded"`          // certificates on the root's record before this one
	Handed   []string `json:"hub_cas,omitempty"` // names of the hub's CAs in the file, the newest first
}

func newRootSign(output *command.Output) *cobra.Command {
	var dir, csrFile, kindName, out, name, digits string
	var without []string
	var valid command.Duration
	var maxDevices int
	c := &cobra.Command{
		Use:   "sign --dir STICK --csr FILE --kind factory|operational --key-sha256 HEX --out FILE",
		Short: "Sign an issuing CA: a station's (factory), or a hub's (operational)",
		Long: `Signs an issuing CA from its request, with the limits that hub station authorize has:
what it may issue, in which trust domain, how long, and for how many devices. Of the
request the key is believed, and the name unless --name says another. Whoever can write to
the stick can put another key into it, so --key-sha256 must say what was printed where the
request was made (provisioning init, hub init, hub ca rotate); without it, the person at the
terminal is asked, and where there is none, nothing is signed.

FILE gets the certificate, the root and, for a station, the hub's issuing CAs that are on
this root's record and not named by --without: name those that the hub has removed since (hub
issuer remove), which the root can't know. A station takes it with provisioning accept, its hub with hub station
accept, and a hub with hub ca install.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			kind, err := parseKind(kindName)
			if err != nil {
				return err
			}
			budget := 0
			if kind == identity.KindFactory {
				if budget, err = deviceBudget(maxDevices); err != nil {
					return err
				}
			} else if c.Flags().Changed("max-devices") {
				return command.Errorf(command.Usage, "--max-devices is for --kind factory: a hub's issuing CA has no device budget")
			}
			if kind != identity.KindFactory && len(without) > 0 {
				return command.Errorf(command.Usage, "--without is for --kind factory: a hub's issuing CA is handed alone")
			}
			if err := requireVacant(out); err != nil {
				return err
			}
			csr, err := request(csrFile, "a station writes it with `provisioning init`, a hub with `hub init --root` or `hub ca rotate`")
			if err != nil {
				return err
			}
			if err := confirmKey(c, csrFile, csr, kind, cmp.Or(name, csr.Subject.CommonName), digits); err != nil {
				return err
			}
			root, err := openRoot(c, dir, "bring its folder and name it with --dir")
			if err != nil {
				return err
			}
			kept, err := cakey.KindOf(authority.RootKeyFile(dir))
			if err != nil {
				return err
			}
			record, unreadable, err := authority.Journal(dir)
			if err != nil {
				return err
			}
			bundle := []*x509.Certificate{root.Certificate()}
			if kind == identity.KindFactory {
				if bundle, err = root.Bundle(time.Now(), without...); err != nil {
					return err
				}
			}
			cert, err := root.Sign(csr, authority.Authority{Kind: kind, Name: name, Valid: time.Duration(valid), MaxDevices: budget})
			if err != nil {
				return fmt.Errorf("%s: %w", csrFile, err)
			}
			if err := pemfile.WriteCertificates(out, append([]*x509.Certificate{cert}, bundle...)...); err != nil {
				return err
			}
			r := rootSigned{Kind: kindWord(kind), Name: cert.Subject.CommonName, KeyHash: identity.KeyFingerprint(cert.RawSubjectPublicKeyInfo),
				Serial: identity.SerialString(cert.SerialNumber), Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, MaxDevices: budget, Out: out,
				Root: identity.Fingerprint(root.Certificate()), Plain: kept == cakey.File, Recorded: len(record) + unreadable}
			for _, hub := range bundle[1:] {
				r.Handed = append(r.Handed, hub.Subject.CommonName)
			}
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return r.write(w, root.TrustDomain()) })
		},
	}
	rootDirFlag(c, &dir)
	c.Flags().StringVar(&csrFile, "csr", "", "the certificate request, a PEM `file`")
	c.MarkFlagRequired("csr")
	c.Flags().StringVar(&kindName, "kind", "", "`kind` of the issuing CA: factory (of a station) or operational (of a hub)")
	c.MarkFlagRequired("kind")
	outFlag(c, &out, "`file` for the certificate, to carry back; never overwritten")
	c.Flags().StringVar(&name, "name", "", "the CA's `name`, in place of the request's")
	c.Flags().Var(&valid, "valid", "how long it may issue (default 90d for factory, 5y for operational)")
	c.Flags().Lookup("valid").DefValue = "" // the text says it
	budgetFlag(c, &maxDevices)
	expectKeyFlag(c, &digits)
	c.Flags().StringSliceVar(&without, "without", nil, "`name` of a hub's issuing CA that stations are not to be given, though it is on record; may repeat")
	return c
}

func (r rootSigned) write(w io.Writer, trustDomain string) error {
	fmt.Fprintf(w, "%s issuing CA %s of %s signed, good until %s\n", r.Kind, r.Name, trustDomain, r.NotAfter.Format(time.RFC3339))
	if r.MaxDevices > 0 {
		fmt.Fprintf(w, "devices              at most %d\n", r.MaxDevices)
	}
	kept := "is protected"
	if r.Plain {
		kept = "is in a plain file: whoever reads it has the fleet (`hub root encrypt`)"
	}
	fmt.Fprintf(w, "key SHA-256          %s\ncertificate SHA-256  %s\nroot SHA-256         %s (is it what `hub root init` printed?)\nroot's key           %s\nroot's record        had %d lines before this one\n",
		r.KeyHash, r.Fingerprint, r.Root, kept, r.Recorded)
	if len(r.Handed) > 0 {
		fmt.Fprintf(w, "hub CAs handed on    %s (is each still trusted? else sign anew with --without NAME)\n", strings.Join(r.Handed, ", "))
	}
	fmt.Fprintln(w)
	if r.Kind == operationalWord {
		_, err := fmt.Fprintf(w, "Next, at the hub:\n  hub ca install --dir HUB %s\n", r.Out)
		return err
	}
	if len(r.Handed) == 0 {
		fmt.Fprintln(w, "This root has signed no hub's issuing CA that is good: devices of this station trust the root alone.")
	}
	_, err := fmt.Fprintf(w, "Next, at the station and at the hub:\n  provisioning accept --dir S %[1]s\n  hub station accept --dir HUB %[1]s\n", r.Out)
	return err
}

func budgetFlag(c *cobra.Command, maxDevices *int) {
	c.Flags().IntVar(maxDevices, "max-devices", issuance.DefaultDevices, "how many devices the station may make, over all renewals of its authority")
}

// deviceBudget checks what --max-devices says.
func deviceBudget(n int) (int, error) {
	if n < 1 || n > math.MaxInt32 {
		return 0, command.Errorf(command.Usage, "--max-devices %d: a number between 1 and %d is required", n, math.MaxInt32)
	}
	return n, nil
}
