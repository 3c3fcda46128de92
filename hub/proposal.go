package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
)

func newProposal(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "proposal", Short: "Orders that wait for a second operator: list, approve, withdraw"}
	group.AddCommand(newProposalList(output), newProposalApprove(output), newProposalWithdraw(output))
	return group
}

func newProposalList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List the orders that wait for a second operator",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				proposals, err := client.Proposals(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), proposals, func(w io.Writer) error {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					fmt.Fprintln(t, "PROPOSAL\tVERB\tDEVICES\tPICKED BY\tBY\tWHY\tUNTIL\tDIGEST")
					for _, p := range proposals {
						fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", p.ID, p.Order.Verb, p.Count, p.Order.Select, operatorName(p.Actor), whyOf(p.Order), when(p.Expires), p.Tag)
					}
					return t.Flush()
				})
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func newProposalApprove(output *command.Output) *cobra.Command {
	var r remote
	var o confirmation
	var digest string
	c := &cobra.Command{
		Use:   "approve PROPOSAL --count N --digest DIGEST",
		Short: "Carry out another operator's proposal",
		Long: `Carries out an order that another operator gave. Look at whom it is for first: hub
proposal list, and hub device list --select with the proposal's selector. The digest is
the one in that list: it stands for the verb, the selector, the reason, the devices and
who gave the order, so nobody can put another order in the place of the one that you
looked at. It is also refused if the selector picks others by now than when it was
proposed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				receipt, err := client.Approve(c.Context(), args[0], digest, o.count)
				if err != nil {
					return err
				}
				return finishOrder(c, output, client, receipt, o)
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().IntVar(&o.count, "count", 0, "how many devices the order is for, typed again")
	c.Flags().StringVar(&digest, "digest", "", "the proposal's `digest`, as hub proposal list showed it")
	c.MarkFlagRequired("count")
	c.MarkFlagRequired("digest")
	receiptFlag(c, &o.receipt)
	return c
}

func newProposalWithdraw(output *command.Output) *cobra.Command {
	var r remote
	var note string
	c := &cobra.Command{
		Use:   "withdraw PROPOSAL",
		Short: "Remove an order that waits",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				p, err := client.Withdraw(c.Context(), args[0], note)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), p, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "proposal %s is withdrawn; nothing was changed\n", p.ID)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&note, "note", "", "why, in a few `words`, for the record")
	return c
}

// whyOf is the reason and the note of an order, of which the first is a revocation's only.
func whyOf(o fleet.Order) string {
	reason := ""
	if o.Verb == fleet.VerbRevoke {
		reason = o.Reason.String()
	}
	return strings.Trim(reason+": "+o.Note, ": ")
}

func writeProposal(w io.Writer, p fleet.Proposal) error {
	_, err := fmt.Fprintf(w, "%s would be %s: a second operator must approve it by %s, with\n  hub proposal approve %s --count %d --digest DIGEST\nand the digest that hub proposal list shows; nothing was changed yet\n",
		countOf(p.Count, "device"), p.Order.Verb.Past(), when(p.Expires), p.ID, p.Count)
	return err
}
