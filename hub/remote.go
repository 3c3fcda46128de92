package main

import (
	"errors"
	"net"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/server"
)

// remote says which running hub a command talks to, and as whom.
type remote struct {
	dir, hub, credentials string
}

// remoteFlags adds --dir, --hub and --credentials.
func remoteFlags(c *cobra.Command, r *remote) {
	dirFlag(c, &r.dir)
	c.Flags().StringVar(&r.hub, "hub", "", "`URL` of a remote hub, https://HOST:8443 (default: the one running in --dir)")
	c.Flags().StringVar(&r.credentials, "credentials", "", "`folder` with operator.key, operator.crt and ca.crt (default DIR/operator)")
}

// client returns a client of the hub's API; the caller closes it.
func (r remote) client() (*admin.Client, error) {
	base, folder := r.hub, r.credentials
	if base == "" {
		var err error
		if base, err = r.local(); err != nil {
			return nil, err
		}
	}
	if folder == "" {
		if err := requireHub(r.dir); err != nil {
			return nil, err
		}
		folder = filepath.Join(r.dir, "operator")
	}
	credentials, err := mtls.LoadCredentials(folder, "operator")
	if err != nil {
		return nil, err
	}
	client, err := admin.NewClient(base, credentials)
	return client, command.WithCode(command.Usage, err)
}

// local returns the URL of the hub that runs in --dir.
func (r remote) local() (string, error) {
	endpoint, running, err := server.ReadEndpoint(r.dir)
	if err != nil {
		return "", err
	}
	if !running {
		if err := requireHub(r.dir); err != nil {
			return "", err
		}
		return "", command.Errorf(command.Unreachable, "no hub runs in %s: start it with `hub serve --dir %s`, or name another with --hub", r.dir, r.dir)
	}
	host, port, err := net.SplitHostPort(endpoint.HTTPS)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String(), nil
}

// exitCode gives an API error the exit code of its kind.
func exitCode(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, admin.ErrUnreachable):
		return command.WithCode(command.Unreachable, err)
	case errors.Is(err, admin.ErrDenied):
		return command.WithCode(command.Denied, err)
	case errors.Is(err, admin.ErrInvalid):
		return command.WithCode(command.Usage, err)
	case errors.Is(err, admin.ErrNotFound), errors.Is(err, fleet.ErrUnknownDevice):
		return command.WithCode(command.NotFound, err)
	}
	return err
}

// do calls f with a client of the hub and gives its error the exit code of its kind.
func (r remote) do(f func(*admin.Client) error) error {
	client, err := r.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return exitCode(f(client))
}
