package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/provisioning/station"
)

// dirFlag adds the station's folder, which every command needs.
func dirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "", "the station's `folder`")
	require(c, "dir")
}

// require marks flags as required; cobra reports a missing one as a usage error.
func require(c *cobra.Command, flags ...string) {
	for _, f := range flags {
		if err := c.MarkFlagRequired(f); err != nil {
			panic(err) // a flag that the command doesn't define
		}
	}
}

// withStation runs do on the station in dir, and closes it.
func withStation(dir string, do func(*station.Station) error) (err error) {
	s, err := station.Open(dir, nil)
	if err != nil {
		return coded(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return coded(do(s))
}
