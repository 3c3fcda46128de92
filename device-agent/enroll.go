package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/device-agent/enrolment"
	"github.com/spf13/cobra"
)

// maxTokenFile bounds what is read of a token on standard input.
const maxTokenFile = 4 << 10

func newEnroll(output *command.Output) *cobra.Command {
	var config enrolment.Config
	c := &cobra.Command{
		Use:   "enroll --dir DIR --station URL (--token T | --claim DIR)",
		Short: "Get this device its first certificate from a factory station",
		Long: `Get this device its first certificate from a factory station ('provisioning serve'),
and install it in DIR: device.key, device.crt and ca.crt.

The private key is made here and never leaves: in the machine's TPM 2.0 if it has one
(--tpm auto), which then proves it to the station; else in a file, with a warning. With
--tpm require, or a TPM's address, nothing but a TPM that the station found genuine will
do. The station decides which device this is.

The token is told by the station's 'provisioning token' and also says by which key this
board knows the station; - reads it from standard input, where no other user sees it.
Whatever interrupts the command, repeat it as it was: it ends up with one certificate.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := enrolment.CheckTPM(config.TPM); err != nil {
				return command.Errorf(command.Usage, "--tpm: %w", err)
			}
			if config.Token == "-" {
				text, err := io.ReadAll(io.LimitReader(c.InOrStdin(), maxTokenFile))
				if err != nil {
					return err
				}
				config.Token = strings.TrimSpace(string(text))
			}
			config.Notice = noticeTo(c.ErrOrStderr())
			r, err := enrolment.Enroll(c.Context(), config)
			if err != nil {
				return enrolmentError(err)
			}
			return printEnrolled(c, output, "enrolled", r)
		},
	}
	flags := c.Flags()
	flags.StringVar(&config.Dir, "dir", "", "credential `folder` to make")
	flags.StringVar(&config.Server, "station", "", "the station's `URL`, https://HOST:9443")
	flags.StringVar(&config.Token, "token", "", "the enrolment `token`, or - to read it")
	flags.StringVar(&config.Claim, "claim", "", "`folder` with claim.key, claim.crt and station.pin")
	flags.StringVar(&config.Pin, "pin", "", "the `pin` of the station's key, if it is not in a token or claim")
	flags.StringVar(&config.TPM, "tpm", enrolment.TPMAuto, "where the key is made: auto, require, off or the `address` of a TPM")
	markRequired(c, "dir", "station")
	c.MarkFlagsMutuallyExclusive("token", "claim")
	c.MarkFlagsOneRequired("token", "claim")
	return c
}

func newRenew(output *command.Output) *cobra.Command {
	var config enrolment.Config
	var station string
	c := &cobra.Command{
		Use:   "renew --dir DIR (--hub URL | --station URL --pin PIN)",
		Short: "Get this device another certificate, for a new key, with the one it has",
		Long: `Get this device another certificate, for a new key and the same identity, from the
hub, or from the station if 'provisioning replace' was given there. The certificate in
DIR proves who asks. A running agent uses the new one from its next connection on; the
hub forgets the old one once the new one has connected.

A key in a TPM is followed by one in that TPM, a key in a file by one in a file, unless
--tpm says otherwise. The TPM vouches for the new key, so that the certificate goes on
saying where it is; if the hub doesn't take its word there is a note, or with --tpm
require no certificate.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := enrolment.CheckTPM(config.TPM); err != nil {
				return command.Errorf(command.Usage, "--tpm: %w", err)
			}
			if station != "" {
				config.Server = station
			}
			config.Notice = noticeTo(c.ErrOrStderr())
			r, err := enrolment.Renew(c.Context(), config)
			if err != nil {
				return enrolmentError(err)
			}
			return printEnrolled(c, output, "renewed", r)
		},
	}
	flags := c.Flags()
	flags.StringVar(&config.Dir, "dir", "", "credential `folder` with device.key, device.crt and ca.crt")
	flags.StringVar(&config.Server, "hub", "", "the hub's `URL`, https://HOST:8443")
	flags.StringVar(&station, "station", "", "the station's `URL`, https://HOST:9443")
	flags.StringVar(&config.Pin, "pin", "", "the `pin` of the station's key, which `provisioning serve` prints")
	flags.StringVar(&config.TPM, "tpm", enrolment.TPMAuto, "where the key is made: auto (as the old one), require, off or the `address` of a TPM")
	markRequired(c, "dir")
	c.MarkFlagsMutuallyExclusive("hub", "station")
	c.MarkFlagsOneRequired("hub", "station")
	c.MarkFlagsRequiredTogether("station", "pin")
	return c
}

func markRequired(c *cobra.Command, flags ...string) {
	for _, name := range flags {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(fmt.Sprintf("flag %s: %v", name, err)) // the command doesn't define it
		}
	}
}

// noticeTo prints what a person should know, apart from the result.
func noticeTo(w io.Writer) func(string) {
	return func(text string) { fmt.Fprintf(w, "device-agent: note: %s\n", text) }
}

// enrolmentError gives an error of enrolment its exit code.
func enrolmentError(err error) error {
	switch {
	case errors.Is(err, enrolment.ErrInvalid):
		return command.WithCode(command.Usage, err)
	case errors.Is(err, est.ErrDenied), errors.Is(err, est.ErrUntrusted):
		return command.WithCode(command.Denied, err)
	case errors.Is(err, est.ErrUnreachable):
		return command.WithCode(command.Unreachable, err)
	case errors.Is(err, fs.ErrNotExist):
		return command.WithCode(command.NotFound, err)
	}
	return err
}

// enrolled is what enroll and renew print.
type enrolled struct {
	ID          string    `json:"id"`
	Identity    string    `json:"identity"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	Issuer      string    `json:"issuer"`
	NotAfter    time.Time `json:"not_after"`
	Key         string    `json:"key"`      // file or tpm
	Attested    bool      `json:"attested"` // the TPM proved it to the server
}

func printEnrolled(c *cobra.Command, output *command.Output, verb string, r enrolment.Result) error {
	e := enrolled{
		ID: r.Identity.ID, Identity: r.Identity.String(), Serial: r.Serial, Fingerprint: r.Fingerprint,
		Issuer: r.Issuer, NotAfter: r.NotAfter, Key: "file", Attested: r.Attested,
	}
	key := "in a file, which can be copied"
	if r.TPM != "" {
		e.Key, key = "tpm", "in the TPM at "+r.TPM
		if r.Attested {
			key += ", proved to who issued it"
		}
	}
	return output.Print(c.OutOrStdout(), e, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s %s\n  identity       %s\n  SHA-256        %s\n  serial number  %s\n  issuer         %s\n  valid until    %s\n  key            %s\n",
			verb, e.ID, e.Identity, e.Fingerprint, e.Serial, e.Issuer, e.NotAfter.UTC().Format("2006-01-02 15:04:05 MST"), key)
		return err
	})
}
