package main

import (
	"crypto"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

const (
	tpmVariable    = "FLEETHUB_TPM"          // the TPM's address, if it is not the one in /dev
	credentialsDir = "CREDENTIALS_DIRECTORY" // systemd.exec(5)
)

// source returns where passphrases come from. Close its terminal, if it has one.
func source(c *cobra.Command) cakey.Source {
	s := cakey.Source{Credentials: os.Getenv(credentialsDir), Interrupted: c.Context().Done()}
	if terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		s.Terminal = terminal
	}
	return s
}

// opener opens the station's key, asking for its passphrase if it has one.
func opener(c *cobra.Command) cakey.Opener {
	return cakey.Opener{TPM: os.Getenv(tpmVariable), Passphrase: func(path string) ([]byte, error) {
		s := source(c)
		defer s.Terminal.Close() // a nil one only returns an error
		return s.Passphrase(path)
	}}
}

func openStation(c *cobra.Command, dir string) (*station.Station, error) {
	return station.OpenWith(dir, opener(c), nil)
}

// keyMaker returns what makes a station's key, to be kept like that.
func keyMaker(c *cobra.Command, dir, kept string) (station.KeyMaker, error) {
	keep := cakey.Keep(kept)
	if err := keep.Check(); err != nil {
		return nil, command.WithCode(command.Usage, err)
	}
	return func() (crypto.Signer, []byte, error) {
		return opener(c).Make(filepath.Join(dir, "station.key"), keep, func(string) ([]byte, error) { return newPassphrase(c, dir) })
	}, nil
}

func newPassphrase(c *cobra.Command, dir string) ([]byte, error) {
	s := source(c)
	defer s.Terminal.Close() // a nil one only returns an error
	return s.New(filepath.Join(dir, "station.key"))
}

// keyKept is what the key commands print as JSON.
type keyKept struct {
	Kept cakey.Kind `json:"kept"`
}

func keyCommand(output *command.Output) *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "How the station's key is kept: show it, set or remove its passphrase",
	}
	c.AddCommand(
		keyChange(output, "show", "Show how the station's key is kept", nil),
		keyChange(output, "encrypt", "Encrypt the station's key with a passphrase", func(c *cobra.Command, dir string) error {
			path := filepath.Join(dir, "station.key")
			if kind, err := cakey.KindOf(path); err == nil && kind == cakey.Encrypted {
				return fmt.Errorf("%s is encrypted already: `provisioning key decrypt` first, to give it another passphrase", path)
			}
			passphrase, err := newPassphrase(c, dir)
			if err != nil {
				return err
			}
			defer clear(passphrase)
			return station.SetPassphrase(dir, opener(c), passphrase)
		}),
		keyChange(output, "decrypt", "Take the station's key into a plain file again", func(c *cobra.Command, dir string) error {
			return station.SetPassphrase(dir, opener(c), nil)
		}),
	)
	return c
}

// keyChange returns a command that changes how the key is kept, and says how it is then.
func keyChange(output *command.Output, use, short string, change func(c *cobra.Command, dir string) error) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   use + " --dir S",
		Short: short,
		Long: short + `.

A passphrase is asked for at the terminal, or taken from the systemd credential
station.key.passphrase (LoadCredentialEncrypted=). A key in the TPM is made by 'init --key
tpm' and stays there; the variable FLEETHUB_TPM names a TPM that is not the one in /dev.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if change != nil {
				if err := change(c, dir); err != nil {
					return coded(err)
				}
			}
			kind, err := cakey.KindOf(filepath.Join(dir, "station.key"))
			if os.IsNotExist(err) {
				return command.Errorf(command.NotFound, "%s holds no station", dir)
			}
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), keyKept{Kept: kind}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "the station's key is in: %s\n", kind)
				return err
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
