// Command provisioning is the factory station: it gives devices their keys and
// certificates, and tells the hub which ones in signed manifests.
package main

import (
	"errors"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

// gcPercent trades memory, of which a station has tens of megabytes at most, for
// processor time: nearly all that a batch makes is garbage by the next group. GOGC in the
// environment has precedence.
const gcPercent = 400

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(command.Run(root()))
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "provisioning",
		Short: "Factory station: keys, certificates and manifests for devices",
		Long: `Factory station: keys, certificates and manifests for devices.

A station begins with 'init'. Its CSR goes to the hub's root, whose answer is
installed with 'accept'. Then 'issue' and 'batch' make devices in folders, 'serve' lets
boards enrol over the bench LAN against the orders that 'order import' opened, and
'manifest' or 'sync' tells the hub of them in signed lists.`,
	}
	output := command.OutputFlag(c)
	c.AddCommand(
		initCommand(output),
		acceptCommand(output),
		keyCommand(output),
		issueCommand(output),
		signCommand(output),
		batchCommand(output),
		manifestCommand(output),
		listCommand(output),
		orderCommand(output),
		tokenCommand(output),
		claimCommand(output),
		replaceCommand(output),
		serveCommand(output),
		labelCommand(output),
		reportCommand(output),
		syncCommand(output),
		command.Version(c, output),
	)
	return c
}

// coded gives an error of the station its exit code.
func coded(err error) error {
	switch {
	case errors.Is(err, station.ErrInvalid):
		return command.WithCode(command.Usage, err)
	case errors.Is(err, station.ErrDenied):
		return command.WithCode(command.Denied, err)
	case errors.Is(err, station.ErrNotFound):
		return command.WithCode(command.NotFound, err)
	}
	return err
}
