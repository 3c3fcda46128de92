package main

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/server"
)

// dirFlag adds the --dir flag that every command on a hub's folder has.
func dirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "/var/lib/fleethub", "the hub's `folder`, as made by hub init")
}

// outFlag adds a required --out flag.
func outFlag(c *cobra.Command, out *string, usage string) {
	c.Flags().StringVar(out, "out", "", usage)
	c.MarkFlagRequired("out")
}

// requireHub returns nil if dir is a hub's folder. An interrupted hub init, or change of
// the issuing CA, is finished on the way.
func requireHub(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return command.Errorf(command.NotFound, "there is no folder %s: run `hub init --dir %s` first", dir, dir)
	}
	if _, err := pemfile.Finish(dir); err != nil {
		return err
	}
	if _, err := authority.In(dir, nil).Finish(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, server.ConfigFile)); err != nil {
		return command.Errorf(command.NotFound, "%s is not a hub's folder (no %s in it): run `hub init --dir %s` first", dir, server.ConfigFile, dir)
	}
	return nil
}

// loadConfig reads the hub's configuration; what is wrong with it exits 78.
func loadConfig(dir string) (server.Config, error) {
	if err := requireHub(dir); err != nil {
		return server.Config{}, err
	}
	config, err := server.LoadConfig(dir, os.Environ())
	return config, command.WithCode(command.BadConfig, err)
}

// trustBundle reads what the fleet's clients hold the hub against: the root and the
// hub's issuing CA.
func trustBundle(dir string) ([]*x509.Certificate, error) {
	return pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
}
