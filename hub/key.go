package main

import (
	"crypto"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/server"
)

// tpmVariable is the setting issuing_key.tpm in the environment, for commands that work
// without a hub's configuration.
const tpmVariable = "FLEETHUB_ISSUING_KEY__TPM"

// keyOpener opens a CA's key for a command: systemd's credentials come first, and where
// they don't have its passphrase, the person at the terminal is asked.
type keyOpener struct {
	cakey.Opener
	source cakey.Source // without a terminal
}

// caKeys returns what opens the keys in a hub's ca/, as its configuration says.
func caKeys(c *cobra.Command, config server.Config) keyOpener {
	return newKeyOpener(c, config.IssuingKey.Source(), config.IssuingKey.TPM)
}

// rootKeys returns what opens a root's key.
func rootKeys(c *cobra.Command) keyOpener {
	return newKeyOpener(c, cakey.Source{Credentials: server.DefaultConfig("").IssuingKey.Source().Credentials}, os.Getenv(tpmVariable))
}

func newKeyOpener(c *cobra.Command, source cakey.Source, tpm string) keyOpener {
	source.Interrupted = c.Context().Done()
	k := keyOpener{source: source}
	k.Opener = cakey.Opener{TPM: tpm, Passphrase: func(path string) ([]byte, error) {
		s := k.atTerminal()
		defer s.Terminal.Close() // a nil one only returns an error
		return s.Passphrase(path)
	}}
	return k
}

// atTerminal returns the source with the terminal, if there is one. Its caller closes that.
func (k keyOpener) atTerminal() cakey.Source {
	s := k.source
	if terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		s.Terminal = terminal
	}
	return s
}

// newPassphrase asks for a new one, twice.
func (k keyOpener) newPassphrase(path string) ([]byte, error) {
	s := k.atTerminal()
	defer s.Terminal.Close() // a nil one only returns an error
	return s.New(path)
}

// canAsk reports whether a new passphrase can be had from anywhere.
func (k keyOpener) canAsk() bool {
	s := k.atTerminal()
	defer s.Terminal.Close() // a nil one only returns an error
	return s.Terminal != nil || s.Credentials != ""
}

// maker returns what makes a key to be kept like that, and what its file is to hold.
func (k keyOpener) maker(keep cakey.Keep) func(path string) (crypto.Signer, []byte, error) {
	return func(path string) (crypto.Signer, []byte, error) { return k.Make(path, keep, k.newPassphrase) }
}

// keepFlag adds a flag that says where a new key is kept.
func keepFlag(c *cobra.Command, keep *string, name, whose, byDefault string) {
	c.Flags().StringVar(keep, name, byDefault, "where "+whose+" `key` is kept: "+cakey.KeepUsage)
}

// parseKeep returns what such a flag says.
func parseKeep(flag, value string) (cakey.Keep, error) {
	keep := cakey.Keep(value)
	if err := keep.Check(); err != nil {
		return "", command.Errorf(command.Usage, "--%s: %w", flag, err)
	}
	return keep, nil
}
