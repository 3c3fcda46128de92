package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/server"
)

// remote says which running hub a command talks to, and as whom.
type remote struct {
	dir, hub, credentials, tokenFile string
}

// maxTokenFile bounds a token's file, in octets.
const maxTokenFile = 64 << 10

// remoteFlags adds --dir, --hub, --credentials and --token-file.
func remoteFlags(c *cobra.Command, r *remote) {
	dirFlag(c, &r.dir)
	c.Flags().StringVar(&r.hub, "hub", "", "`URL` of a remote hub, https://HOST:8443 (default: the one running in --dir)")
	c.Flags().StringVar(&r.tokenFile, "token-file", "", "`file` with a token of the hub's OpenID provider, to be used in place of an operator's certificate; "+server.TokenVariable+" may hold the token itself. The hub is held against ca.crt in --credentials or --dir")
	c.Flags().StringVar(&r.credentials, "credentials", "", "`folder` with operator.key, operator.crt and ca.crt (default DIR/operator)")
}

// client returns a client of the hub's API; the caller closes it. A flag goes over the
// environment, and that over the operator in --dir.
func (r remote) client() (*admin.Client, error) {
	base, folder := r.hub, r.credentials
	if base == "" {
		var err error
		if base, err = r.local(); err != nil {
			return nil, err
		}
	}
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		roots, err := pemfile.ReadCertificates(filepath.Join(cmp.Or(folder, r.dir), "ca.crt"))
		if err != nil {
			return nil, err
		}
		client, err := admin.NewTokenClient(base, roots, token)
		return client, command.WithCode(command.Usage, err)
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

// token returns the operator's token, "" if a certificate is to be used.
func (r remote) token() (string, error) {
	if r.tokenFile == "" {
		if r.credentials != "" {
			return "", nil
		}
		return strings.TrimSpace(os.Getenv(server.TokenVariable)), nil
	}
	file, err := os.Open(r.tokenFile)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", command.Errorf(command.Usage, "%s may be read by everybody on this machine, and whoever has the token is you: chmod o= %[1]s", r.tokenFile)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxTokenFile))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", r.tokenFile, err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", command.Errorf(command.Usage, "%s is empty; it should hold a token", r.tokenFile)
	}
	return token, nil
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
