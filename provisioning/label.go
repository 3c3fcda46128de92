package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/label"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/screen"
	"github.com/fleethub/fleethub/provisioning/station"
)

// labelled is what the label command prints as JSON.
type labelled struct {
	IDs    []string `json:"ids"`
	To     string   `json:"to"`
	Format string   `json:"format"`
}

func labelCommand(output *command.Output) *cobra.Command {
	var dir, to, format string
	c := &cobra.Command{
		Use:   "label --dir S --to TARGET ID...",
		Short: "Print devices' labels, or write them to files",
		Long: `Print devices' labels, or write them to files. A label has a QR code that says
"ID sha256:FINGERPRINT" (of the newest certificate), a Code 128 of the ID, and both to read.

TARGET is tcp://HOST[:PORT], a label printer's raw socket (port 9100, ZPL); a device such
as /dev/usb/lp0 (say --format zpl); a file for one label; or a folder for more.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, ids []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				if !strings.HasPrefix(to, "tcp://") {
					to = local(c, to)
				}
				target, err := label.ParseTarget(to, label.Format(format))
				if err != nil {
					return command.WithCode(command.Usage, err)
				}
				if err := target.Holds(len(ids)); err != nil {
					return command.WithCode(command.Usage, err)
				}
				for _, id := range ids {
					l, err := screen.Label(s.Ledger(), id)
					if errors.Is(err, ledger.ErrNotFound) {
						return command.Errorf(command.NotFound, "%w, so it has no label", err)
					}
					if err != nil {
						return err
					}
					if err := target.Send(c.Context(), l); err != nil {
						return err
					}
				}
				return output.Print(c.OutOrStdout(), labelled{IDs: ids, To: to, Format: string(target.Format)}, func(w io.Writer) error {
					noun := "labels"
					if len(ids) == 1 {
						noun = "label"
					}
					_, err := fmt.Fprintf(w, "%d %s (%s) to %s\n", len(ids), noun, target.Format, to)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&to, "to", "", "the printer's `address`, a file, a device or a folder")
	c.Flags().StringVar(&format, "format", "", "the `format`: png, svg or zpl (default: zpl for a printer, else what the file's name says, or png)")
	require(c, "to")
	return c
}
