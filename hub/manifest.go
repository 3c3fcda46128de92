package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/admin"
)

func newManifest(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "manifest", Short: "Signed lists of what a station issued"}
	var r remote
	importCommand := &cobra.Command{
		Use:   "import FILE",
		Short: "Register the devices of a station's manifest",
		Long: `Sends a signed manifest (provisioning manifest wrote it) to the running hub, which
verifies the signature and the station's authority and registers every device, or
none. Importing a manifest again changes nothing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := readManifest(args[0])
			if err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				report, err := client.Import(c.Context(), data)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), report, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "manifest %d of station %s: %d registered, %d superseded, %d unchanged\n",
						report.Number, report.Station, report.Registered, report.Superseded, report.Unchanged)
					return err
				})
			})
		},
	}
	remoteFlags(importCommand, &r)
	group.AddCommand(importCommand)
	return group
}

func readManifest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.Errorf(command.NotFound, "there is no manifest %s: the station writes it with `provisioning manifest --out FILE`", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, manifest.MaxSize+1))
	if err == nil && len(data) > manifest.MaxSize {
		err = fmt.Errorf("%s is larger than %d bytes, which no manifest is", path, manifest.MaxSize)
	}
	return data, err
}
