package main

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/server"
)

type authorizeOptions struct {
	dir, root, csr, out string
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
renewals of an authority, new certificates for them don't. Before you hand the authority out, compare the key's fingerprint with
what provisioning init printed at the station.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runAuthorize(c.OutOrStdout(), output, o) },
	}
	dirFlag(authorize, &o.dir)
	authorize.Flags().StringVar(&o.csr, "csr", "", "the station's certificate request, a PEM `file`")
	authorize.MarkFlagRequired("csr")
	outFlag(authorize, &o.out, "`file` for the authority, to carry back to the station; never overwritten")
	authorize.Flags().Var(&o.valid, "valid", "how long the station may issue")
	authorize.Flags().IntVar(&o.maxDevices, "max-devices", issuance.DefaultDevices, "how many devices the station may make, over all renewals of its authority")
	authorize.Flags().StringVar(&o.root, "root", "", "`folder` of the root's key and certificate, if moved away (default DIR/root)")
	group.AddCommand(authorize)
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
	Out         string    `json:"out"`
}

func runAuthorize(w io.Writer, output *command.Output, o authorizeOptions) error {
	if o.maxDevices < 1 || o.maxDevices > math.MaxInt32 {
		return command.Errorf(command.Usage, "--max-devices %d: a number between 1 and %d is required", o.maxDevices, math.MaxInt32)
	}
	config, err := loadConfig(o.dir)
	if err != nil {
		return err
	}
	if o.root == "" {
		o.root = filepath.Join(o.dir, "root")
	}
	root, err := server.LoadIssuer(o.root, "root")
	if errors.Is(err, fs.ErrNotExist) {
		return command.Errorf(command.NotFound, "the root key is not in %s: bring its folder and name it with --root", o.root)
	}
	if err != nil {
		return err
	}
	if err := requireRootOf(root, o); err != nil {
		return err
	}
	der, err := pemfile.ReadCSR(o.csr)
	if errors.Is(err, fs.ErrNotExist) {
		return command.Errorf(command.NotFound, "there is no certificate request %s: the station writes it with `provisioning init`", o.csr)
	}
	if err != nil {
		return err
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		return fmt.Errorf("%s: %w", o.csr, err)
	}
	name := csr.Subject.CommonName
	if err := identity.ValidID(name); err != nil {
		return fmt.Errorf("%s: the station's name (common name): %w", o.csr, err)
	}
	if _, err := os.Lstat(o.out); err == nil {
		return fmt.Errorf("%s already exists and is not overwritten: name another file with --out", o.out)
	}
	cert, err := root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: name, TrustDomain: config.TrustDomain, PublicKey: csr.PublicKey, Valid: time.Duration(o.valid), MaxDevices: o.maxDevices})
	if err != nil {
		return err
	}
	issuer := filepath.Join(o.dir, "issuers", name+".crt")
	if known, err := pemfile.ReadCertificates(issuer); err == nil && !bytes.Equal(known[0].RawSubjectPublicKeyInfo, cert.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("a station %s with another key is authorized already (%s): have the new one init with another --name", name, issuer)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// On record first, known to the hub second, to the station last: a kill in between
	// leaves a signed authority that nobody holds.
	if err := journal(o.root, cert); err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(issuer, cert); err != nil {
		return err
	}
	bundle, err := trustBundle(o.dir)
	if err != nil {
		return err
	}
	if err := pemfile.WriteCertificates(o.out, append([]*x509.Certificate{cert}, bundle...)...); err != nil {
		return err
	}
	r := authorized{Station: name, KeyHash: identity.KeyFingerprint(csr.RawSubjectPublicKeyInfo), Serial: identity.SerialString(cert.SerialNumber), Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, MaxDevices: o.maxDevices, Out: o.out}
	return output.Print(w, r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "station %s may issue devices of %s until %s, at most %d\nkey SHA-256          %s (is it what the station printed?)\ncertificate SHA-256  %s\n\nNext, at the station:\n  provisioning accept --dir S %s\n",
			name, config.TrustDomain, r.NotAfter.Format(time.RFC3339), r.MaxDevices, r.KeyHash, r.Fingerprint, o.out)
		return err
	})
}

// requireRootOf refuses a root that is not this hub's: its signature would be worth
// nothing here.
func requireRootOf(root *issuance.Issuer, o authorizeOptions) error {
	bundle, err := trustBundle(o.dir)
	if err != nil {
		return err
	}
	for _, c := range bundle {
		if c.Equal(root.Certificate()) {
			return nil
		}
	}
	return fmt.Errorf("the root in %s is not the one of the hub in %s: name the right one with --root", o.root, o.dir)
}
