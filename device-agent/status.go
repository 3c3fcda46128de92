package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/device-agent/agent"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/renewal"
	"github.com/spf13/cobra"
)

func newStatus(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "status --dir DIR",
		Short: "Print who this device is and how its connection is doing",
		Long: `Print the device's identity and certificate, whether an agent is running, and
what it last said about its connection. The exit code is 0 whether or not an
agent is running; scripts read "running" from --output json.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			now := time.Now()
			report, err := agent.ReadReport(dir, now)
			if err != nil {
				return credentialError(err)
			}
			return output.Print(c.OutOrStdout(), report, func(w io.Writer) error {
				return writeReport(w, report, now)
			})
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "credential `folder` of the device")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(fmt.Sprintf("flag dir: %v", err)) // it isn't defined above
	}
	return c
}

func writeReport(w io.Writer, r agent.Report, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // Flush returns the error
	}
	row("device", "%s (%s)", r.Device, r.Identity)
	row("fingerprint", "%s", r.Fingerprint)
	row("certificate", "issued by %s, valid %s to %s", r.Issuer, stamp(r.NotBefore), stamp(r.NotAfter))
	if r.Problem != "" {
		row("problem", "%s", r.Problem)
	}
	switch {
	case r.Running && r.Last != nil:
		row("agent", "running since %s (process %d)", stamp(r.Last.Started), r.Last.PID)
	case r.Running:
		row("agent", "running; it has written no status yet")
	case r.Last != nil:
		row("agent", "NOT RUNNING; what follows is as of %s", stamp(r.Last.Written))
	default:
		row("agent", "NOT RUNNING; none has run with this folder yet")
	}
	if r.Unreadable != "" {
		row("problem", "%s", r.Unreadable)
	}
	if r.Last != nil {
		writeLast(row, *r.Last, now)
	}
	return table.Flush()
}

func writeLast(row func(name, format string, args ...any), s agent.Snapshot, now time.Time) {
	l := s.Link
	row("hub", "%s", l.Hub)
	switch l.State {
	case link.StateWaiting:
		row("connection", "none since %s; next attempt at %s", stamp(l.Since), stamp(l.NextAttempt))
	default:
		row("connection", "%s since %s", l.State, stamp(l.Since))
	}
	if h := l.Handshake; h != nil {
		row("last handshake", "%s, %s, %s", strings.Join(strings.Fields(h.Protocol+" "+h.Suite+" "+h.Curve), " "), kind(*h), octets(h.Bytes))
	}
	row("handshakes", "%d full, %d resumed, of %d attempts; %s", l.Full, l.Resumed, l.Attempts, octets(l.Handshakes))
	row("traffic", "%s", octets(l.Traffic))
	row("TLS", "profile %s; a full handshake presents %s", cmp.Or(string(l.Profile), "unknown"), chain(l.Chain))
	if t := s.Tickets; t != nil {
		row("ticket", "%s, %s", ready(*t), protection(t.Protection))
		if t.Problem != "" {
			row("problem", "%s", t.Problem)
		}
	}
	if r := s.Renewal; r != nil {
		row("renewal", "%s", renewalState(*r))
	}
	row("readings", "%d acknowledged, %d not, %d given up without a connection", s.Readings.Acknowledged, s.Readings.Unacknowledged, s.Readings.NotConnected)
	if f := l.LastFailure; f != nil {
		row("last failure", "%s: %s", stamp(f.At), f.Error())
	}
	if f := l.LastRefusal; f != nil {
		row("last refusal", "%s: %s", stamp(f.At), f.Error())
	} else {
		row("last refusal", "none since the start")
	}
	row("as of", "%s (%s ago)", stamp(s.Written), now.Sub(s.Written).Round(time.Second))
}

func kind(h link.Handshake) string {
	if h.Resumed {
		return "resumed"
	}
	return "full"
}

func octets(t link.Traffic) string { return fmt.Sprintf("%d bytes up, %d down", t.Up, t.Down) }

func chain(mode link.ChainMode) string {
	switch mode {
	case link.ChainLeaf:
		return "the leaf certificate alone"
	case link.ChainFull:
		return "the whole certificate chain"
	}
	return "nothing so far"
}

func ready(t keystore.SessionStats) string {
	if !t.Ready {
		return "none for the next connect"
	}
	return "ready for the next connect since " + stamp(t.Since)
}

// renewalState says how the renewal of the certificate stands.
func renewalState(r renewal.Status) string {
	switch {
	case r.Staged:
		return "the next certificate is here; it is put in place once the hub has taken it"
	case r.Failure != "":
		return fmt.Sprintf("failed, next try at %s: %s", stamp(r.Retry), r.Failure)
	case r.Due.IsZero():
		return "not looked at yet"
	}
	return "due at " + stamp(r.Due)
}

func protection(p keystore.Protection) string {
	switch p {
	case keystore.ProtectionSealed:
		return "saved, sealed by the TPM"
	case keystore.ProtectionFile:
		return "saved in a file like the key's"
	}
	return "not saved: in memory only"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
