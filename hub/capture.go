package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/capture"
)

func newCapture(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "capture", Short: "Explain recorded TLS handshakes"}
	var connection int
	explain := &cobra.Command{
		Use:   "explain FILE",
		Short: "Explain the TLS handshakes in a pcap or pcapng file, step by step",
		Long: `Prints each TLS handshake in a capture (pcap or pcapng, of tcpdump, tshark or
Wireshark) step by step: what was offered, chosen and refused, what that cost, and what
an alert probably means. It needs no keys and no hub: what TLS 1.3 encrypts is told from
the order and the sizes of its records, and marked with ≈.

Record one at the hub with: tcpdump -i any -s 0 -w FILE 'tcp port 8883 or tcp port 8443'`,
		Example: "  hub capture explain device.pcap\n  hub capture explain device.pcap --connection 3 --output json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			found, err := capture.ReadFile(c.Context(), args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return command.Errorf(command.NotFound, "there is no file %s", args[0])
			}
			if err != nil {
				return err
			}
			if c.Flags().Changed("connection") {
				if connection < 1 || connection > len(found.Connections) {
					return command.Errorf(command.NotFound, "%s has no connection %d: it has %d with TLS", args[0], connection, len(found.Connections))
				}
				found.Connections = found.Connections[connection-1 : connection]
			}
			return output.Print(c.OutOrStdout(), found, found.WriteText)
		},
	}
	explain.Flags().IntVar(&connection, "connection", 0, "show only the connection of this `number`")
	group.AddCommand(explain)
	return group
}
