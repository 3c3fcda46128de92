package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
)

func newCRL(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "crl", Short: "Certificate revocation lists: those the hub signs, and those of foreign issuers"}
	group.AddCommand(newCRLList(output), newCRLExport(output), newCRLImport(output))
	return group
}

func newCRLList(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List revocation lists, who signs them and until when they are good",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				lists, err := client.Lists(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), lists, func(w io.Writer) error { return writeLists(w, lists) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeLists(w io.Writer, lists []admin.CRL) error {
	if len(lists) == 0 {
		_, err := fmt.Fprintln(w, "there are no revocation lists: the hub signs one of its issuing CA while that key is in ca/; take in a station's with `hub crl import FILE`")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ISSUER\tSIGNED BY\tNUMBER\tENTRIES\tNEXT UPDATE\tPROBLEM")
	for _, l := range lists {
		by := "the issuer, elsewhere"
		if l.Own {
			by = "this hub"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", l.Issuer, by, l.Number, l.Entries, when(l.NextUpdate), dash(l.Problem))
	}
	return t.Flush()
}

func newCRLExport(output *command.Output) *cobra.Command {
	var r remote
	var out string
	c := &cobra.Command{
		Use:   "export ISSUER",
		Short: "Write the revocation list of the hub's issuing CA to a file, in PEM",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				der, err := client.List(c.Context(), args[0])
				if err != nil {
					return err
				}
				if err := pemfile.Write(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o644); err != nil {
					return err
				}
				report := map[string]string{"issuer": args[0], "out": out}
				return output.Print(c.OutOrStdout(), report, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "wrote the revocation list of %s to %s\n", args[0], out)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	outFlag(c, &out, "`file` for the list; replaced if it is there")
	return c
}

// maxList is how large a revocation list may be: a million entries take some 40 MB.
const maxList = 64 << 20

func newCRLImport(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Take in a revocation list that an issuer elsewhere, such as a station, has signed",
		Long: `Takes in the revocation list, DER or PEM, of an issuing CA that the hub trusts and
whose key it doesn't hold. It must be signed by that CA, have a greater number than the
list before, and not be out of date; anything else is refused, and the list before stays
in force. Devices whose certificate in use is on it are revoked (on hold: suspended) at
once and for good: a later list without them doesn't bring them back.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := readBounded(args[0], maxList)
			if err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				receipt, err := client.ImportList(c.Context(), data)
				if err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
				return output.Print(c.OutOrStdout(), receipt, func(w io.Writer) error { return writeListReceipt(w, receipt) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writeListReceipt(w io.Writer, r admin.CRLReceipt) error {
	_, err := fmt.Fprintf(w, "in force   list %s of %s, %d entries, next update %s\ncut off    %s %s\n",
		r.Number, r.Issuer, r.Entries, when(r.NextUpdate), countOf(len(r.Cut), "device"), strings.Join(r.Cut[:min(len(r.Cut), 20)], " "))
	if err == nil && r.Lifted > 0 {
		_, err = fmt.Fprintf(w, "lifted     %d entries of the list before; devices they cut off stay so, see `hub device resume` and `reinstate`\n", r.Lifted)
	}
	return err
}
