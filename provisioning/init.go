package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func initCommand(output *command.Output) *cobra.Command {
	var dir, name, kept string
	c := &cobra.Command{
		Use:   "init --dir S --name NAME",
		Short: "Make a station: its key, ledger and the CSR for its authority",
		Example: `  provisioning init --dir /var/lib/fleethub/station --name bench-1
  hub station authorize --dir HUB --csr /var/lib/fleethub/station/station.csr --key-sha256 HEX --out bench-1.crt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			newKey, err := keyMaker(c, dir, kept)
			if err != nil {
				return err
			}
			made, err := station.InitWith(dir, name, newKey)
			if err != nil {
				return coded(err)
			}
			return output.Print(c.OutOrStdout(), made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "station %s made in %s\n  key      %s (never leaves this machine)\n  SHA-256  %s (of the public key: to be compared at the root)\n  request  %s\nnext: hub station authorize --dir HUB --csr %s --key-sha256 %s --out FILE\n",
					made.Station, dir, made.Key, made.KeyHash, made.Request, made.Request, made.KeyHash)
				return err
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&name, "name", "", "the station's `name`, as in bench-1")
	c.Flags().StringVar(&kept, "key", string(cakey.KeepInFile), "where the station's `key` is kept: "+cakey.KeepUsage)
	require(c, "name")
	return c
}
