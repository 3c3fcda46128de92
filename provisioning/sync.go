package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/provisioning/courier"
	"github.com/fleethub/fleethub/provisioning/station"
)

func syncCommand(output *command.Output) *cobra.Command {
	var dir, hub, credentials string
	c := &cobra.Command{
		Use:   "sync --dir S --hub URL --credentials DIR",
		Short: "Send the hub every manifest that it has not had yet",
		Long: `Send the hub every manifest that it has not had yet, and new ones until every
certificate is in one. Each takes effect there once: one that was sent and not written
down here is sent again, which changes nothing. Manifests that went by file are sent,
too, for nobody told this station that they arrived.

DIR has the credentials of a station (station.key, station.crt, ca.crt) or operator.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				carrier, err := newCourier(hub, local(c, credentials))
				if err != nil {
					return err
				}
				defer carrier.Close()
				done, err := s.Sync(c.Context(), func(ctx context.Context, manifest []byte) error {
					_, err := carrier.Send(ctx, manifest)
					return err
				})
				switch {
				case errors.Is(err, courier.ErrUnreachable):
					return command.WithCode(command.Unreachable, err)
				case errors.Is(err, courier.ErrDenied):
					return command.WithCode(command.Denied, err)
				case err != nil:
					return err
				}
				return output.Print(c.OutOrStdout(), done, func(w io.Writer) error {
					if done.Manifests == 0 {
						_, err := fmt.Fprintln(w, "the hub has everything already")
						return err
					}
					_, err := fmt.Fprintf(w, "the hub has %d more manifests with %d certificates, up to manifest %d\n", done.Manifests, done.Devices, done.Last)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&hub, "hub", "", "the hub's `URL`, https://HOST:8443")
	c.Flags().StringVar(&credentials, "credentials", "", "`folder` with station.key or operator.key, its certificate and ca.crt")
	require(c, "hub", "credentials")
	return c
}

func newCourier(hub, folder string) (*courier.Courier, error) {
	base := "station"
	if _, err := os.Stat(filepath.Join(folder, base+".crt")); errors.Is(err, fs.ErrNotExist) {
		base = "operator"
	}
	cred, err := mtls.LoadCredentials(folder, base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, command.WithCode(command.NotFound, err)
	}
	if err != nil {
		return nil, err
	}
	carrier, err := courier.New(hub, cred)
	return carrier, command.WithCode(command.Usage, err)
}
