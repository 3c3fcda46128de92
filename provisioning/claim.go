package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

func claimCommand(output *command.Output) *cobra.Command {
	c := &cobra.Command{
		Use:   "claim",
		Short: "Certificates that a batch of boards share, only to enrol with: make, list, revoke",
	}
	c.AddCommand(claimMake(output), claimList(output), claimRevoke(output))
	return c
}

func claimMake(output *command.Output) *cobra.Command {
	var dir string
	var o station.ClaimOrder
	valid := command.Duration(90 * 24 * time.Hour)
	c := &cobra.Command{
		Use:   "make --dir S --order ORDER --out DIR",
		Short: "Make a claim certificate for the images of a batch of boards",
		Long: `Make a claim certificate for the images of a batch of boards, in DIR: claim.key,
claim.crt and station.pin. Each board that brings it gets one certificate of the order,
for a key of its own, up to --count boards. It is good for nothing else anywhere, and
'claim revoke' ends it alone. What carries DIR is as secret as the batch is valuable.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o.Valid, o.Out = time.Duration(valid), local(c, o.Out)
				made, err := s.MakeClaim(o)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), made, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "claim certificate %s for %s made in %s\n  SHA-256     %s\n  good until  %s\n",
						made.Name, counted(made.Max, "board"), o.Out, made.Fingerprint, made.ExpiresAt.Format("2006-01-02 15:04:05 MST"))
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.Order, "order", "", "the order's `name` or number")
	c.Flags().StringVar(&o.Out, "out", "", "the `folder` for its files, which must be empty or not be there yet")
	c.Flags().StringVar(&o.Name, "name", "", "its `name` (default: claim- and the order's number)")
	c.Flags().IntVar(&o.Max, "count", 0, "`number` of boards (default: as many as the order has)")
	c.Flags().Var(&valid, "valid", "how long it is good")
	require(c, "order", "out")
	return c
}

func claimList(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list --dir S",
		Short: "Show the claim certificates",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				claims, err := s.Ledger().Claims()
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), append([]ledger.Claim{}, claims...), func(w io.Writer) error { return printClaims(w, claims) })
			})
		},
	}
	dirFlag(c, &dir)
	return c
}

func printClaims(w io.Writer, claims []ledger.Claim) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tORDER\tBOARDS\tUSED\tGOOD UNTIL\tREVOKED\tSHA-256")
	for _, c := range claims {
		revoked := "-"
		if !c.RevokedAt.IsZero() {
			revoked = c.RevokedAt.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\t%s\n", c.Name, c.Order, c.Max, c.Used, c.ExpiresAt.Format(time.DateOnly), revoked, c.Fingerprint)
	}
	return t.Flush()
}

func claimRevoke(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "revoke --dir S CLAIM",
		Short: "End claim certificates, by name or fingerprint; what they were used for stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				revoked, err := s.RevokeClaim(args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), revoked, func(w io.Writer) error {
					for _, r := range revoked {
						if _, err := fmt.Fprintf(w, "claim certificate %s is revoked: %s came with it\n", r.Name, counted(r.Used, "board")); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
