package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/server"
)

func newBackup(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Back up a running hub: registry, audit log, sessions, messages",
		Long: `Writes a consistent backup of a running hub to FILE, which must not exist. It has the
registry with every revocation, the audit log, sessions, queued and retained messages and
the issuers' certificates; it has no keys. To be restored it needs a folder with the hub's
ca/, ca.crt, hub.yaml, issuers/, operator/, policy.yaml and tls/: keep those where keys are
kept.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var size int64
			err := r.do(func(client *admin.Client) (err error) {
				size, err = writeBackup(args[0], func(w io.Writer) error { return client.Backup(c.Context(), w) })
				return err
			})
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), map[string]any{"file": args[0], "bytes": size}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %d bytes. Keys are not in it.\n", args[0], size)
				return err
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

// writeBackup writes the file beside and gives it its name once it is whole.
func writeBackup(name string, write func(io.Writer) error) (size int64, err error) {
	if _, err := os.Lstat(name); err == nil {
		return 0, fmt.Errorf("%s exists: name another file", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".backup-")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("there is no folder %s: make it first", filepath.Dir(name))
	}
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), os.Rename(f.Name(), name)
}

func newRestore(output *command.Output) *cobra.Command {
	var dir string
	var replace bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into a hub's folder, while no hub runs there",
		Long: `Puts a backup into a hub's folder, whose configuration and keys stay as they are. The
backup is unpacked beside and checked before anything changes. Where the folder has a
registry or sessions already, --replace puts those aside under another name.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := requireHub(dir); err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return command.Errorf(command.NotFound, "there is no backup %s", args[0])
			}
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := server.Restore(dir, f, replace, time.Now())
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
				fmt.Fprintf(w, "Restored the state of %s into %s.\n", r.Time.Format(time.RFC3339), dir)
				for _, name := range r.Kept {
					fmt.Fprintf(w, "What was there is in %s.\n", name)
				}
				return nil
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().BoolVar(&replace, "replace", false, "put aside what is there")
	return c
}

func newStore(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "store", Short: "The hub's stores on disk"}
	var dir string
	check := &cobra.Command{
		Use:   "check",
		Short: "Look through the stores of a hub that doesn't run, and change nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := requireHub(dir); err != nil {
				return err
			}
			r, err := server.CheckStores(dir)
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
				fmt.Fprintf(w, "registry: sound\njournal:  sound, %d records in %s, %d bytes of an interrupted write at its end\n", r.Records, countOf(r.Files, "file"), r.Torn)
				_, err := fmt.Fprintf(w, "holds:    %s, %d queued and %d retained messages, %d missing\n", countOf(r.Sessions, "session"), r.Queued, r.Retained, r.Missing)
				return err
			})
		},
	}
	dirFlag(check, &dir)
	group.AddCommand(check)
	return group
}
