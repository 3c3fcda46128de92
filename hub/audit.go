package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/registry"
)

func newAudit(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "audit", Short: "Who did what to which device or issuer, when, from where"}
	var r remote
	list := &cobra.Command{
		Use:   "list",
		Short: "List the audit log, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				records := []registry.AuditRecord{}
				for after := uint64(0); ; {
					page, err := client.Audit(c.Context(), after, 1000)
					if err != nil {
						return err
					}
					records = append(records, page.Records...)
					if after = page.Next; after == 0 {
						break
					}
				}
				return output.Print(c.OutOrStdout(), records, func(w io.Writer) error { return writeAudit(w, records) })
			})
		},
	}
	remoteFlags(list, &r)
	group.AddCommand(list)
	return group
}

func writeAudit(w io.Writer, records []registry.AuditRecord) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NO\tTIME\tACTOR\tFROM\tACTION\tSUBJECT\tOUTCOME\tCHANGE\tREASON")
	for _, r := range records {
		subject := r.Device
		if subject == "" {
			subject = r.Subject
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s→%s\t%s\n", r.Number, when(r.Time), r.Actor, dash(r.Address), r.Action,
			dash(subject), r.Outcome, dash(string(r.Before)), dash(string(r.After)), dash(r.Reason))
	}
	return t.Flush()
}
