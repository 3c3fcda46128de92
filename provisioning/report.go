package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/report"
	"github.com/fleethub/fleethub/provisioning/station"
)

func reportCommand(output *command.Output) *cobra.Command {
	var dir, format, out, until string
	last := command.Duration(8 * time.Hour)
	c := &cobra.Command{
		Use:   "report --dir S [--last 8h] [--until TIME] [--format csv|html] [--out FILE]",
		Short: "Report a shift: what was issued and, while 'serve' runs, what it refused",
		Long: `Report a shift: what was issued and, while 'serve' runs, what it refused. The devices
are the ledger's; refusals are in the running server's memory only, so take the report
before you stop it. With --output json, the same as JSON.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				to := time.Now()
				if until != "" {
					var err error
					if to, err = time.ParseInLocation("2006-01-02 15:04", until, time.Local); err != nil {
						return command.Errorf(command.Usage, "%.40q is no time: give it as \"2006-01-02 15:04\"", until)
					}
				}
				r, err := report.Collect(s.Ledger(), report.Shift{Station: s.Name(), From: to.Add(-time.Duration(last)), To: to})
				if err != nil {
					return err
				}
				if h, ok := hosted(c.Context()); ok {
					r.AddRefusals(h.screen.Refusals())
				}
				write, err := reportWriter(r, format, out)
				if err != nil {
					return err
				}
				if out == "" {
					return output.Print(c.OutOrStdout(), r, write)
				}
				return writeReport(c, output, r, write, local(c, out))
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().Var(&last, "last", "how long the shift was")
	c.Flags().StringVar(&until, "until", "", "when it ended, `\"2006-01-02 15:04\"` (default: now)")
	c.Flags().StringVar(&format, "format", "", "csv or html (default: what FILE's name says, or csv)")
	c.Flags().StringVar(&out, "out", "", "the `file` to write, which is replaced (default: standard output)")
	return c
}

func reportWriter(r report.Report, format, out string) (func(io.Writer) error, error) {
	if format == "" {
		format = strings.TrimPrefix(strings.ToLower(filepath.Ext(out)), ".")
	}
	switch format {
	case "html", "htm":
		return r.WriteHTML, nil
	case "csv", "":
		return r.WriteCSV, nil
	}
	return nil, command.Errorf(command.Usage, "%.20q is no format of reports: there are csv and html", format)
}

func writeReport(c *cobra.Command, output *command.Output, r report.Report, write func(io.Writer) error, path string) error {
	var text bytes.Buffer
	if err := write(&text); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return command.Errorf(command.Usage, "%s is not a regular file: choose another --out", path)
	}
	if err := pemfile.Write(path, text.Bytes(), 0o644); err != nil {
		return err
	}
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s and %s, from %s to %s, in %s\n", counted(len(r.Devices), "device"), counted(len(r.Refusals), "refusal"), r.From.Format(time.DateTime), r.To.Format(time.DateTime), path)
		return err
	})
}
