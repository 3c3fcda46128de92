package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/receipt"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
)

func newReceipt(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "receipt", Short: "Signed proofs of what was cut off: list, show, save, verify"}
	group.AddCommand(newReceiptList(output), newReceiptShow(output), newReceiptSave(output), newReceiptVerify(output))
	return group
}

func newReceiptList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List receipts, oldest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				receipts := []fleet.Receipt{}
				for after := ""; ; {
					page, err := client.Receipts(c.Context(), after, 1000)
					if err != nil {
						return err
					}
					receipts = append(receipts, page.Receipts...)
					if after = page.Next; after == "" {
						break
					}
				}
				return output.Print(c.OutOrStdout(), receipts, func(w io.Writer) error {
					t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
					fmt.Fprintln(t, "RECEIPT\tVERB\tDEVICES\tOF\tREASON\tSESSIONS CLOSED\tBY\tAPPROVED BY")
					for _, r := range receipts {
						fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%d\t%s\t%s\n", r.ReceiptID, r.Verb, r.Count, dash(r.ID+r.Select), dash(r.Reason), r.SessionsClosed,
							operatorName(r.Actor), dash(operatorName(r.Approver)))
					}
					return t.Flush()
				})
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func newReceiptShow(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "show RECEIPT",
		Short: "Show a receipt",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				found, err := client.Receipt(c.Context(), args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), found, func(w io.Writer) error { return writeReceipt(w, found) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func newReceiptSave(output *command.Output) *cobra.Command {
	var r remote
	var out string
	c := &cobra.Command{
		Use:   "save RECEIPT",
		Short: "Write a receipt to a file, signed, for hub receipt verify",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				if err := writeSigned(c, client, args[0], out); err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), map[string]string{"receipt_id": args[0], "out": out}, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "receipt %s in %s\n", args[0], out)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	outFlag(c, &out, "new `file` for the signed receipt")
	return c
}

// verified is what hub receipt verify prints.
type verified struct {
	Valid       bool          `json:"valid"`
	Signer      string        `json:"signer"`
	Fingerprint string        `json:"signer_sha256"`
	Receipt     fleet.Receipt `json:"receipt"`
}

func newReceiptVerify(output *command.Output) *cobra.Command {
	var dir, bundle string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a saved receipt against the fleet's trust bundle, offline",
		Long: `Verifies that a hub of this fleet signed the receipt and that it was not changed since.
No hub is asked: the trust bundle (ca.crt, as every device and operator has it) is enough.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if bundle == "" {
				bundle = filepath.Join(dir, "ca.crt")
			}
			roots, err := pemfile.ReadCertificates(bundle)
			if errors.Is(err, fs.ErrNotExist) {
				return command.Errorf(command.NotFound, "there is no trust bundle %s: name it with --ca", bundle)
			}
			if err != nil {
				return err
			}
			data, err := readBounded(args[0], receipt.MaxSize)
			if err != nil {
				return err
			}
			payload, signer, err := receipt.Open(data, roots)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			v := verified{Valid: true, Signer: signer.Subject.String(), Fingerprint: identity.Fingerprint(signer)}
			if err := json.Unmarshal(payload, &v.Receipt); err != nil {
				return fmt.Errorf("%s: the signature is good, but its contents are malformed: %w", args[0], err)
			}
			return output.Print(c.OutOrStdout(), v, func(w io.Writer) error {
				fmt.Fprintf(w, "good: signed by %s on %s, and unchanged since\n", v.Signer, stamp(v.Receipt.SignedAt))
				return writeReceipt(w, v.Receipt)
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&bundle, "ca", "", "the fleet's trust bundle, a PEM `file` (default DIR/ca.crt)")
	return c
}

// readBounded reads a file of at most so many bytes.
func readBounded(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.Errorf(command.NotFound, "there is no file %s", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("%s is larger than %d bytes, which none is", path, most)
	}
	return data, err
}

// receiptFlag adds --receipt. The file is looked at before anything is done: an order that
// is carried out and can't be saved passes for one that failed.
func receiptFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "receipt", "", "new `file` for the signed receipt")
	c.PreRunE = func(*cobra.Command, []string) error {
		if *path == "" {
			return nil
		}
		if _, err := os.Lstat(*path); err == nil {
			return command.Errorf(command.Failure, "--receipt: %s is there already, and is never overwritten: nothing was done", *path)
		}
		if folder, err := os.Stat(filepath.Dir(*path)); err != nil || !folder.IsDir() {
			return command.Errorf(command.NotFound, "--receipt: there is no folder %s: nothing was done", filepath.Dir(*path))
		}
		return nil
	}
}

// finishOrder saves the receipt of an order where it is wanted, and prints it.
func finishOrder(c *cobra.Command, output *command.Output, client *admin.Client, r fleet.Receipt, o confirmation) error {
	if err := saveReceipt(c, client, r, o.receipt); err != nil {
		return err
	}
	return output.Print(c.OutOrStdout(), r, func(w io.Writer) error { return writeReceipt(w, r) })
}

// saveReceipt writes the signed form of a receipt to a file, if one is named.
func saveReceipt(c *cobra.Command, client *admin.Client, r fleet.Receipt, path string) error {
	if path == "" {
		return nil
	}
	id := r.ReceiptID
	if r.Already {
		id = r.FirstReceipt
	}
	if id == "" {
		return fmt.Errorf("it is done, but there is no receipt to save: it was done before receipts were kept")
	}
	if err := writeSigned(c, client, id, path); err != nil {
		return command.Errorf(command.Failure, "it is done, but its receipt %s is not in %s: %w; try again with `hub receipt save %[1]s --out FILE`", id, path, err)
	}
	return nil
}

func writeSigned(c *cobra.Command, client *admin.Client, id, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already, and is never overwritten", path)
	}
	data, err := client.SignedReceipt(c.Context(), id)
	if err != nil {
		return err
	}
	return pemfile.Write(path, data, 0o644)
}

// writeReceipt prints the proof of an order.
func writeReceipt(w io.Writer, r fleet.Receipt) error {
	already := ""
	if r.Already {
		already = " already"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if r.ID != "" {
		fmt.Fprintf(t, "device %s is%s %s%s\n", r.ID, already, r.State, because(r.Reason, r.Note))
	} else {
		fmt.Fprintf(t, "%s %s%s\n", countOf(r.Count, "device"), r.Verb.Past(), because(r.Reason, r.Note))
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	if r.Select != "" {
		row("picked by", "%s", r.Select)
	}
	if r.Interrupted {
		row("interrupted", "the hub stopped meanwhile and finished it at its next start")
	}
	row("requested", "%s", stamp(r.RequestedAt))
	row("durable", "%s", stamp(r.DurableAt))
	row("effective", "%s", stamp(r.EffectiveAt))
	if r.Verb.Cuts() {
		writeSessions(row, r)
	}
	for _, s := range r.Serials {
		row("certificate", "serial %s revoked", s)
	}
	if r.ID == "" && r.Certificates > 0 {
		row("certificates", "%d revoked", r.Certificates)
	}
	by := operatorName(r.Actor)
	if r.Approver != "" {
		by += ", approved by " + operatorName(r.Approver)
	}
	row("by", "%s", by)
	switch {
	case r.Problem != "":
		row("receipt", "not kept, or not signed: %s", r.Problem)
	case r.Already:
		row("receipt", "%s", dash(r.FirstReceipt))
	default:
		row("receipt", "%s", r.ReceiptID)
	}
	return t.Flush()
}

// writeSessions prints what became of the devices' sessions.
func writeSessions(row func(name, format string, args ...any), r fleet.Receipt) {
	if !r.LastPacketAt.IsZero() {
		row("last packet", "%s", stamp(r.LastPacketAt))
	}
	switch {
	case r.SessionsClosed > 0:
		row("sessions closed", "%d, the last at %s", r.SessionsClosed, stamp(r.LastSessionClosedAt))
	case r.Interrupted:
		row("sessions closed", "all, as the hub stopped")
	case r.ID != "":
		row("sessions closed", "0, it was not connected")
	default:
		row("sessions closed", "0, none was connected")
	}
	if r.SessionsOpen > 0 {
		row("still open", "%d were not seen closed in time", r.SessionsOpen)
	}
	if q := r.TimeToRevoke; q != nil {
		row("time to revoke", "p50 %.1f ms, p99 %.1f ms, at most %.1f ms", q.P50, q.P99, q.Max)
	}
	var nodes []string
	for _, n := range r.Nodes {
		nodes = append(nodes, n.Node)
	}
	if len(nodes) > 0 {
		row("hubs", "%s", strings.Join(nodes, ", "))
	}
	if len(r.NodesMissing) > 0 {
		row("not heard of", "%s", strings.Join(r.NodesMissing, ", "))
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
