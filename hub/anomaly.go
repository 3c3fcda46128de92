package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newAnomaly(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "anomaly", Short: "Devices that behave as devices don't: copied keys, storms, topics that aren't theirs"}
	var r remote
	list := &cobra.Command{
		Use:   "list [ID]",
		Short: "List the latest anomalies, or those of one device with its scores",
		Long: `Lists the latest anomalies since the hub started, newest first; "hub audit list --action
device.anomaly" has all. A device is told once in misuse.half_life for each signal. What
is an anomaly, and whether it suspends the device, is set in hub.yaml under misuse.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id := ""
			if len(args) == 1 {
				id = args[0]
			}
			return r.do(func(client *admin.Client) error {
				if id != "" { // "no anomalies" about a name that is mistyped would be believed
					if _, err := client.Device(c.Context(), id); err != nil {
						return err
					}
				}
				found, err := client.Anomalies(c.Context(), id)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), found, func(w io.Writer) error { return writeAnomalies(w, found) })
			})
		},
	}
	remoteFlags(list, &r)
	group.AddCommand(list)
	return group
}

func writeAnomalies(w io.Writer, found admin.Anomalies) error {
	var signals []string
	for s := range found.Scores {
		signals = append(signals, s)
	}
	slices.Sort(signals)
	for _, s := range signals {
		fmt.Fprintf(w, "score now: %s %d\n", s, found.Scores[s])
	}
	if len(found.Anomalies) == 0 {
		_, err := fmt.Fprintln(w, "no anomalies since the hub started")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHEN\tDEVICE\tSIGNAL\tSCORE\tOF\tDETAIL")
	for _, a := range found.Anomalies {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\n", when(a.At), a.Device, a.Signal, a.Score, a.Threshold, a.Detail)
	}
	return t.Flush()
}
