package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/server"
)

func newServe() *cobra.Command {
	var dir, mqttAddr, httpsAddr, metricsAddr, statusAddr string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the hub until SIGTERM or Ctrl-C",
		Long: `Runs the hub: MQTT over mutual TLS, the operators' HTTPS API, and metrics. SIGHUP
reloads certificates, issuers, the policy and what hub.yaml marks as reloaded; SIGTERM
closes every connection in order and ends. Under systemd it reports when it is ready.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := loadConfig(dir)
			if err != nil {
				return err
			}
			for _, f := range []struct {
				name  string
				value string
				into  *string
			}{{"mqtt-addr", mqttAddr, &config.MQTT.Addr}, {"https-addr", httpsAddr, &config.HTTPS.Addr}, {"metrics-addr", metricsAddr, &config.Metrics.Addr}, {"status-addr", statusAddr, &config.Status.Addr}} {
				if !c.Flags().Changed(f.name) {
					continue
				}
				if err := server.CheckAddress(f.value); err != nil {
					return command.Errorf(command.Usage, "--%s: %w", f.name, err)
				}
				*f.into = f.value
			}
			if err := config.Check(); err != nil {
				return command.WithCode(command.BadConfig, err)
			}
			return serve(c.Context(), config)
		},
	}
	dirFlag(c, &dir)
	defaults := server.DefaultConfig("")
	c.Flags().StringVar(&mqttAddr, "mqtt-addr", defaults.MQTT.Addr, "`HOST:PORT` for devices and services")
	c.Flags().StringVar(&httpsAddr, "https-addr", defaults.HTTPS.Addr, "`HOST:PORT` for operators")
	c.Flags().StringVar(&metricsAddr, "metrics-addr", defaults.Metrics.Addr, "`HOST:PORT` for /metrics, /livez and /readyz, in plain HTTP")
	c.Flags().StringVar(&statusAddr, "status-addr", defaults.Status.Addr, "`HOST:PORT` for CRLs and OCSP, in plain HTTP (default none)")
	return c
}

// gcPercent trades memory for processor time: a hub's heap is mostly sessions that
// stay. GOGC in the environment has precedence.
const gcPercent = 400

// serve runs the hub until ctx ends or it fails.
func serve(ctx context.Context, config server.Config) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	hub, err := server.New(config, os.Stderr)
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := hub.Start(); err != nil {
		return err
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	for {
		select {
		case <-reload:
			hub.Reload()
		case err := <-hub.Failed():
			return err
		case <-ctx.Done():
			return nil
		}
	}
}
