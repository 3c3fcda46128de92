package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func issueCommand(output *command.Output) *cobra.Command {
	var dir string
	var o station.DeviceOrder
	c := &cobra.Command{
		Use:   "issue --dir S --id ID --out DIR",
		Short: "Make one device's key and certificate in DIR",
		Long: `Make one device's key and certificate in DIR: device.key, device.crt (leaf, then
issuer) and ca.crt (the trust bundle: the root and the hub's issuing CA).

The device is made against the open order that has its ID, or one of its own.
Repeated with the same ID and DIR it delivers the same certificate again. An ID
never gets a second one but by 'replace', and a folder never two devices.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o.Out = local(c, o.Out)
				d, err := s.Issue(o)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), d, func(w io.Writer) error { return printDelivery(w, d) })
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.ID, "id", "", "the device's `ID`")
	c.Flags().StringVar(&o.Out, "out", "", "the `folder` for the device's files")
	require(c, "id", "out")
	attributeFlags(c, &o.OU, &o.Model)
	return c
}

// attributeFlags adds what devices may have beyond an ID.
func attributeFlags(c *cobra.Command, ou *[]string, model *string) {
	c.Flags().StringArrayVar(ou, "ou", nil, "an organizational `unit` for the certificate, the product or role; may be repeated")
	c.Flags().StringVar(model, "model", "", "the board's `model`, for the hub's registry")
}

func printDelivery(w io.Writer, d station.Delivery) error {
	verb := "issued"
	if d.Repeated {
		verb = "delivered again"
	}
	_, err := fmt.Fprintf(w, "%s %s to %s\n  serial number  %s\n  SHA-256        %s\n  valid until    %s\n",
		d.ID, verb, d.Out, d.Serial, d.Fingerprint, d.NotAfter.UTC().Format("2006-01-02 15:04:05 MST"))
	if err == nil && d.Supersedes != "" {
		_, err = fmt.Fprintf(w, "  supersedes     %s, once the hub has the next manifest\n", d.Supersedes)
	}
	return err
}
