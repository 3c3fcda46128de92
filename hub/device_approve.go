package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
)

func newDeviceApprove(output *command.Output) *cobra.Command {
	var r remote
	var p picking
	var o confirmation
	var words string
	c := &cobra.Command{
		Use:   "approve [ID]",
		Short: "Let a quarantined device in, or those that a selector picks (with --confirm)",
		Long: `Lets devices in that came with a good certificate before any manifest named them, where
the hub takes such devices down (admission: just-in-time in hub.yaml): one at once, several
with --confirm. Look first whose they are: hub device list --select state=quarantined, and
hub device show ID for the certificate's fingerprint, which is on the board's label. One that
is nobody's is turned away with hub device revoke. A manifest approves what it names by itself.

` + selectHelp,
		Example: `  hub device approve pi-7 --reason "the board on bench 3"
  hub device approve --select state=quarantined,station=bench-1 --confirm`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, selector, err := p.target(args)
			if err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				if selector != "" {
					return orderSelection(c, output, client, fleet.VerbApprove, admin.SelectionRequest{Select: selector, Note: words}, o)
				}
				d, err := client.ApproveDevice(c.Context(), id, words)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), d, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "device %s is %s and may connect\n", d.ID, d.State)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	p.flags(c)
	o.flags(c)
	c.Flags().StringVar(&words, "reason", "", "why, in a few `words`, for the record")
	return c
}
