// Firmware-sim is a fleet on one machine: N virtual devices, each with its own
// certificate, that connect to a hub, publish, and measure. DESIGN.md in this
// folder says how.
package main

import (
	"os"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/spf13/cobra"
)

func main() {
	os.Exit(command.Run(newRoot()))
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "firmware-sim",
		Short: "Simulates a fleet of devices against a hub",
	}
	output := command.OutputFlag(root)
	root.AddCommand(
		newRun(output),
		newStorm(output),
		command.Version(root, output),
	)
	return root
}
