package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/server"
	"github.com/fleethub/fleethub/provisioning/station"
)

func serveCommand(output *command.Output) *cobra.Command {
	var dir, listen, allow string
	var hosts, cas []string
	c := &cobra.Command{
		Use:   "serve --dir S",
		Short: "Enrol boards over the bench LAN (EST) until stopped",
		Long: `Enrol boards over the bench LAN until SIGTERM or Ctrl-C: EST (RFC 7030) over HTTPS,
for boards that bring a token ('provisioning token') or a claim certificate ('claim').
Boards know the station by the key of its server certificate, S/server.crt, whose pin is
in every token and claim. It needs no hub.

With --tpm-ca or --ek-allow a board's TPM can vouch for its key: by its endorsement
certificate, or because its endorsement key is on a list. Without either every key counts
as one in a file, and orders that demand a TPM can't be served.

While it runs the other commands work as ever: it carries them out.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log := newLog(c.ErrOrStderr(), output)
			s, err := station.Open(dir, nil)
			if errors.Is(err, ledger.ErrLocked) {
				return fmt.Errorf("%w, or a server runs there already", err)
			}
			if err != nil {
				return coded(err)
			}
			err = serve(c.Context(), s, serveOptions{dir: dir, listen: listen, hosts: hosts, cas: cas, allow: allow, log: log, ready: func(r ready) error {
				return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "station %s enrols boards at https://%s\n  pin  %s\n", r.Station, r.Address, r.Pin)
					return err
				})
			}})
			return errors.Join(coded(err), s.Close())
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringArrayVar(&cas, "tpm-ca", nil, "a `file` or folder with CA certificates of TPM manufacturers; may be repeated")
	c.Flags().StringVar(&allow, "ek-allow", "", "a `file` with the SHA-256 of an endorsement key on each line, of TPMs without certificate")
	c.Flags().StringVar(&listen, "listen", ":9443", "`address` to listen at")
	c.Flags().StringArrayVar(&hosts, "host", nil, "a `name` or address that boards or EST clients call this machine by; may be repeated")
	return c
}

// ready is what serve prints once it answers.
type ready struct {
	Station string `json:"station"`
	Address string `json:"address"`
	Pin     string `json:"pin"`
}

type serveOptions struct {
	dir, listen string
	hosts       []string
	cas         []string // of TPM manufacturers
	allow       string   // file of endorsement keys
	log         *slog.Logger
	ready       func(ready) error
}

func serve(ctx context.Context, s *station.Station, o serveOptions) error {
	verifier, err := loadAttestation(o.cas, o.allow)
	if err != nil {
		return err
	}
	door, err := server.New(server.Config{Station: s, Hosts: o.hosts, Attestation: verifier, Log: o.log})
	if err != nil {
		return err
	}
	share, err := listenShare(o.dir)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return errors.Join(command.WithCode(command.Usage, err), share.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return door.Serve(ctx, listener) })
	group.Go(func() error { return serveShare(ctx, share, s, o.log) })
	group.Go(func() error {
		return o.ready(ready{Station: s.Name(), Address: listener.Addr().String(), Pin: est.PinOf(door.Certificate()).String()})
	})
	return group.Wait()
}

// newLog writes to w, for a person or, with --output json, for a program.
func newLog(w io.Writer, output *command.Output) *slog.Logger {
	if output.JSON() {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}
