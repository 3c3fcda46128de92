package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/consumer"
)

func newSink(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "sink", Short: "Webhooks that get what devices send (sinks in hub.yaml): how far each has come"}
	group.AddCommand(newSinkList(output))
	return group
}

func newSinkList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List the webhooks: place, messages and time they are behind, last error",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				sinks, err := client.Sinks(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), sinks, func(w io.Writer) error { return writeSinks(w, sinks, time.Now()) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeSinks(w io.Writer, sinks []consumer.SinkStatus, now time.Time) error {
	if len(sinks) == 0 {
		_, err := fmt.Fprintln(w, "no sinks; hub.yaml says how to make one")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tURL\tFILTER\tPLACE\tBEHIND\tOLDEST\tDELIVERED\tLOST\tLAST ERROR")
	for _, s := range sinks {
		behind := countOf(s.LagMessages, "message")
		if s.LagMore {
			behind += " or more"
		}
		oldest := "-"
		if !s.Oldest.IsZero() {
			oldest = max(0, now.Sub(s.Oldest)).Round(time.Second).String()
		}
		lastError := "-"
		if s.LastError != "" {
			lastError = fmt.Sprintf("%s (%s, attempt %d)", printable([]byte(s.LastError)), when(s.LastErrorAt), s.Attempts)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%d\t%d\t%s\n", s.Name, printable([]byte(s.URL)), printable([]byte(s.Filter)), s.Next, behind, oldest, s.Delivered, s.Lost, lastError)
	}
	return t.Flush()
}
