package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func signCommand(output *command.Output) *cobra.Command {
	var dir string
	var o station.RequestOrder
	c := &cobra.Command{
		Use:   "sign --dir S (--order ORDER | --id ID) --csr FILE|DIR [--out DIR]",
		Short: "Issue certificates for requests on a USB stick, of boards that no network reaches",
		Long: `Issue certificates for requests (PKCS #10, PEM) on a USB stick, of boards that no
network reaches. Each NAME.csr gets NAME.crt, the board's certificate and its issuer, and
the folder ca.crt, by which a device knows its hub. Of a request the key alone is believed:
the ID is --id, or the next that is free of --order.

The same request again gets the same certificate. A key in a TPM can't prove that it is in
one over a stick, so orders that demand a TPM can't be served like this.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o.Requests = local(c, o.Requests)
				if o.Out = local(c, o.Out); o.Out == "" {
					o.Out = filepath.Dir(o.Requests)
					if filepath.Ext(o.Requests) != ".csr" {
						o.Out = o.Requests
					}
				}
				answered, stopped := s.AnswerRequests(o)
				refused := 0
				err := output.Print(c.OutOrStdout(), answered, func(w io.Writer) error {
					for _, a := range answered {
						if err := printAnswered(w, a); err != nil {
							return err
						}
					}
					return nil
				})
				for _, a := range answered {
					if a.Error != "" {
						refused++
					}
				}
				switch {
				case stopped != nil:
					return stopped
				case err != nil:
					return err
				case refused > 0:
					return command.Errorf(command.Denied, "%d of %d requests got no certificate", refused, len(answered))
				}
				return nil
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.Requests, "csr", "", "the request's `file`, or a folder of files NAME.csr")
	c.Flags().StringVar(&o.Out, "out", "", "the `folder` for the certificates (default: the requests')")
	c.Flags().StringVar(&o.Order, "order", "", "the order's `name` or number")
	c.Flags().StringVar(&o.ID, "id", "", "the one device's `ID`")
	attributeFlags(c, &o.OU, &o.Model)
	require(c, "csr")
	c.MarkFlagsOneRequired("order", "id")
	return c
}

func printAnswered(w io.Writer, a station.Answered) error {
	var err error
	switch {
	case a.Error != "":
		_, err = fmt.Fprintf(w, "refused  %s: %s\n", a.Request, a.Error)
	case a.Repeated:
		_, err = fmt.Fprintf(w, "again    %s to %s, serial number %s\n", a.ID, a.File, a.Serial)
	default:
		_, err = fmt.Fprintf(w, "issued   %s to %s, serial number %s\n", a.ID, a.File, a.Serial)
	}
	return err
}
