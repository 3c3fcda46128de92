package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func replaceCommand(output *command.Output) *cobra.Command {
	var dir, reason string
	var o station.DeviceOrder
	c := &cobra.Command{
		Use:   "replace --dir S --id ID --reason REASON [--out DIR]",
		Short: "Give a device that has a certificate another, for a new key",
		Long: `Give a device that has a certificate another, for a new key. The next manifest says
which serial number it supersedes, and the hub then no longer takes the old one.

With --out the key and certificate are made in DIR, as 'issue' makes them. Without, the
board may fetch its certificate itself: over EST with its current one, or with a token
('provisioning token --id ID').`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				if o.Out != "" {
					o.Out = local(c, o.Out)
					d, err := s.Replace(o, reason)
					if err != nil {
						return err
					}
					return output.Print(c.OutOrStdout(), d, func(w io.Writer) error { return printDelivery(w, d) })
				}
				order, err := s.OrderReplacement(o.ID, reason)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), order, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "order %d is open: %s may fetch another certificate\n", order.Number, o.ID)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.ID, "id", "", "the device's `ID`")
	c.Flags().StringVar(&reason, "reason", "", "`why`, for the records")
	c.Flags().StringVar(&o.Out, "out", "", "a new `folder` for the device's files")
	require(c, "id", "reason")
	return c
}
