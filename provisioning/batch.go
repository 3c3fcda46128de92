package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func batchCommand(output *command.Output) *cobra.Command {
	var dir string
	var o station.BatchOrder
	c := &cobra.Command{
		Use:   "batch --dir S --prefix sim- --count N --out DIR",
		Short: "Make many devices, a folder each: DIR/sim-00001, DIR/sim-00002, ...",
		Long: `Make many devices, a folder each: DIR/sim-00001, DIR/sim-00002, ...

The counter goes on from the highest this station knows of the prefix. The same
prefix, count and DIR are the same batch: if it was interrupted, the repeated
command finishes it; if it is complete, the command says so and makes nothing.
For as many devices again, give another DIR or --again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o.Out = local(c, o.Out)
				report, finish := progress(c.ErrOrStderr(), o.Count)
				result, err := s.Batch(c.Context(), o, report)
				finish()
				if err != nil {
					return err
				}
				if err := output.Print(c.OutOrStdout(), result, func(w io.Writer) error { return printBatch(w, result) }); err != nil {
					return err
				}
				if n := len(result.Lost); n > 0 {
					return fmt.Errorf("an interrupted run issued %s whose keys are gone from %s (%s first): revoke what it issued so at the hub, and make others with --again", counted(n, "device"), result.Out, result.Lost[0])
				}
				return nil
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.Prefix, "prefix", "", "what the IDs begin with, as in sim-")
	c.Flags().IntVar(&o.Count, "count", 0, "`number` of devices")
	c.Flags().StringVar(&o.Out, "out", "", "the `folder` for the devices' folders")
	c.Flags().BoolVar(&o.Again, "again", false, "make further devices though the same batch is complete")
	require(c, "prefix", "count", "out")
	attributeFlags(c, &o.OU, &o.Model)
	return c
}

func printBatch(w io.Writer, r station.BatchResult) error {
	devices := fmt.Sprintf("%s, %s to %s, in %s", counted(r.Count, "device"), r.First, r.Last, r.Out)
	var err error
	switch {
	case r.Before == r.Count:
		_, err = fmt.Fprintf(w, "complete already: %s\nfor as many again, give another --out or --again\n", devices)
	case r.Resumed:
		_, err = fmt.Fprintf(w, "interrupted batch finished: %s; %d of them issued now\n", devices, r.Issued)
	default:
		_, err = fmt.Fprintf(w, "issued %s\n", devices)
	}
	for _, b := range r.Others {
		if err == nil {
			_, err = fmt.Fprintf(w, "unfinished still: the batch %s; repeat its command\n", b)
		}
	}
	return err
}

// progress returns a function that shows how far the batch is and one that ends the
// display. On anything but a terminal both do nothing.
func progress(w io.Writer, total int) (report func(int), finish func()) {
	f, ok := w.(*os.File)
	if !ok || !cwriter.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	bars := mpb.New(mpb.WithOutput(f))
	bar := bars.AddBar(int64(total),
		mpb.PrependDecorators(decor.CountersNoUnit("%d/%d devices ")),
		mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)),
	)
	return func(n int) { bar.SetCurrent(int64(n)) }, func() {
		bar.Abort(false) // does nothing to a bar that is full
		bars.Wait()
	}
}
