package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/provisioning/screen"
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

// host is what a command finds in its context that the server carries out for another
// process: the station that the server has open, what it has refused, and where the
// other process is.
type host struct {
	station *station.Station
	screen  *screen.Screen
	dir     string
}

type hostKey struct{}

func hosted(ctx context.Context) (host, bool) {
	h, ok := ctx.Value(hostKey{}).(host)
	return h, ok
}

// withStation runs do on the station in dir, and closes it. While `provisioning serve`
// runs there, the server carries the command out, with the station it has open.
func withStation(c *cobra.Command, dir string, do func(*station.Station) error) (err error) {
	if h, ok := hosted(c.Context()); ok {
		return coded(do(h.station))
	}
	if done, err := forward(c, dir); done {
		return err
	}
	s, err := openStation(c, dir)
	if err != nil {
		return coded(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return coded(do(s))
}

// local returns a path as it is meant where the command was given. An empty one stays.
func local(c *cobra.Command, path string) string {
	if h, ok := hosted(c.Context()); ok && path != "" && !filepath.IsAbs(path) {
		return filepath.Join(h.dir, path)
	}
	return path
}
