package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

type authorizeOptions struct {
	dir, root, csr, out string
	digits              string // of the key's SHA-256
	valid               command.Duration
	maxDevices          int
}

func newStation(output *command.Output) *cobra.Command {
	group := newRoleCommand(output, identity.RoleStation, issuance.StationProfile(), "Factory stations: authorize one to issue device certificates, and one to send its manifests")
	o := authorizeOptions{valid: command.Duration(issuance.FactoryIssuerProfile().Lifetime())}
	authorize := &cobra.Command{
		Use:   "authorize",
		Short: "Have the root sign a station's issuing CA",
		Long: `Signs the issuing CA of a factory station from its request (provisioning init wrote
it) with the fleet's root key, and makes the hub know it. The station may issue device
certificates, and nothing else, until the authority ends; the devices' certificates
live longer. It is written into the authority for how many devices it is: the station
keeps to it, and the hub takes no manifest that goes beyond. Devices count over all
renewals of an authority, new certificates for them don't. Whoever can write to the request
on its way can put another key into it: give what provisioning init printed at the station
as --key-sha256, and nothing is signed for another. Without it, compare the key's SHA-256
that is printed before the authority goes to the station; hub issuer remove takes it back.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runAuthorize(c, output, o) },
	}
	dirFlag(authorize, &o.dir)
	authorize.Flags().StringVar(&o.csr, "csr", "", "the station's certificate request, a PEM `file`")
	authorize.MarkFlagRequired("csr")
	outFlag(authorize, &o.out, "`file` for the authority, to carry back to the station; never overwritten")
	authorize.Flags().Var(&o.valid, "valid", "how long the station may issue")
	budgetFlag(authorize, &o.maxDevices)
	expectKeyFlag(authorize, &o.digits)
	authorize.Flags().StringVar(&o.root, "root", "", "`folder` of the root's key and certificate, if moved away (default DIR/root)")
	group.AddCommand(authorize, newStationAccept(output))
	return group
}

// authorized is what hub station authorize prints.
type authorized struct {
	Station     string    `json:"station"`
	KeyHash     string    `json:"key_sha256"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
	MaxDevices  int       `json:"max_devices"`
	Out         string    `json:"out,omitempty"`
}

func runAuthorize(c *cobra.Command, output *command.Output, o authorizeOptions) error {
	if _, err := deviceBudget(o.maxDevices); err != nil {
		return err
	}
	if _, err := loadConfig(o.dir); err != nil {
		return err
	}
	if o.root == "" {
		o.root = filepath.Join(o.dir, "root")
	}
	root, err := openRoot(c, o.root, "bring its folder and name it with --root, or have it sign on its stick (`hub root sign`)")
	if err != nil {
		return err
	}
	if err := requireRootOf(root.Certificate(), o.root, o.dir); err != nil {
		return err
	}
	csr, err := request(o.csr, "the station writes it with `provisioning init`")
	if err != nil {
		return err
	}
	name := csr.Subject.CommonName
	if err := identity.ValidID(name); err != nil {
		return fmt.Errorf("%s: the station's name (common name): %w", o.csr, err)
	}
	if err := requireVacant(o.out); err != nil {
		return err
	}
	if err := authority.Admissible(o.dir, name, csr.RawSubjectPublicKeyInfo); err != nil {
		return err
	}
	if c.Flags().Changed(keyHashFlag) {
		if err := confirmKey(c, o.csr, csr, identity.KindFactory, name, o.digits); err != nil {
			return err
		}
	}
	// On record first, known to the hub second, to the station last: a kill in between
	// leaves a signed authority that nobody holds.
	cert, err := root.Sign(csr, authority.Authority{Kind: identity.KindFactory, Valid: time.Duration(o.valid), MaxDevices: o.maxDevices})
	if err != nil {
		return err
	}
	if err := authority.Admit(o.dir, cert); err != nil {
		return err
	}
	bundle, err := trustBundle(o.dir)
	if err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(o.out, append([]*x509.Certificate{cert}, bundle...)...); err != nil {
		return err
	}
	r := newAuthorized(cert, o.maxDevices, o.out)
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "station %s may issue devices of %s until %s, at most %d\nkey SHA-256          %s\ncertificate SHA-256  %s\n\nNext, at the station:\n  provisioning accept --dir S %s\n",
			name, root.TrustDomain(), r.NotAfter.Format(time.RFC3339), r.MaxDevices, r.KeyHash, r.Fingerprint, o.out)
		return err
	})
}

func newAuthorized(cert *x509.Certificate, maxDevices int, out string) authorized {
	return authorized{
		Station: cert.Subject.CommonName, KeyHash: identity.KeyFingerprint(cert.RawSubjectPublicKeyInfo), Serial: identity.SerialString(cert.SerialNumber),
		Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, MaxDevices: maxDevices, Out: out,
	}
}

// requireRootOf refuses a root that is not this hub's: its signature would be worth
// nothing here.
func requireRootOf(root *x509.Certificate, rootDir, dir string) error {
	bundle, err := trustBundle(dir)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(bundle, root.Equal) {
		return nil
	}
	return fmt.Errorf("the root in %s is not the one of the hub in %s: name the right one with --root", rootDir, dir)
}

func newStationAccept(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "accept FILE",
		Short: "Make the hub know a station's authority that the root signed on its stick",
		Long: `Makes the hub know the authority of a station that hub root sign wrote to FILE: without
it the hub takes no manifest of the station and none of its devices. The same FILE goes to
the station (provisioning accept). A running hub takes it up with the next manifest, or at
SIGHUP.`,
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
			cert := certs[0]
			bundle, err := trustBundle(dir)
			if err != nil {
				return err
			}
			if err := authority.CheckIssuer(cert, identity.KindFactory, bundle, config.TrustDomain, time.Now()); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			budget, err := issuance.DeviceBudget(cert)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := authority.Admit(dir, cert); err != nil {
				return err
			}
			r := newAuthorized(cert, budget, "")
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "the hub knows station %s, which may issue devices of %s until %s, at most %d\nkey SHA-256          %s (is it what the station printed?)\ncertificate SHA-256  %s\n",
					r.Station, config.TrustDomain, r.NotAfter.Format(time.RFC3339), r.MaxDevices, r.KeyHash, r.Fingerprint)
				return err
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
