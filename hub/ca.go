package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/server"
)

func newCA(output *command.Output) *cobra.Command {
	group := &cobra.Command{
		Use:   "ca",
		Short: "The hub's own issuing CA: give it a successor, install what the root signed, protect its key",
		Long: `The hub's own issuing CA, in ca/ of its folder. A passphrase is asked for at the terminal,
or taken from the systemd credential operational.key.passphrase (hub.yaml: issuing_key).`,
	}
	group.AddCommand(newCAList(output), newCARotate(output), newCAInstall(output), newCAProtect(output, true), newCAProtect(output, false))
	return group
}

// caRow is one line of hub ca list.
type caRow struct {
	Name        string    `json:"name"`
	State       string    `json:"state"` // an authority.State, or requested
	Key         string    `json:"key"`   // where it is kept, "" if elsewhere
	Serial      string    `json:"serial,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Devices     *int      `json:"devices,omitempty"` // with a usable certificate by it; none if no hub could be asked
	Online      *int      `json:"online,omitempty"`  // connections that rest on it
	Dependents  []string  `json:"dependents"`        // services, operators and stations without a certificate by a later CA: role/ID
}

// caList is what hub ca list prints.
type caList struct {
	CAs         []caRow `json:"cas"`
	SendsIssuer bool    `json:"sends_issuer"` // in each full handshake
}

func newCAList(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the hub's issuing CAs, and how many devices still depend on each",
		Long: `Lists the hub's issuing CAs, present, former and requested, where their keys are, and who
still depends on each. Devices are counted by the hub, if it runs; services, operators and
stations are those that ca/issued.jsonl has with a certificate by that CA and none since.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireHub(dir); err != nil {
				return err
			}
			list, err := listCAs(c.Context(), dir)
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), list, func(w io.Writer) error { return list.write(w) })
		},
	}
	dirFlag(c, &dir)
	return c
}

func listCAs(ctx context.Context, dir string) (caList, error) {
	folder := authority.In(dir, cakey.Opener{})
	list := caList{CAs: []caRow{}, SendsIssuer: folder.SendsIssuer()}
	cas, err := folder.List()
	if err != nil && !errors.Is(err, authority.ErrNoCA) {
		return list, err
	}
	issuers := runningIssuers(ctx, dir)
	for _, ca := range cas {
		row := caRow{Name: ca.Certificate.Subject.CommonName, State: string(ca.State), Key: keptIn(ca.KeyFile), Serial: identity.SerialString(ca.Certificate.SerialNumber),
			Fingerprint: identity.Fingerprint(ca.Certificate), NotAfter: ca.Certificate.NotAfter, Dependents: []string{}}
		for _, i := range issuers {
			if i.Fingerprint == row.Fingerprint {
				row.Devices, row.Online = &i.Devices, &i.Online
			}
		}
		dependents, err := folder.Dependents(ca.Certificate, time.Now())
		if err != nil {
			return list, err
		}
		for _, id := range dependents {
			row.Dependents = append(row.Dependents, string(id.Role)+"/"+id.ID)
		}
		list.CAs = append(list.CAs, row)
	}
	if pending, err := folder.Pending(); err == nil {
		list.CAs = append(list.CAs, caRow{Name: pending.CSR.Subject.CommonName, State: "requested", Key: keptIn(pending.KeyFile), Dependents: []string{}})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return list, err
	}
	return list, nil
}

// runningIssuers asks the hub that runs in dir, if one does and answers its first operator.
func runningIssuers(ctx context.Context, dir string) (issuers []admin.Issuer) {
	if _, running, err := server.ReadEndpoint(dir); err != nil || !running {
		return nil
	}
	_ = remote{dir: dir}.do(func(client *admin.Client) (err error) { // without an answer, nothing is shown
		issuers, err = client.Issuers(ctx)
		return err
	})
	return issuers
}

// keptIn says where a key is kept, "" if it isn't there.
func keptIn(file string) string {
	kind, err := cakey.KindOf(file)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return "not readable"
	}
	return string(kind)
}

func (l caList) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tKEY IN\tISSUES UNTIL\tDEVICES\tONLINE\tSERIAL")
	for _, r := range l.CAs {
		until := "-"
		if !r.NotAfter.IsZero() {
			until = r.NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.State, dash(r.Key), until, number(r.Devices), number(r.Online), dash(r.Serial))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range l.CAs {
		if r.State == string(authority.Former) && len(r.Dependents) > 0 {
			fmt.Fprintf(w, "%s: without a certificate by a later CA: %s\n", r.Name, strings.Join(r.Dependents, ", "))
		}
	}
	if l.SendsIssuer {
		fmt.Fprintln(w, "The hub sends its issuing CA in each full handshake: ca/send-issuer says why, and when that can end.")
	}
	return nil
}

func number(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}

// caProtected is what hub ca encrypt and decrypt print.
type caProtected struct {
	DryRun     bool     `json:"dry_run"`
	Encrypt    bool     `json:"encrypt"`
	Files      []string `json:"files"` // that are, or would be, changed
	Credential string   `json:"credential"`
	Running    bool     `json:"running"` // a hub, in that folder
}

// newCAProtect returns hub ca encrypt or decrypt.
func newCAProtect(output *command.Output, encrypt bool) *cobra.Command {
	var dir string
	var confirm bool
	c := &cobra.Command{
		Use:   "decrypt",
		Short: "Take the keys in ca/ into plain files again; without --confirm, show what that would do",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := loadConfig(dir)
			if err != nil {
				return err
			}
			p := caProtected{DryRun: !confirm, Encrypt: encrypt, Files: []string{}, Credential: config.IssuingKey.Credential}
			if p.Files, err = keysToChange(dir, encrypt); err != nil {
				return err
			}
			_, p.Running, _ = server.ReadEndpoint(dir)
			if confirm {
				if err := protectKeys(caKeys(c, config), p.Files, encrypt); err != nil {
					return err
				}
			}
			return output.Print(c.OutOrStdout(), p, func(w io.Writer) error { return p.write(w) })
		},
	}
	if encrypt {
		c.Use, c.Short = "encrypt", "Encrypt the keys in ca/ with a passphrase; without --confirm, show what that would do"
		c.Long = `Encrypts the keys of the hub's issuing CAs that are in plain files, all with one
passphrase. Each file is replaced at once by one that was seen to open, or stays as it is;
what the plain file held may stay on the disk's free blocks. The hub then needs the
passphrase as a systemd credential, without which it serves its devices but renews no
certificate and signs no revocation list.`
	}
	dirFlag(c, &dir)
	c.Flags().BoolVar(&confirm, "confirm", false, "do it")
	return c
}

// keysToChange returns the keys in ca/ that are in plain files, or in encrypted ones.
func keysToChange(dir string, encrypt bool) (files []string, err error) {
	folder := authority.In(dir, cakey.Opener{})
	candidates := []string{}
	cas, err := folder.List()
	if err != nil && !errors.Is(err, authority.ErrNoCA) {
		return nil, err
	}
	for _, ca := range cas {
		candidates = append(candidates, ca.KeyFile)
	}
	if pending, err := folder.Pending(); err == nil {
		candidates = append(candidates, pending.KeyFile)
	}
	want, state := cakey.Encrypted, "encrypted"
	if encrypt {
		want, state = cakey.File, "plain"
	}
	for _, file := range candidates {
		kind, err := cakey.KindOf(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if kind == want {
			files = append(files, file)
		}
	}
	if len(files) == 0 {
		return nil, command.Errorf(command.NotFound, "%s has no key in a file that is %s: `hub ca list --dir %s` shows where the keys are", folder.Dir, state, dir)
	}
	return files, nil
}

func protectKeys(keys keyOpener, files []string, encrypt bool) error {
	var passphrase []byte
	if encrypt {
		var err error
		if passphrase, err = keys.newPassphrase(files[0]); err != nil {
			return err
		}
		defer clear(passphrase)
	}
	for i, file := range files {
		if err := keys.SetPassphrase(file, passphrase); err != nil {
			return fmt.Errorf("%w (%d of %d keys were changed before)", err, i, len(files))
		}
	}
	return nil
}

func (p caProtected) write(w io.Writer) error {
	done, would, how := "decrypted", "would decrypt", ""
	if p.Encrypt {
		done, would, how = "encrypted", "would encrypt", fmt.Sprintf("The hub gets the passphrase as the systemd credential %s (LoadCredentialEncrypted=).\n", p.Credential)
	}
	if p.DryRun {
		done = would
	}
	for _, file := range p.Files {
		fmt.Fprintf(w, "%s %s\n", done, file)
	}
	io.WriteString(w, how)
	if p.Encrypt && p.Running {
		fmt.Fprintln(w, "A hub runs here: it reads the file at its next use, so give it the credential, with a restart, before.")
	}
	if p.DryRun {
		_, err := fmt.Fprintln(w, "nothing was changed; add --confirm to do it")
		return err
	}
	return nil
}
