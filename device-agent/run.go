package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/agent"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/spf13/cobra"
)

// minInterval keeps a slip of the finger from flooding the hub.
const minInterval = time.Second

func newRun(output *command.Output) *cobra.Command {
	var (
		config  agent.Config
		profile string
	)
	c := &cobra.Command{
		Use:   "run --dir DIR --hub HOST:8883",
		Short: "Connect to the hub and report until stopped",
		Long: `Connect to the hub and report this machine's readings (CPU temperature, load,
memory, disk, uptime, network counters) until SIGTERM or Ctrl-C.

The agent never gives up: after a lost connection it retries within a second,
then more and more slowly up to every five minutes. A device that the hub
refuses asks the hub why, over HTTPS, and says so in its log and in status. Is it
suspended or not registered yet, it tries again within a minute, then more and more
slowly up to every quarter of an hour; is it revoked, it tries every 5 to 15 minutes.

The certificate is renewed at two thirds of its lifetime, or when the hub asks for it,
for a new key in the TPM or file where the old one is. The old one stays in DIR until
the hub has taken the new.

The TLS session is saved in DIR, so that the first connect after a reboot is a
resumption too: sealed by the machine's TPM 2.0 if it has one, else as a file
like the key's. The TLS profiles: constrained is TLS 1.3 with P-256 and nothing
else, default offers X25519 and speaks TLS 1.2 too, pq adds X25519MLKEM768, which
the hub takes with mqtt.tls_profile: pq.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := link.CheckAddress(config.Hub); err != nil {
				return command.Errorf(command.Usage, "--hub: %w", err)
			}
			if config.Interval < minInterval {
				return command.Errorf(command.Usage, "--interval %s is too short; the least is %s", config.Interval, minInterval)
			}
			if config.RefusedRetry < minInterval {
				return command.Errorf(command.Usage, "--refused-retry %s is too short; the least is %s", config.RefusedRetry, minInterval)
			}
			if err := agent.CheckTPM(config.TPM); err != nil {
				return command.Errorf(command.Usage, "--tpm: %w", err)
			}
			config.HTTPS = agent.RenewalURL(config.Hub)
			switch config.Renewal {
			case "":
				config.Renewal = config.HTTPS
			case "off":
				config.Renewal = ""
			default:
				if err := agent.CheckRenewal(config.Renewal); err != nil {
					return command.Errorf(command.Usage, "--renewal: %w", err)
				}
				config.HTTPS = config.Renewal
			}
			var err error
			if config.Profile, err = mtls.ParseProfile(profile); err != nil {
				return command.Errorf(command.Usage, "--tls-profile: %w", err)
			}
			config.Log = newLog(c.ErrOrStderr(), output)
			a, err := agent.New(config)
			if err != nil {
				return credentialError(err)
			}
			return a.Run(c.Context())
		},
	}
	flags := c.Flags()
	flags.StringVar(&config.Dir, "dir", "", "credential `folder` with device.key, device.crt and ca.crt")
	flags.StringVar(&config.Hub, "hub", "", "the hub's MQTT listener, `HOST:PORT`")
	flags.DurationVar(&config.Interval, "interval", 10*time.Second, "`time` between two readings")
	flags.DurationVar(&config.RefusedRetry, "refused-retry", 5*time.Minute, "least `time` before a refused device asks again; the most is three times that")
	flags.StringVar(&config.TPM, "tpm", agent.TPMAuto, "what seals the saved TLS session: auto, off or the `address` of a TPM")
	flags.StringVar(&config.Renewal, "renewal", "", "`URL` of the hub's HTTPS door, where the certificate is renewed, or off (default https://HOST:8443 with the host of --hub)")
	flags.StringVar(&profile, "tls-profile", string(mtls.ProfileDefault), "default, constrained or pq")
	for _, name := range []string{"dir", "hub"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(fmt.Sprintf("flag %s: %v", name, err)) // it isn't defined above
		}
	}
	return c
}

// credentialError gives err, about a credential folder, its exit code.
func credentialError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return command.WithCode(command.NotFound, err)
	}
	return command.WithCode(command.BadConfig, err)
}

// newLog writes to w, for a person or, with --output json, for a program.
func newLog(w io.Writer, output *command.Output) *slog.Logger {
	if output.JSON() {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}
