package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newIssuer(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "issuer", Short: "List, rehearse the removal of, remove and revoke issuing CAs that the hub trusts"}
	group.AddCommand(newIssuerList(output), newIssuerRehearse(output), newIssuerRemove(output), newIssuerRevoke(output))
	return group
}

func newIssuerList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List the issuing CAs that the hub trusts, and how many rest on each",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				issuers, err := client.Issuers(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), issuers, func(w io.Writer) error { return writeIssuers(w, issuers) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeIssuers(w io.Writer, issuers []admin.Issuer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tKIND\tDEVICES\tONLINE\tISSUES UNTIL\tSERIAL")
	for _, i := range issuers {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\n", i.Name, i.Kind, i.Devices, i.Online, i.NotAfter.Format(time.DateOnly), i.Serial)
	}
	return t.Flush()
}

func newIssuerRehearse(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "rehearse-removal NAME",
		Short: "List who would break without an issuing CA; change nothing",
		Long: `Lists every device in the registry whose certificate is by that CA, and every
connection whose live chain is: what hub issuer remove would cut off. NAME is the
station's name, or hub for the hub's own issuing CA.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				plan, err := client.PlanIssuerRemoval(c.Context(), args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), plan, func(w io.Writer) error { return writeIssuerPlan(w, plan) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func newIssuerRemove(output *command.Output) *cobra.Command {
	var r remote
	var reason string
	var confirm bool
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take the hub's trust from an issuing CA; without --confirm, show what that would do",
		Long: `Ends the trust in a station's issuing CA, or in one of the hub's own that has a successor
(hub ca rotate): whoever has a certificate by it is disconnected and refused, tickets
included, until the CA is trusted again or there is another certificate. The CA's
certificate moves to issuers/removed in the hub's folder, one of the hub's own to
ca/removed with its key; to undo, move it back and send SIGHUP. A CA of the hub's is
kept while the hub's own certificate or an operator's is by it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				if confirm {
					receipt, err := client.RemoveIssuer(c.Context(), args[0], reason)
					if err != nil {
						return err
					}
					return output.Print(c.OutOrStdout(), receipt, func(w io.Writer) error { return writeIssuerReceipt(w, receipt) })
				}
				plan, err := client.PlanIssuerRemoval(c.Context(), args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), plan, func(w io.Writer) error {
					if err := writeIssuerPlan(w, plan); err != nil {
						return err
					}
					if plan.Note != "" {
						return nil // it says why it can't be done
					}
					_, err := fmt.Fprintln(w, "nothing was changed; add --confirm to do it")
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reason, "reason", "", "why, in a few `words`, for the record")
	c.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return c
}

func writeIssuerPlan(w io.Writer, p admin.IssuerPlan) error {
	fmt.Fprintf(w, "without issuer %s (%s, serial %s): %d could not connect any more, %s would be cut\n",
		p.Issuer.Name, p.Issuer.Kind, p.Issuer.Serial, p.Breaks, countOf(p.Online, "connection"))
	if p.Note != "" {
		fmt.Fprintln(w, p.Note)
	}
	if len(p.Affected) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tROLE\tSTATE\tONLINE")
	for _, a := range p.Affected {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", a.ID, a.Role, dash(a.State), dash(a.Address))
	}
	return t.Flush()
}

func writeIssuerReceipt(w io.Writer, r admin.IssuerReceipt) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "issuer %s (%s, serial %s) is no longer trusted\n", r.Issuer.Name, r.Issuer.Kind, r.Issuer.Serial)
	fmt.Fprintf(t, "  requested\t%s\n", stamp(r.RequestedAt))
	fmt.Fprintf(t, "  durable\t%s\n", stamp(r.DurableAt))
	fmt.Fprintf(t, "  effective\t%s\n", stamp(r.EffectiveAt))
	if r.SessionsClosed > 0 {
		fmt.Fprintf(t, "  sessions closed\t%d, the last at %s\n", r.SessionsClosed, stamp(r.LastSessionClosedAt))
		fmt.Fprintf(t, "  disconnected\t%s\n", strings.Join(r.Disconnected, ", "))
	} else {
		fmt.Fprintf(t, "  sessions closed\t0, none was connected\n")
	}
	for _, path := range r.MovedTo {
		fmt.Fprintf(t, "  certificate\tmoved to %s\n", path)
	}
	return t.Flush()
}
