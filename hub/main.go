// Hub is what devices connect to for their whole life: MQTT broker over mutual TLS,
// device registry, issuing CA, operator API. One file per command.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
)

func main() {
	root := newRoot()
	if c, _, err := root.Find(os.Args[1:]); err == nil && c.CommandPath() == "hub serve" {
		coalesceTimers()
	}
	os.Exit(command.Run(root))
}

// newRoot builds the command line, fresh at every call.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "hub",
		Short: "The connectivity hub of a device fleet: MQTT over mutual TLS, registry, issuing CA",
	}
	output := command.OutputFlag(root)
	root.AddCommand(
		newInit(output),
		newServe(),
		newRootGroup(output),
		newCA(output),
		newStation(output),
		newService(output),
		newOperator(output),
		newManifest(output),
		newDevice(output),
		newProposal(output),
		newReceipt(output),
		newIssuer(output),
		newCRL(output),
		newWhy(output),
		newAnomaly(output),
		newPolicy(output),
		newTickets(output),
		newCapture(output),
		newBackup(output),
		newRestore(output),
		newStore(output),
		newWatch(output),
		newTail(output),
		newConsumer(output),
		newSink(output),
		newAudit(output),
		command.Version(root, output),
	)
	return root
}
