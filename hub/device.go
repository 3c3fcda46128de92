package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
)

func newDevice(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "device", Short: "List, show, suspend, resume and revoke devices"}
	group.AddCommand(newDeviceList(output), newDeviceShow(output), newDeviceSuspend(output), newDeviceResume(output), newDeviceRevoke(output))
	return group
}

func newDeviceList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List all devices, in order of ID",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				var devices []admin.Device
				for after := ""; ; {
					page, err := client.Devices(c.Context(), after, 1000)
					if err != nil {
						return err
					}
					devices = append(devices, page.Devices...)
					if after = page.Next; after == "" {
						break
					}
				}
				if devices == nil {
					devices = []admin.Device{}
				}
				return output.Print(c.OutOrStdout(), devices, func(w io.Writer) error { return writeDevices(w, devices) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeDevices(w io.Writer, devices []admin.Device) error {
	if len(devices) == 0 {
		_, err := fmt.Fprintln(w, "no devices are registered: import a station's manifest with `hub manifest import FILE`")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tONLINE\tMODEL\tSTATION\tLAST SEEN\tCERTIFICATE UNTIL")
	for _, d := range devices {
		online, until := "-", "-"
		if d.Session != nil {
			online = d.Session.Address
		}
		if n := len(d.Certificates); n > 0 {
			until = d.Certificates[n-1].NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.State, online, dash(d.Model), dash(d.Station), when(d.LastSeen), until)
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func newDeviceShow(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a device: state, certificates, live session",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				d, err := client.Device(c.Context(), args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), d, func(w io.Writer) error { return writeDevice(w, d) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeDevice(w io.Writer, d admin.Device) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("device", "%s", d.ID)
	if d.Reason == "" {
		row("state", "%s", d.State)
	} else {
		row("state", "%s (%s)", d.State, d.Reason)
	}
	row("model", "%s", dash(d.Model))
	row("OU", "%s", dash(strings.Join(d.OU, ", ")))
	row("station", "%s, manifest %d", dash(d.Station), d.Manifest)
	row("registered", "%s", when(d.Created))
	row("first seen", "%s", when(d.FirstSeen))
	row("last seen", "%s", when(d.LastSeen))
	if s := d.Session; s != nil {
		row("online", "from %s since %s, %s, resumed %v", s.Address, when(s.ConnectedAt), strings.Join([]string{s.TLS, s.Suite, s.Curve}, " "), s.Resumed)
	} else {
		row("online", "no")
	}
	writeHandshakes(row, d.Handshakes)
	for _, c := range d.Certificates {
		state := "usable"
		if !c.Superseded.IsZero() {
			state = "superseded " + when(c.Superseded)
		}
		if !c.Revoked.IsZero() {
			state = "revoked " + when(c.Revoked)
		}
		row("certificate", "serial %s, %s to %s, %s", c.Serial, c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly), state)
		row("", "SHA-256 %s", c.Fingerprint)
	}
	return t.Flush()
}

func newDeviceSuspend(output *command.Output) *cobra.Command {
	var r remote
	var reason string
	c := &cobra.Command{
		Use:   "suspend ID",
		Short: "Cut a device off until it is resumed",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				receipt, err := client.Suspend(c.Context(), args[0], reason)
				if err != nil {
					return err
				}
				return printReceipt(c, output, receipt)
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reason, "reason", "", "why, in a few `words`, for the record")
	return c
}

func newDeviceResume(output *command.Output) *cobra.Command {
	var r remote
	var reason string
	c := &cobra.Command{
		Use:   "resume ID",
		Short: "Lift a suspension",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				d, err := client.Resume(c.Context(), args[0], reason)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), d, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "device %s is %s again and may connect\n", d.ID, d.State)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reason, "reason", "", "why, in a few `words`, for the record")
	return c
}

func newDeviceRevoke(output *command.Output) *cobra.Command {
	var r remote
	var reasonName string
	var confirm bool
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Cut a device off for good; without --confirm, show what that would do",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			reason, err := revocation.ParseReason(reasonName)
			if err != nil {
				return command.Errorf(command.Usage, "--reason: %w", err)
			}
			return r.do(func(client *admin.Client) error {
				if confirm {
					receipt, err := client.Revoke(c.Context(), args[0], reason)
					if err != nil {
						return err
					}
					return printReceipt(c, output, receipt)
				}
				plan, err := client.PlanRevoke(c.Context(), args[0], reason)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), plan, func(w io.Writer) error { return writePlan(w, plan) })
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reasonName, "reason", "", "RFC 5280 `reason`: keyCompromise, cessationOfOperation, superseded, privilegeWithdrawn, affiliationChanged, cACompromise, aACompromise, unspecified")
	c.MarkFlagRequired("reason")
	c.Flags().BoolVar(&confirm, "confirm", false, "do it; there is no way back")
	return c
}

func writePlan(w io.Writer, p admin.RevokePlan) error {
	if p.Already {
		_, err := fmt.Fprintf(w, "device %s is revoked already; nothing would change\n", p.ID)
		return err
	}
	session := "it is not connected"
	if p.Session != nil {
		session = fmt.Sprintf("its session from %s would be closed, without its will", p.Session.Address)
	}
	_, err := fmt.Fprintf(w, "dry run: device %s (%s, last seen %s) would be revoked for %s, for good\n  certificates revoked: %s\n  %s\nnothing was changed; add --confirm to do it\n",
		p.ID, p.State, when(p.LastSeen), p.Reason, strings.Join(p.Serials, ", "), session)
	return err
}

// printReceipt prints the proof of a cut-off.
func printReceipt(c *cobra.Command, output *command.Output, r fleet.Receipt) error {
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
		already := ""
		if r.Already {
			already = " already"
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(t, "device %s is%s %s (%s)\n", r.ID, already, r.State, dash(r.Reason))
		fmt.Fprintf(t, "  requested\t%s\n", stamp(r.RequestedAt))
		fmt.Fprintf(t, "  durable\t%s\n", stamp(r.DurableAt))
		fmt.Fprintf(t, "  effective\t%s\n", stamp(r.EffectiveAt))
		if r.SessionsClosed > 0 {
			fmt.Fprintf(t, "  sessions closed\t%d, the last at %s\n", r.SessionsClosed, stamp(r.LastSessionClosedAt))
		} else {
			fmt.Fprintf(t, "  sessions closed\t0, it was not connected\n")
		}
		for _, s := range r.Serials {
			fmt.Fprintf(t, "  certificate\tserial %s revoked\n", s)
		}
		return t.Flush()
	})
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
