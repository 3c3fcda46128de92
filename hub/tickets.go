package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newTickets(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "tickets", Short: "TLS session tickets: show and rotate their keys"}
	group.AddCommand(newTicketsShow(output), newTicketsRotate(output))
	return group
}

func newTicketsShow(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "show",
		Short: "Show the ticket keys and what became of tickets",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return printTickets(c, output, r, (*admin.Client).Tickets)
		},
	}
	remoteFlags(c, &r)
	return c
}

func newTicketsRotate(output *command.Output) *cobra.Command {
	var r remote
	var reason string
	var drop bool
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new ticket key; with --drop, make every ticket out there worthless",
		Long: `Makes a new key for TLS session tickets at once instead of after a day. Tickets made
with older keys stay good for their lifetime. With --drop they are worthless at once,
and each device's next connection is a full handshake: for when the hub's folder, which
holds the keys, may have been read.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rotate := (*admin.Client).RotateTickets
			if drop {
				rotate = (*admin.Client).DropTickets
			}
			return printTickets(c, output, r, func(client *admin.Client, ctx context.Context) (admin.TicketState, error) {
				return rotate(client, ctx, reason)
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reason, "reason", "", "why, in a few `words`, for the record")
	c.Flags().BoolVar(&drop, "drop", false, "forget every older key, too")
	return c
}

func printTickets(c *cobra.Command, output *command.Output, r remote, ask func(*admin.Client, context.Context) (admin.TicketState, error)) error {
	return r.do(func(client *admin.Client) error {
		state, err := ask(client, c.Context())
		if err != nil {
			return err
		}
		return output.Print(c.OutOrStdout(), state, func(w io.Writer) error { return writeTickets(w, state) })
	})
}

func writeTickets(w io.Writer, s admin.TicketState) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tMADE\tUSE")
	for _, k := range s.Keys {
		use := "opens tickets made with it"
		if k.Seals {
			use = "seals new tickets"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", k.ID, when(k.Created), use)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "a ticket is good for %s\nsince %s: %d compact tickets made, %d others made, %d compact accepted, %d rejected\n",
		time.Duration(s.LifetimeSeconds)*time.Second, when(s.Since), s.Minted, s.Fallback, s.Accepted, s.Rejected)
	return err
}
