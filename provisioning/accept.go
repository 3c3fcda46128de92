package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func acceptCommand(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "accept --dir S FILE",
		Short: "Install the authority that 'hub station authorize' wrote to FILE",
		Long: `Install the authority that 'hub station authorize' wrote to FILE, or renew it.

The station trusts the root in the first FILE as it comes: compare its fingerprint
with the one 'hub init' printed. A renewal must be under the same root.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				a, err := s.Accept(local(c, args[0]))
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), a, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "authority of %s %s\n  trust domain  %s\n  valid         %s to %s\n  devices       at most %d\n  root SHA-256  %s\n",
						a.Station, a.Change, a.TrustDomain, a.NotBefore.UTC().Format(time.RFC3339), a.NotAfter.UTC().Format(time.RFC3339), a.MaxDevices, a.RootFingerprint)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
