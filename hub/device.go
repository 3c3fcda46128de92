package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/registry"
)

func newDevice(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "device", Short: "List, show, label, approve, suspend, resume, revoke, retire, replace and reinstate devices"}
	group.AddCommand(
		newDeviceList(output), newDeviceShow(output), newDeviceExport(output), newDeviceLabel(output),
		newDeviceApprove(output), newDeviceSuspend(output), newDeviceResume(output), newDeviceRevoke(output), newDeviceRetire(output), newDeviceReplace(output), newDeviceReinstate(output),
	)
	return group
}

// selectHelp says what a selector is, in the commands that take one.
const selectHelp = `A selector is a list of terms that must all hold, such as
  batch=lot-0425,model=pi4,last-seen<30d
Text fields: id state model batch station protection ou issuer label.KEY, with = or !=,
alternatives (state=active|registered), wildcards (id=pi-*) and quotes (model="a, b").
Times: last-seen first-seen registered changed expires, with < or > and an age (12h, 30d;
of expires what is left) or a date; last-seen=never.`

// picking is how a command names several devices.
type picking struct {
	selector, batch, protection string
}

func (p *picking) flags(c *cobra.Command) {
	c.Flags().StringVar(&p.selector, "select", "", "`selector` of the devices, such as batch=lot-0425,last-seen<30d")
	c.Flags().StringVar(&p.batch, "batch", "", "`name` of a batch: short for --select batch=NAME")
	c.Flags().StringVar(&p.protection, "protection", "", "`class` of key protection, software or tpm: short for --select protection=CLASS")
}

// text returns the selector, empty if none is given.
func (p *picking) text() (string, error) {
	s, err := registry.ParseSelector(p.selector)
	if err != nil {
		return "", command.Errorf(command.Usage, "--select: %w", err)
	}
	if p.batch != "" {
		s = s.And(registry.Equals("batch", p.batch))
	}
	if p.protection != "" {
		s = s.And(registry.Equals("protection", p.protection))
	}
	return s.String(), nil
}

// target returns the one device that args name, or the selector of several.
func (p *picking) target(args []string) (id, selector string, err error) {
	selector, err = p.text()
	switch {
	case err != nil:
	case len(args) == 1 && selector != "":
		err = command.Errorf(command.Usage, "name one device, or a selector, not both")
	case len(args) == 1:
		id = args[0]
	case selector == "":
		err = command.Errorf(command.Usage, "name a device, or several with --select (id=* is every device)")
	}
	return id, selector, err
}

func newDeviceList(output *command.Output) *cobra.Command {
	var r remote
	var p picking
	var expiring string
	c := &cobra.Command{
		Use:   "list",
		Short: "List devices, in order of ID: all, or those that a selector picks",
		Long:  "Lists devices, in order of ID.\n\n" + selectHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if expiring != "" {
				if _, err := registry.ParseSelector("expires<" + expiring); err != nil || strings.Contains(expiring, ",") {
					return command.Errorf(command.Usage, "--expiring: %.40q is neither a duration such as 12h or 30d nor a date such as 2026-03-01", expiring)
				}
				p.selector = strings.TrimPrefix(p.selector+",expires<"+expiring, ",")
			}
			selector, err := p.text()
			if err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				devices := []admin.Device{}
				if err := eachDevice(c, client, selector, func(d admin.Device) error {
					devices = append(devices, d)
					return nil
				}); err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), devices, func(w io.Writer) error { return writeDevices(w, devices, selector) })
			})
		},
	}
	remoteFlags(c, &r)
	p.flags(c)
	c.Flags().StringVar(&expiring, "expiring", "", "only devices whose certificate ends within that `time`, such as 30d")
	return c
}

// eachDevice calls visit with each device that the selector picks.
func eachDevice(c *cobra.Command, client *admin.Client, selector string, visit func(admin.Device) error) error {
	for after := ""; ; {
		page, err := client.Select(c.Context(), selector, after, 1000)
		if err != nil {
			return err
		}
		for _, d := range page.Devices {
			if err := visit(d); err != nil {
				return err
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

func writeDevices(w io.Writer, devices []admin.Device, selector string) error {
	if len(devices) == 0 {
		hint := "no devices are registered: import a station's manifest with `hub manifest import FILE`"
		if selector != "" {
			hint = "no device is picked by " + selector
		}
		_, err := fmt.Fprintln(w, hint)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tONLINE\tMODEL\tBATCH\tSTATION\tLAST SEEN\tCERTIFICATE UNTIL")
	for _, d := range devices {
		online, until := "-", "-"
		if d.Session != nil {
			online = d.Session.Address
		}
		if n := len(d.Certificates); n > 0 {
			until = d.Certificates[n-1].NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.State, online, dash(d.Model), dash(d.Batch), dash(d.Station), when(d.LastSeen), until)
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

// countOf returns a number of things in words: 1 device, 2 devices.
func countOf(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func newDeviceShow(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "show ID",
		Short: "Show a device: state and how it came to it, certificates, live session",
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
	row("state", "%s%s", d.State, because(d.Reason, d.Note))
	row("model", "%s", dash(d.Model))
	row("batch", "%s", dash(d.Batch))
	row("OU", "%s", dash(strings.Join(d.OU, ", ")))
	row("labels", "%s", pairs(d.Labels))
	if len(d.Metadata) > 0 {
		row("metadata", "%s", pairs(d.Metadata))
	}
	row("key in", "%s", dash(d.Protection))
	if d.EK != "" {
		row("TPM", "endorsement key %s", d.EK)
	}
	if d.Introduced() {
		row("station", "%s, in no manifest yet", d.Station)
	} else {
		row("station", "%s, manifest %d", dash(d.Station), d.Manifest)
	}
	row("registered", "%s", when(d.Created))
	row("first seen", "%s", when(d.FirstSeen))
	row("last seen", "%s", when(d.LastSeen))
	if d.Replaces != "" {
		row("replaces", "%s", d.Replaces)
	}
	if d.ReplacedBy != "" {
		row("replaced by", "%s", d.ReplacedBy)
	}
	if d.Permit != nil {
		row("may come back", "with a new certificate, by leave of %s on %s%s", operatorName(d.Permit.Actor), when(d.Permit.At), because(d.Permit.Note, ""))
	}
	if s := d.Session; s != nil {
		row("online", "from %s since %s, %s, resumed %v", s.Address, when(s.ConnectedAt), strings.Join([]string{s.TLS, s.Suite, s.Curve}, " "), s.Resumed)
	} else {
		row("online", "no")
	}
	writeHandshakes(row, d.Handshakes)
	for _, h := range d.History {
		receipt := ""
		if h.Receipt != "" {
			receipt = ", receipt " + h.Receipt
		}
		row("history", "%s  %s → %s by %s%s%s", when(h.At), dash(string(h.From)), h.To, dash(operatorName(h.Actor)), because(h.Reason, h.Note), receipt)
	}
	for _, c := range d.Certificates {
		row("certificate", "serial %s, %s to %s, %s", c.Serial, c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly), standing(c))
		row("", "SHA-256 %s", c.Fingerprint)
	}
	return t.Flush()
}

// standing says what a certificate is worth now.
func standing(c registry.Certificate) string {
	switch c.Standing {
	case registry.StandingRevoked:
		return "revoked " + when(c.Revoked) + because(c.Reason, "")
	case registry.StandingSuperseded:
		return "superseded " + when(c.Superseded)
	case registry.StandingUntrusted:
		return "not accepted: its issuing CA is not trusted"
	case registry.StandingExpired:
		return "expired"
	case registry.StandingNotYetValid:
		return "not valid yet"
	}
	return string(c.Standing)
}

// because returns why in brackets, nothing if nobody said.
func because(reason, note string) string {
	why := strings.Trim(reason+": "+note, ": ")
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// operatorName returns the ID of a SPIFFE ID, or the name as it is.
func operatorName(actor string) string {
	if id, err := identity.Parse(actor); err == nil {
		return id.ID
	}
	return actor
}

func pairs(m map[string]string) string {
	var all []string
	for _, key := range sortedKeys(m) {
		all = append(all, key+"="+m[key])
	}
	return dash(strings.Join(all, ", "))
}
