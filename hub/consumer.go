package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/consumer"
)

func newConsumer(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "consumer", Short: "Who reads what devices sent, and how far they have come: list, seek, delete"}
	group.AddCommand(newConsumerList(output), newConsumerSeek(output), newConsumerDelete(output))
	return group
}

func newConsumerList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List the consumers and their places",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				list, err := client.Consumers(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), list, func(w io.Writer) error { return writeConsumers(w, list) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeConsumers(w io.Writer, list admin.ConsumerList) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tKIND\tFILTER\tPLACE\tBEHIND\tSTORED")
	for _, c := range list.Consumers {
		kind := "reader"
		if c.Sink {
			kind = "sink"
		}
		behind := "0"
		if c.Next < list.End {
			behind = position(list.End - c.Next)
		}
		if c.Next < list.First {
			behind += fmt.Sprintf(" (%d no longer kept)", list.First-c.Next)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", c.Name, kind, printable([]byte(c.Filter)), c.Next, behind, when(c.Updated))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if list.End == list.First {
		_, err := fmt.Fprintln(w, "the journal is empty")
		return err
	}
	_, err := fmt.Fprintf(w, "the journal has records from %d to %d\n", list.First, list.End-1)
	return err
}

func newConsumerSeek(output *command.Output) *cobra.Command {
	var r remote
	var from string
	c := &cobra.Command{
		Use:   "seek NAME --from WHERE",
		Short: "Move a consumer, or a sink, forwards (messages are skipped) or back (they are repeated)",
		Example: `  hub consumer seek warehouse --from -1h
  hub consumer seek warehouse --from 48213   # the position after a message that its receiver never takes`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := validFrom(from); err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				one, err := client.Consumer(c.Context(), args[0])
				if err != nil {
					return err
				}
				moved, err := client.MoveConsumer(c.Context(), args[0], one.Next, admin.ConsumerPlace{From: from})
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), moved, func(w io.Writer) error { return writeSeek(w, one, moved) })
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&from, "from", "", "`where` to go on: start (of what is kept), now, a position, a time such as 2026-03-01T08:00:00Z, or -1h")
	_ = c.MarkFlagRequired("from") // fails only for a flag that isn't there
	return c
}

func writeSeek(w io.Writer, before, after consumer.Consumer) error {
	_, err := fmt.Fprintf(w, "%s goes on at %d; it was at %d\n", after.Name, after.Next, before.Next)
	return err
}

func newConsumerDelete(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget a consumer and its place",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				one, err := client.Consumer(c.Context(), args[0])
				if err != nil {
					return err
				}
				if err := client.DeleteConsumer(c.Context(), args[0], one.Next); err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), map[string]any{"name": one.Name, "next": one.Next}, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s is forgotten; it had come to %d\n", one.Name, one.Next)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	return c
}
