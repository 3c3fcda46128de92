package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

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
}

func newRootSign(output *command.Output) *cobra.Command {
	var dir, csrFile, kindName, out, name string
	var valid command.Duration
	var maxDevices int
	c := &cobra.Command{
		Use:   "sign --dir STICK --csr FILE --kind factory|operational --out FILE",
		Short: "Sign an issuing CA: a station's (factory), or a hub's (operational)",
		Long: `Signs an issuing CA from its request, with the limits that hub station authorize has:
what it may issue, in which trust domain, how long, and for how many devices. Of the
request the key is believed, and the name unless --name says another. Compare the key's
SHA-256 with what was printed where the request was made.

FILE gets the certificate, the root and, for a station, the hub's issuing CAs that are on
this root's record. A station takes it with provisioning accept, its hub with hub station
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
			if err := requireVacant(out); err != nil {
				return err
			}
			csr, err := request(csrFile, "a station writes it with `provisioning init`, a hub with `hub init --root` or `hub ca rotate`")
			if err != nil {
				return err
			}
			root, err := openRoot(c, dir, "bring its folder and name it with --dir")
			if err != nil {
				return err
			}
			cert, err := root.Sign(csr, authority.Authority{Kind: kind, Name: name, Valid: time.Duration(valid), MaxDevices: budget})
			if err != nil {
				return fmt.Errorf("%s: %w", csrFile, err)
			}
			bundle := []*x509.Certificate{root.Certificate()}
			if kind == identity.KindFactory {
				if bundle, err = root.Bundle(time.Now()); err != nil {
					return err
				}
			}
			if err := pemfile.WriteCertificates(out, append([]*x509.Certificate{cert}, bundle...)...); err != nil {
				return err
			}
			r := rootSigned{Kind: kindWord(kind), Name: cert.Subject.CommonName, KeyHash: identity.KeyFingerprint(cert.RawSubjectPublicKeyInfo),
				Serial: identity.SerialString(cert.SerialNumber), Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, MaxDevices: budget, Out: out}
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return r.write(w, root.TrustDomain(), len(bundle)-1) })
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
	return c
}

func (r rootSigned) write(w io.Writer, trustDomain string, hubs int) error {
	fmt.Fprintf(w, "%s issuing CA %s of %s signed, good until %s\n", r.Kind, r.Name, trustDomain, r.NotAfter.Format(time.RFC3339))
	if r.MaxDevices > 0 {
		fmt.Fprintf(w, "devices              at most %d\n", r.MaxDevices)
	}
	fmt.Fprintf(w, "key SHA-256          %s (is it what was printed with the request?)\ncertificate SHA-256  %s\n\n", r.KeyHash, r.Fingerprint)
	if r.Kind == operationalWord {
		_, err := fmt.Fprintf(w, "Next, at the hub:\n  hub ca install --dir HUB %s\n", r.Out)
		return err
	}
	if hubs == 0 {
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
