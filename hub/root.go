package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

func newRootGroup(output *command.Output) *cobra.Command {
	group := &cobra.Command{
		Use:   "root",
		Short: "The fleet's root in a folder on a stick: make it, have it sign requests, list what it signed",
		Long: `The fleet's root in a folder on a stick. It needs no hub and no network: requests come
as files, certificates go as files. root.key signs, root.crt is what the fleet trusts, and
issued.jsonl is the record of what was signed.`,
	}
	group.AddCommand(newRootInit(output), newRootSign(output), newRootList(output),
		newRootKey(output, "encrypt", "Encrypt the root's key with a passphrase"),
		newRootKey(output, "decrypt", "Take the root's key into a plain file again"))
	return group
}

func rootDirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "", "the root's `folder`")
	c.MarkFlagRequired("dir")
}

// rootMade is what hub root init prints.
type rootMade struct {
	Dir         string     `json:"dir"`
	TrustDomain string     `json:"trust_domain"`
	Fingerprint string     `json:"fingerprint"`
	NotAfter    time.Time  `json:"not_after"`
	Kept        cakey.Kind `json:"kept"`
}

func newRootInit(output *command.Output) *cobra.Command {
	var dir, domain, kept string
	valid := command.Duration(issuance.RootProfile().Lifetime())
	c := &cobra.Command{
		Use:   "init --dir STICK --trust-domain NAME",
		Short: "Make the fleet's root",
		Long: `Makes the fleet's root: its key and certificate. Nothing is ever overwritten. The key is
encrypted with a passphrase if there is somebody to give one, at the terminal or as the
systemd credential root.key.passphrase.`,
		Example: `  hub root init --dir /media/stick --trust-domain fleet.example
  hub init --dir /var/lib/fleethub --root /media/stick/root.crt
  hub root sign --dir /media/stick --kind operational --csr next.csr --key-sha256 HEX --out hub.crt
  hub ca install --dir /var/lib/fleethub hub.crt`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := identity.ValidTrustDomain(domain); err != nil {
				return command.Errorf(command.Usage, "--trust-domain: %w", err)
			}
			keys := rootKeys(c)
			if kept == "" {
				kept = string(cakey.KeepInFile)
				if keys.canAsk() {
					kept = string(cakey.KeepEncrypted)
				}
			}
			keep, err := parseKeep("key", kept)
			if err != nil {
				return err
			}
			if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
				if err := requireNoRoot(dir); err != nil {
					return err
				}
			}
			cert, err := authority.MakeRoot(dir, domain, time.Duration(valid), keys.maker(keep))
			if err != nil {
				return err
			}
			kind, err := cakey.KindOf(authority.RootKeyFile(dir))
			if err != nil {
				return err
			}
			made := rootMade{Dir: dir, TrustDomain: domain, Fingerprint: identity.Fingerprint(cert), NotAfter: cert.NotAfter, Kept: kind}
			return output.Print(c.OutOrStdout(), made, func(w io.Writer) error { return made.write(w) })
		},
	}
	rootDirFlag(c, &dir)
	c.Flags().StringVar(&domain, "trust-domain", "", "the fleet's `name` in every certificate, for ever")
	c.MarkFlagRequired("trust-domain")
	keepFlag(c, &kept, "key", "the root's", "")
	c.Flags().Lookup("key").Usage += " (default passphrase if somebody can give one, else file)"
	c.Flags().Var(&valid, "valid", "lifetime of the root")
	return c
}

// requireNoRoot refuses a folder that has a root, or is a hub's, or has a root that waits to
// be moved there: a run that was killed leaves that, but so does whoever wants the fleet to
// trust a root of theirs.
func requireNoRoot(dir string) error {
	partial := filepath.Join(dir, ".partial") // pemfile.Stage's
	if _, err := os.Lstat(filepath.Join(partial, ".complete")); err == nil {
		found := "what it holds is no root's certificate"
		if certs, err := pemfile.ReadCertificates(filepath.Join(partial, "root.crt")); err == nil {
			found = fmt.Sprintf("it holds the root %.80q, SHA-256 %s", certs[0].Subject.CommonName, identity.Fingerprint(certs[0]))
		}
		return fmt.Errorf("%s is of a run that was interrupted, or was put there by somebody (%s): remove it by hand, then run this again", partial, found)
	}
	for _, name := range []string{"root.key", "root.crt", "hub.yaml"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s has a %s already, which is never overwritten: name another folder with --dir", dir, name)
		}
	}
	return nil
}

func (r rootMade) write(w io.Writer) error {
	fmt.Fprintf(w, "root of %s made in %s, good until %s\n  key      in: %s\n  SHA-256  %s (of the certificate: to be compared wherever it is trusted)\n",
		r.TrustDomain, r.Dir, r.NotAfter.Format(time.DateOnly), r.Kept, r.Fingerprint)
	if r.Kept == cakey.File {
		fmt.Fprintf(w, "Whoever reads %s has the fleet: encrypt it with `hub root encrypt --dir %s`.\n", authority.RootKeyFile(r.Dir), r.Dir)
	}
	_, err := fmt.Fprintf(w, "\nNext, at the hub, with a copy of %s:\n  hub init --dir HUB --root root.crt\n", filepath.Join(r.Dir, "root.crt"))
	return err
}

// openRoot opens the root in a folder; one that isn't there has the exit code for that.
func openRoot(c *cobra.Command, dir, hint string) (*authority.Root, error) {
	root, err := authority.OpenRoot(dir, rootKeys(c))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.Errorf(command.NotFound, "the root's key or certificate is not in %s: %s", dir, hint)
	}
	return root, err
}

// request reads a certificate request that came by file.
func request(file, whence string) (*x509.CertificateRequest, error) {
	csr, err := authority.ReadCSR(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.Errorf(command.NotFound, "there is no certificate request %s: %s", file, whence)
	}
	return csr, err
}

// requireVacant refuses an --out that is there.
func requireVacant(out string) error {
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s already exists and is not overwritten: name another file with --out", out)
	}
	return nil
}

// rootRecord is one line of hub root list.
type rootRecord struct {
	Kind        string    `json:"kind"`
	Name        string    `json:"name"`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint"`
	KeyHash     string    `json:"key_sha256"`
	NotBefore   time.Time `json:"not_before"` // the record's own time isn't signed: anyone may have written it
	NotAfter    time.Time `json:"not_after"`
	MaxDevices  int       `json:"max_devices,omitempty"`
}

// rootList is what hub root list prints.
type rootList struct {
	TrustDomain string       `json:"trust_domain"`
	Fingerprint string       `json:"fingerprint"`
	Record      bool         `json:"record"` // whether there is one
	Signed      []rootRecord `json:"signed"`
}

func newRootList(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list --dir STICK",
		Short: "List what the root signed, from the record beside its key",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			root, err := authority.RootCertificate(dir)
			if errors.Is(err, fs.ErrNotExist) {
				return command.Errorf(command.NotFound, "there is no root in %s: name its folder with --dir", dir)
			}
			if err != nil {
				return err
			}
			record, err := authority.HasJournal(dir)
			if err != nil {
				return err
			}
			signed, damaged := authority.Signed(dir, root)
			list := rootList{Record: record, TrustDomain: root.Subject.CommonName, Fingerprint: identity.Fingerprint(root), Signed: []rootRecord{}}
			for _, s := range signed {
				kind, err := identity.KindOf(s.Certificate)
				if err != nil {
					continue // damaged says so
				}
				r := rootRecord{NotBefore: s.Certificate.NotBefore, Kind: kindWord(kind), Name: s.Certificate.Subject.CommonName, Serial: identity.SerialString(s.Certificate.SerialNumber),
					Fingerprint: identity.Fingerprint(s.Certificate), KeyHash: identity.KeyFingerprint(s.Certificate.RawSubjectPublicKeyInfo), NotAfter: s.Certificate.NotAfter}
				if kind == identity.KindFactory {
					r.MaxDevices, _ = issuance.DeviceBudget(s.Certificate) // 0 if it can't be read: it may make none
				}
				list.Signed = append(list.Signed, r)
			}
			return errors.Join(output.Print(c.OutOrStdout(), list, func(w io.Writer) error { return list.write(w, dir) }), damaged)
		},
	}
	rootDirFlag(c, &dir)
	return c
}

func (l rootList) write(w io.Writer, dir string) error {
	fmt.Fprintf(w, "root of %s, SHA-256 %s\n", l.TrustDomain, l.Fingerprint)
	if !l.Record {
		_, err := fmt.Fprintf(w, "there is no record %s: either it has signed nothing yet, or the record was lost or removed\n", filepath.Join(dir, authority.JournalFile))
		return err
	}
	if len(l.Signed) == 0 {
		_, err := fmt.Fprintln(w, "its record is empty")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VALID FROM\tKIND\tNAME\tISSUES UNTIL\tDEVICES\tSERIAL")
	for _, r := range l.Signed {
		devices := "-"
		if r.MaxDevices > 0 {
			devices = fmt.Sprint(r.MaxDevices)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.NotBefore.UTC().Format(time.RFC3339), r.Kind, r.Name, r.NotAfter.Format(time.DateOnly), devices, r.Serial)
	}
	return t.Flush()
}

// newRootKey returns a command that sets or removes the passphrase of the root's key.
func newRootKey(output *command.Output, use, short string) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   use + " --dir STICK",
		Short: short,
		Long:  short + ".\n\nThe file is replaced at once by one that was seen to open, or stays as it is.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			file, keys := authority.RootKeyFile(dir), rootKeys(c)
			if err := changeKey(keys, file, use == "encrypt"); err != nil {
				return err
			}
			kind, err := cakey.KindOf(file)
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), map[string]cakey.Kind{"kept": kind}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "the root's key is in: %s\n", kind)
				return err
			})
		},
	}
	rootDirFlag(c, &dir)
	return c
}

// changeKey encrypts a key's file with a passphrase that it asks for, or decrypts it.
func changeKey(keys keyOpener, file string, encrypt bool) error {
	kind, err := cakey.KindOf(file)
	if errors.Is(err, fs.ErrNotExist) {
		return command.Errorf(command.NotFound, "there is no key %s", file)
	}
	if err != nil {
		return err
	}
	if !encrypt {
		return keys.SetPassphrase(file, nil)
	}
	if kind == cakey.Encrypted {
		return fmt.Errorf("%s is encrypted already: decrypt it first, to give it another passphrase", file)
	}
	passphrase, err := keys.newPassphrase(file)
	if err != nil {
		return err
	}
	defer clear(passphrase)
	return keys.SetPassphrase(file, passphrase)
}
