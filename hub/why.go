package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newWhy(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "why ID",
		Short: "Say in words why a device isn't connected, or was cut off or denied something",
		Long: `Says whether the device may connect, and what became of the last connections under its
name: refused in the TLS handshake or at CONNECT, ended, or denied a topic. The hub
remembers that in memory, since its start. A line with a star is of somebody who came
under this name without a certificate that proves it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				answer, err := client.Why(c.Context(), args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), answer, func(w io.Writer) error { return writeWhy(w, answer) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeWhy(w io.Writer, a admin.Why) error {
	online := "not connected"
	if a.Online {
		online = "connected"
	}
	fmt.Fprintf(w, "%s\n%s now; events since %s:\n", a.Verdict, online, when(a.Since))
	if len(a.Events) == 0 {
		_, err := fmt.Fprintln(w, "  none: it has not reached the hub under its name")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range a.Events {
		star := ""
		if !e.Own {
			star = "*"
		}
		times := ""
		if e.Times > 1 {
			times = fmt.Sprintf(" (%d times since %s)", e.Times, when(e.First))
		}
		fmt.Fprintf(t, "  %s\t%s%s\t%s\t%s%s\n", when(e.At), e.Kind, star, dash(e.Address), e.Words, times)
	}
	return t.Flush()
}
