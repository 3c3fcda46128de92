package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newDeviceLabel(output *command.Output) *cobra.Command {
	var r remote
	var p picking
	var labels, metadata []string
	var model, batch string
	var request admin.LabelRequest
	c := &cobra.Command{
		Use:   "label [ID] --set KEY=VALUE",
		Short: "Set labels, model, batch or metadata of a device, or of those that a selector picks (with --confirm)",
		Long: `Sets what a device is known by. Policy and selectors see labels; metadata is free text
for people. An empty value (--set site=) removes one.

` + selectHelp,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, selector, err := p.target(args)
			if err != nil {
				return err
			}
			if id != "" && (request.Confirm || request.Count != 0) {
				return command.Errorf(command.Usage, "--confirm and --count are for selectors")
			}
			request.Select = selector
			if request.Labels, err = assignments("set", labels); err != nil {
				return err
			}
			if request.Metadata, err = assignments("meta", metadata); err != nil {
				return err
			}
			if c.Flags().Changed("model") {
				request.Model = &model
			}
			if c.Flags().Changed("new-batch") {
				request.Batch = &batch
			}
			return r.do(func(client *admin.Client) error {
				answer, err := client.Label(c.Context(), id, request)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), answer, func(w io.Writer) error { return writeLabelled(w, answer) })
			})
		},
	}
	remoteFlags(c, &r)
	p.flags(c)
	c.Flags().StringSliceVar(&labels, "set", nil, "`KEY=VALUE` of a label; may repeat")
	c.Flags().StringArrayVar(&metadata, "meta", nil, "`KEY=TEXT` of metadata; may repeat")
	c.Flags().StringVar(&model, "model", "", "the `model`")
	c.Flags().StringVar(&batch, "new-batch", "", "the `batch` that they are counted to from now on")
	c.Flags().StringVar(&request.Note, "note", "", "why, in a few `words`, for the record")
	c.Flags().BoolVar(&request.Confirm, "confirm", false, "with a selector: do it; without, only show for whom it would be")
	c.Flags().IntVar(&request.Count, "count", 0, "how many devices you mean; required above 100, refused if there are others by then")
	return c
}

// assignments reads KEY=VALUE.
func assignments(flag string, texts []string) (map[string]string, error) {
	var m map[string]string
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, command.Errorf(command.Usage, "--%s: %q is not KEY=VALUE", flag, text)
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = value
	}
	return m, nil
}

func writeLabelled(w io.Writer, a admin.LabelAnswer) error {
	if !a.DryRun {
		_, err := fmt.Fprintf(w, "%s changed\n", countOf(a.Changed, "device"))
		return err
	}
	if a.Changed == 0 {
		_, err := fmt.Fprintln(w, "dry run: no device is picked")
		return err
	}
	count := ""
	if a.Changed > 100 {
		count = fmt.Sprintf(" --count %d", a.Changed)
	}
	_, err := fmt.Fprintf(w, "dry run: it is for %s, such as %s\nnothing was changed; add --confirm%s to do it\n", countOf(a.Changed, "device"), strings.Join(a.Sample, ", "), count)
	return err
}

func newDeviceExport(output *command.Output) *cobra.Command {
	var r remote
	var p picking
	var format, out string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write devices to a file or standard output: all, or those that a selector picks",
		Long:  "Writes one line a device, in order of ID, as JSON or CSV.\n\n" + selectHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			selector, err := p.text()
			if err != nil {
				return err
			}
			if format != "jsonl" && format != "csv" {
				return command.Errorf(command.Usage, "--format: %q is neither jsonl nor csv", format)
			}
			w := c.OutOrStdout()
			if out != "" {
				f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return err
				}
				defer func() {
					if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
						os.Remove(out) // half an export passes for a whole one
					}
				}()
				w = f
			}
			count := 0
			err = r.do(func(client *admin.Client) (err error) {
				count, err = exportDevices(c, client, selector, format, w)
				return err
			})
			if err != nil || out == "" {
				return err
			}
			return output.Print(c.OutOrStdout(), map[string]any{"devices": count, "out": out}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s in %s\n", countOf(count, "device"), out)
				return err
			})
		},
	}
	remoteFlags(c, &r)
	p.flags(c)
	c.Flags().StringVar(&format, "format", "jsonl", "jsonl or csv")
	c.Flags().StringVar(&out, "out", "", "new `file` (default: standard output)")
	return c
}

var exportColumns = []string{"id", "state", "reason", "model", "batch", "station", "protection", "labels", "serial", "not_after", "registered", "first_seen", "last_seen"}

func exportDevices(c *cobra.Command, client *admin.Client, selector, format string, w io.Writer) (count int, err error) {
	buffered := bufio.NewWriter(w)
	encoder, table := json.NewEncoder(buffered), csv.NewWriter(buffered)
	if format == "csv" {
		if err := table.Write(exportColumns); err != nil {
			return 0, err
		}
	}
	err = eachDevice(c, client, selector, func(d admin.Device) error {
		count++
		if format == "jsonl" {
			return encoder.Encode(d)
		}
		serial, until := "", time.Time{}
		if n := len(d.Certificates); n > 0 {
			serial, until = d.Certificates[n-1].Serial, d.Certificates[n-1].NotAfter
		}
		labels := strings.ReplaceAll(strings.TrimPrefix(pairs(d.Labels), "-"), ", ", " ")
		return table.Write([]string{d.ID, string(d.State), d.Reason, d.Model, d.Batch, d.Station, d.Protection, labels, serial,
			csvTime(until), csvTime(d.Created), csvTime(d.FirstSeen), csvTime(d.LastSeen)})
	})
	table.Flush()
	return count, errors.Join(err, table.Error(), buffered.Flush())
}

func csvTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
