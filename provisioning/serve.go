package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8/cwriter"
	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/provisioning/label"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/server"
	"github.com/fleethub/fleethub/provisioning/station"
)

func serveCommand(output *command.Output) *cobra.Command {
	var o serveOptions
	var labels, format string
	c := &cobra.Command{
		Use:   "serve --dir S",
		Short: "Enrol boards over the bench LAN (EST) until stopped",
		Long: `Enrol boards over the bench LAN until SIGTERM or Ctrl-C: EST (RFC 7030) over HTTPS,
for boards that bring a token ('provisioning token') or a claim certificate ('claim').
Boards know the station by the key of its server certificate, S/server.crt, whose pin is
in every token and claim. It needs no hub.

With --tpm-ca or --ek-allow a board's TPM can vouch for its key: by its endorsement
certificate, or because its endorsement key is on a list. Without either every key counts
as one in a file, and orders that demand a TPM can't be served: it says so of each.

While it runs the other commands work as ever: it carries them out.

In a terminal it shows a line a board. A browser on the bench LAN finds a page at the same
address: green or red, what to do next, the order's progress, labels and the shift report.
Nothing can be changed there, and no secret is on it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if labels != "" {
				target, err := label.ParseTarget(labels, label.Format(format))
				if err != nil {
					return command.WithCode(command.Usage, err)
				}
				o.print = target
			}
			s, err := openStation(c, o.dir)
			if errors.Is(err, ledger.ErrLocked) {
				return fmt.Errorf("%w, or a server runs there already", err)
			}
			if err != nil {
				return coded(err)
			}
			o.log = newLog(c.ErrOrStderr(), output)
			o.terminal = liveView(c.OutOrStdout(), output)
			o.ready = func(r ready) error {
				return output.Print(c.OutOrStdout(), r, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "station %s enrols boards at https://%s\n  pin  %s\n  a page for the bench is there, too\n", r.Station, r.Address, r.Pin)
					return err
				})
			}
			err = serve(c.Context(), s, o)
			return errors.Join(coded(err), s.Close())
		},
	}
	dirFlag(c, &o.dir)
	c.Flags().StringArrayVar(&o.cas, "tpm-ca", nil, "a `file` or folder with CA certificates of TPM manufacturers; may be repeated")
	c.Flags().StringVar(&o.allow, "ek-allow", "", "a `file` with the SHA-256 of an endorsement key on each line, of TPMs without certificate")
	c.Flags().StringVar(&o.listen, "listen", ":9443", "`address` to listen at")
	c.Flags().StringArrayVar(&o.hosts, "host", nil, "a `name` or address that boards, tablets or EST clients call this machine by; may be repeated")
	c.Flags().StringVar(&labels, "labels", "", "print each new board's label: `tcp://HOST[:PORT]` of a printer's raw socket, or a file, device or folder")
	c.Flags().StringVar(&format, "label-format", "", "the labels' `format`: png, svg or zpl (default: zpl for a printer, else what the file's name says, or png)")
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
	cas         []string     // of TPM manufacturers
	allow       string       // file of endorsement keys
	print       label.Target // zero: labels aren't printed
	terminal    *os.File     // for the live view; nil: standard output is none, and the log tells of each board
	log         *slog.Logger
	ready       func(ready) error
}

// liveView returns standard output if a person looks at it.
func liveView(w io.Writer, output *command.Output) *os.File {
	f, ok := w.(*os.File)
	if !ok || output.JSON() || !cwriter.IsTerminal(int(f.Fd())) {
		return nil
	}
	return f
}

func serve(ctx context.Context, s *station.Station, o serveOptions) error {
	verifier, err := loadAttestation(o.cas, o.allow)
	if err != nil {
		return err
	}
	cert, err := s.ServerCertificate(o.hosts...)
	if err != nil {
		return err
	}
	if verifier == nil {
		if err := warnOfTPMOrders(s, o.log); err != nil {
			return err
		}
	}
	view := newBenchView(s, est.PinOf(cert.Leaf).String(), o)
	defer view.screen.Close()
	page, err := view.screen.Handler()
	if err != nil {
		return err
	}
	door, err := server.New(server.Config{Station: s, Hosts: o.hosts, Attestation: verifier, OnEvent: view.observe, Handler: page, Log: view.log})
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
	if err := o.ready(ready{Station: s.Name(), Address: reachable(listener.Addr(), o.hosts), Pin: est.PinOf(door.Certificate()).String()}); err != nil {
		return errors.Join(err, share.Close(), listener.Close())
	}
	group.Go(func() error { return door.Serve(ctx, listener) })
	group.Go(func() error { return serveShare(ctx, share, host{station: s, screen: view.screen}, view.log) })
	view.run(ctx, group)
	return group.Wait()
}

// warnOfTPMOrders says of each open order that demands keys in a TPM that no board can
// have one, since this server takes no TPM's word.
func warnOfTPMOrders(s *station.Station, log *slog.Logger) error {
	open, err := s.Ledger().OpenOrders()
	if err != nil {
		return err
	}
	for _, o := range open {
		lines, err := s.Ledger().Lines(o.Number)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(lines, func(l ledger.Line) bool { return l.Protection == ledger.TPM }) {
			log.Warn(fmt.Sprintf("order %d (%s) demands keys in a TPM, and its boards will be refused: no TPM is believed without --tpm-ca or --ek-allow", o.Number, o))
		}
	}
	return nil
}

// reachable returns an address that others can dial, of a listener's: where that is every
// address of the machine, the first name it was given, else an address of the machine
// on a network, else the one on which it reaches itself.
func reachable(listening net.Addr, hosts []string) string {
	tcp, ok := listening.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return listening.String()
	}
	host := "localhost"
	if len(hosts) > 0 {
		host = hosts[0]
	} else if addresses, err := net.InterfaceAddrs(); err == nil {
		host = onNetwork(addresses, host)
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// onNetwork returns the first address that other machines know, IPv4 before IPv6, or
// the other host if there is none.
func onNetwork(addresses []net.Addr, otherwise string) string {
	found := ""
	for _, a := range addresses {
		network, ok := a.(*net.IPNet)
		if !ok || !network.IP.IsGlobalUnicast() {
			continue
		}
		if network.IP.To4() != nil {
			return network.IP.String()
		}
		if found == "" {
			found = network.IP.String()
		}
	}
	if found == "" {
		return otherwise
	}
	return found
}

// newLog writes to w, for a person or, with --output json, for a program.
func newLog(w io.Writer, output *command.Output) *slog.Logger {
	if output.JSON() {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}
