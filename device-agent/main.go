// Device-agent runs on every board: it connects the device to its hub over
// mutual TLS for as long as the board lives and reports the machine's own
// readings. DESIGN.md in this folder says how.
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
		Use:   "device-agent",
		Short: "Connects this device to its hub and reports its readings",
	}
	output := command.OutputFlag(root)
	root.AddCommand(
		newEnroll(output),
		newRenew(output),
		newRun(output),
		newStatus(output),
		newWhy(output),
		command.Version(root, output),
	)
	return root
}
