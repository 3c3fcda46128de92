package main

import (
	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
)

func newDeviceApprove(output *command.Output) *cobra.Command {
	return newDeviceLift(output, fleet.VerbApprove, (*admin.Client).ApproveDevice, "device %s is %s and may connect\n", &cobra.Command{
		Use:   "approve [ID]",
		Short: "Let a quarantined device in, or those that a selector picks (with --confirm)",
		Long: `Lets devices in that came with a good certificate before any manifest named them, where
the hub takes such devices down (admission: just-in-time in hub.yaml): one at once, several
with --confirm. Look first whose they are: hub device list --select state=quarantined, and
hub device show ID for the certificate's fingerprint, which is on the board's label. One that
is nobody's is turned away with hub device revoke. A manifest approves what it names by itself.

` + selectHelp,
		Example: `  hub device approve pi-7 --reason "the board on bench 3"
  hub device approve --select state=quarantined,station=bench-1 --confirm`,
	})
}
