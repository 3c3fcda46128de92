package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func manifestCommand(output *command.Output) *cobra.Command {
	var dir, out string
	var number uint64
	c := &cobra.Command{
		Use:   "manifest --dir S --out FILE",
		Short: "Write the signed list of what was issued since the last one",
		Long: `Write the signed list of what was issued since the last one. If FILE is a folder,
the list is named STATION-NUMBER.jws in it. If nothing was issued, nothing is
written. If the command was interrupted, the next one writes the same list.

With --number an earlier list is written again, for one that was lost on its way.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				out := local(c, out)
				var e station.Exported
				var err error
				if c.Flags().Changed("number") {
					e, err = s.Reexport(number, out)
				} else {
					e, err = s.Export(out)
				}
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), e, func(w io.Writer) error { return printManifest(w, e) })
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&out, "out", "", "the `file` to write, or the folder for it")
	c.Flags().Uint64Var(&number, "number", 0, "write this earlier manifest again")
	require(c, "out")
	return c
}

func printManifest(w io.Writer, e station.Exported) error {
	if e.Number == 0 {
		_, err := fmt.Fprintln(w, "nothing was issued since the last manifest: nothing written")
		return err
	}
	again := ""
	if e.Repeated {
		again = " (again)"
	}
	_, err := fmt.Fprintf(w, "manifest %d with %s written to %s%s\nnext: hub manifest import %s\n", e.Number, counted(e.Devices, "device"), e.File, again, e.File)
	if err == nil && e.Remaining > 0 {
		_, err = fmt.Fprintf(w, "left for the next manifest: %s; run the command again with another --out\n", counted(e.Remaining, "device"))
	}
	return err
}
