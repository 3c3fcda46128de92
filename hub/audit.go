package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/registry"
)

func newAudit(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "audit", Short: "Who did what to which device or issuer, when, from where: list, verify, export"}
	group.AddCommand(newAuditList(output), newAuditVerify(output), newAuditExport(output))
	return group
}

func newAuditList(output *command.Output) *cobra.Command {
	var r remote
	var q registry.AuditQuery
	var outcome, since, until string
	var last int
	c := &cobra.Command{
		Use:   "list",
		Short: "List the audit log, oldest first: all, or what the flags pick",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if q.Since, err = moment("since", since); err != nil {
				return err
			}
			if q.Until, err = moment("until", until); err != nil {
				return err
			}
			if last < 0 {
				return command.Errorf(command.Usage, "--last: %d is less than 0", last)
			}
			q.Outcome = registry.Outcome(outcome)
			return r.do(func(client *admin.Client) error {
				records, err := auditRecords(c, client, q, last)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), records, func(w io.Writer) error { return writeAudit(w, records) })
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&q.Device, "device", "", "`ID` of a device")
	c.Flags().StringVar(&q.Actor, "actor", "", "`ID` of an operator, or hub")
	c.Flags().StringVar(&q.Action, "action", "", "an `action` such as device.revoke, or device. for all that begin so")
	c.Flags().StringVar(&q.Subject, "subject", "", "a `subject` that is no device, such as \"issuer bench-1\"")
	c.Flags().StringVar(&q.Receipt, "receipt", "", "`ID` of a receipt: what was done under it")
	c.Flags().StringVar(&outcome, "outcome", "", "done, refused or requested")
	c.Flags().StringVar(&since, "since", "", "not before that `time`: 24h or 7d ago, or 2026-03-01[T08:00:00Z]")
	c.Flags().StringVar(&until, "until", "", "before that `time`, likewise")
	c.Flags().IntVar(&last, "last", 0, "only the last `N` of them")
	return c
}

// auditRecords returns what a query picks, the last so many of it if last isn't 0.
func auditRecords(c *cobra.Command, client *admin.Client, q registry.AuditQuery, last int) ([]registry.AuditRecord, error) {
	records := []registry.AuditRecord{}
	q.Limit = 1000
	for {
		page, err := client.AuditWhere(c.Context(), q)
		if err != nil {
			return nil, err
		}
		records = append(records, page.Records...)
		if last > 0 && len(records) > last {
			records = records[len(records)-last:]
		}
		if q.After = page.Next; q.After == 0 {
			return records, nil
		}
	}
}

// moment reads a time flag: a duration ago, a date or a time. Empty is zero.
func moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var ago command.Duration
	if ago.Set(text) == nil {
		return time.Now().Add(-time.Duration(ago)), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, command.Errorf(command.Usage, "--%s: %q is neither a duration such as 24h or 7d nor a time such as 2026-03-01 or 2026-03-01T08:00:00Z", flag, text)
}

func writeAudit(w io.Writer, records []registry.AuditRecord) error {
	if len(records) == 0 {
		_, err := fmt.Fprintln(w, "no such records")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NO\tTIME\tACTOR\tFROM\tACTION\tSUBJECT\tOUTCOME\tCHANGE\tREASON")
	for _, r := range records {
		subject := r.Device
		if subject == "" {
			subject = r.Subject
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s→%s\t%s\n", r.Number, when(r.Time), r.Actor, dash(r.Address), r.Action,
			dash(subject), r.Outcome, dash(string(r.Before)), dash(string(r.After)), dash(strings.Trim(r.Reason+": "+r.Note, ": ")))
	}
	return t.Flush()
}

// auditVerified is what hub audit verify prints.
type auditVerified struct {
	Valid    bool               `json:"valid"`
	Head     registry.AuditHead `json:"head"`
	Receipts int                `json:"receipts,omitempty"`
}

func newAuditVerify(output *command.Output) *cobra.Command {
	var r remote
	var expect string
	c := &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Verify that no record of the audit log was changed, removed or moved",
		Long: `Follows the hashes that link every record of the audit log to the one before it: on the
hub, where they are held against the receipts as well, or in an exported FILE, without a
hub. Who can write the hub's store could make another log that fits itself: keep the
head that this prints elsewhere and give it to a later run with --expect.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			want, err := parseHead(expect)
			if err != nil {
				return err
			}
			v := auditVerified{Valid: true}
			if len(args) == 1 {
				v.Head, err = verifyExport(args[0], want)
			} else {
				err = r.do(func(client *admin.Client) error {
					found, err := client.VerifyAudit(c.Context())
					if err != nil {
						return err
					}
					v.Head, v.Receipts = found.Head, found.Receipts
					if want.Number == 0 || found.Head == want {
						return nil
					}
					end, err := client.ExportAudit(c.Context(), 0, io.Discard, want)
					if err == nil && end.Number < want.Number {
						err = fmt.Errorf("%w: it ends at record %d, before the one expected", registry.ErrTampered, end.Number)
					}
					return err
				})
			}
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), v, func(w io.Writer) error {
				noted := ""
				if v.Receipts > 0 {
					noted = fmt.Sprintf(", as %s noted it", countOf(v.Receipts, "receipt"))
				}
				_, err := fmt.Fprintf(w, "good: %s, none changed, removed or moved%s\nhead  %d:%s\n", countOf(int(v.Head.Number), "record"), noted, v.Head.Number, v.Head.Hash)
				return err
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&expect, "expect", "", "a `head` that was kept, NUMBER:HASH: the log must have it")
	return c
}

// parseHead reads NUMBER:HASH. Empty is zero.
func parseHead(text string) (head registry.AuditHead, err error) {
	if text == "" {
		return head, nil
	}
	number, hash, _ := strings.Cut(text, ":")
	if head.Number, err = strconv.ParseUint(number, 10, 64); err == nil {
		err = head.Hash.UnmarshalText([]byte(hash))
	}
	if err != nil || head.Number == 0 {
		return head, command.Errorf(command.Usage, "--expect: %q is not NUMBER:HASH, as hub audit verify prints it", text)
	}
	return head, nil
}

// verifyExport verifies an exported log, and that it has a head that was kept.
func verifyExport(path string, want registry.AuditHead) (registry.AuditHead, error) {
	f, err := os.Open(path)
	if err != nil {
		return registry.AuditHead{}, err
	}
	defer f.Close()
	end, err := admin.ReadAuditExport(f, want)
	if err == nil && end.Number < want.Number {
		err = fmt.Errorf("%w: it ends at record %d, before the one expected", registry.ErrTampered, end.Number)
	}
	if err != nil {
		return end, fmt.Errorf("%s: %w", path, err)
	}
	return end, nil
}

func newAuditExport(output *command.Output) *cobra.Command {
	var r remote
	var out string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the audit log with its hashes to a file, for hub audit verify FILE",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			defer func() {
				if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
					os.Remove(out) // half an export passes for a whole one
				}
			}()
			var end registry.AuditHead
			if err := r.do(func(client *admin.Client) (err error) {
				end, err = client.ExportAudit(c.Context(), 0, f, registry.AuditHead{})
				return err
			}); err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), map[string]any{"head": end, "out": out}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s in %s\nhead  %d:%s\n", countOf(int(end.Number), "record"), out, end.Number, end.Hash)
				return err
			})
		},
	}
	remoteFlags(c, &r)
	outFlag(c, &out, "new `file` for the log")
	return c
}
