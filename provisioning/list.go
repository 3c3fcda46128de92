package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

// listing is what the list command prints as JSON.
type listing struct {
	Station    string          `json:"station"`
	Devices    []ledger.Record `json:"devices"`
	Unfinished []ledger.Order  `json:"unfinished_batches"`
	Unexported int             `json:"unexported"` // issued devices that no manifest names yet
}

func listCommand(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list --dir S",
		Short: "Show what the station issued",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				l, err := list(s)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), l, func(w io.Writer) error { return printList(w, l) })
			})
		},
	}
	dirFlag(c, &dir)
	return c
}

func list(s *station.Station) (listing, error) {
	l := listing{Station: s.Name(), Devices: []ledger.Record{}, Unfinished: []ledger.Order{}}
	err := s.Ledger().Devices(func(r ledger.Record) error {
		l.Devices = append(l.Devices, r)
		return nil
	})
	if err != nil {
		return l, err
	}
	open, err := s.UnfinishedBatches()
	if err != nil {
		return l, err
	}
	l.Unfinished = append(l.Unfinished, open...)
	l.Unexported, err = s.Ledger().Unexported()
	return l, err
}

func printList(w io.Writer, l listing) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSTATE\tSERIAL\tMODEL\tMANIFEST\tFOLDER")
	for _, r := range l.Devices {
		manifest := "-"
		if r.Manifest > 0 {
			manifest = fmt.Sprint(r.Manifest)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.State, r.Serial, r.Model, manifest, r.Out)
	}
	fmt.Fprintf(t, "%s, %s in no manifest yet\n", counted(len(l.Devices), "device"), counted(l.Unexported, "certificate"))
	for _, b := range l.Unfinished {
		fmt.Fprintf(t, "unfinished: the batch %s, %d of %d complete\n", b, b.Delivered, b.Count)
	}
	return t.Flush()
}

// counted says how many there are of something whose plural ends in s.
func counted(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
