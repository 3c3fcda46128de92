// Package agent is the device agent put together: one credential folder, one
// link to the hub, this machine's readings, and a status file from which
// `device-agent status` says how it is going.
//
// Each part runs in a loop of its own that is restarted if it fails; all end
// when the context of [Agent.Run] does.
package agent

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/renewal"
	"github.com/fleethub/fleethub/device-agent/telemetry"
)

// Config is what an [Agent] needs. Dir and Hub are required.
type Config struct {
	// Dir is the credential folder. The agent holds a lock on it while it
	// runs, and keeps status.json there.
	Dir string

	// Hub is the HOST:PORT of the hub's MQTT listener.
	Hub string

	// Interval is the time between two readings [10 s].
	Interval time.Duration

	// RefusedRetry is as in [link.Config].
	RefusedRetry time.Duration

	// TPM is what seals the saved TLS session: [TPMAuto], [TPMOff] or the
	// address of a TPM [TPMAuto]. Without one the session is a file that only
	// this user can read, like the key; with one that fails it isn't saved.
	TPM string

	// HTTPS is the https://HOST:PORT of the hub's HTTPS door, where the device asks why it
	// was refused; "" asks nobody.
	HTTPS string

	// StableAfter is as in [link.Config].
	StableAfter time.Duration

	// Renewal is the https://HOST:PORT at which the certificate is renewed by EST, the
	// hub's HTTPS door; "" is nowhere: then somebody else renews it.
	Renewal string

	// Profile is the TLS policy [mtls.ProfileDefault].
	Profile mtls.Profile

	// Root is the file system that has proc and sys. Nil is the machine's.
	Root fs.FS

	// Log gets what happens. Nil is silent.
	Log *slog.Logger
}

// Agent is one device's agent. Run drives it.
type Agent struct {
	config   Config
	keys     *keystore.Keystore
	lock     *folderLock
	source   *telemetry.Source
	tickets  *ticketStore
	link     *link.Link
	relink   atomic.Pointer[context.CancelFunc] // ends the link's run, for the next one; nil before the first
	renewal  *renewal.Loop                      // nil: Config.Renewal is ""
	inquiry  inquiry
	reporter *reporter
	status   *statusWriter
	notifier notifier
	started  time.Time
}

// New loads the credentials and takes the folder's lock, which Run releases.
// Its error says what to do.
func New(config Config) (*Agent, error) {
	if config.Interval <= 0 {
		config.Interval = 10 * time.Second
	}
	if config.TPM == "" {
		config.TPM = TPMAuto
	}
	if config.Profile == "" {
		config.Profile = mtls.ProfileDefault
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Root == nil {
		config.Root = os.DirFS("/")
	}
	keys, err := keystore.Open(config.Dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{config: config, keys: keys, started: time.Now()}
	a.source = telemetry.New(telemetry.Config{Root: config.Root})
	a.reporter = newReporter(keys.Identity().ID, config.Interval, a.source)
	a.tickets = newTicketStore(&config)
	if config.Renewal != "" {
		a.renewal = newRenewal(&config, a.reconnect)
	}
	a.link, err = link.New(link.Config{
		Address:      config.Hub,
		Credentials:  a.credentials,
		Sessions:     a.tickets.open,
		Chain:        keystore.OpenChain(filepath.Join(config.Dir, chainFile), config.Hub, config.Log),
		Profile:      config.Profile,
		Boot:         a.source.Boot(),
		RefusedRetry: config.RefusedRetry,
		StableAfter:  config.StableAfter,
		Ask:          a.ask,
		RenewalDue:   a.renewalDue(),
		Changed:      a.linkChanged,
		Log:          config.Log,
	})
	if err != nil {
		return nil, err
	}
	a.reporter.publish = a.link.Publish
	a.status = newStatusWriter(config.Dir, a.snapshot, config.Log)
	a.reporter.first = a.status.poke
	if a.lock, err = lockFolder(config.Dir); err != nil {
		return nil, err
	}
	return a, nil
}

// Identity returns who the agent's certificate says it is.
func (a *Agent) Identity() identity.Identity { return a.keys.Identity() }

// Run works until ctx ends, then says goodbye to the hub, writes a last
// status and releases the folder. It returns nil.
func (a *Agent) Run(ctx context.Context) error {
	defer a.lock.release()
	log := a.config.Log
	log.Info("starting", "device", a.Identity().String(), "fingerprint", a.keys.Fingerprint(), "hub", a.config.Hub, "interval", a.config.Interval)
	if err := a.keys.CheckValidity(time.Now()); err != nil {
		log.Error(err.Error())
	}
	var loops sync.WaitGroup
	run := map[string]func(context.Context) error{
		"link":      a.runLink,
		"telemetry": a.reporter.run,
		"status":    a.status.run,
		"watchdog":  func(ctx context.Context) error { return a.notifier.watchdog(ctx, a.alive) },
	}
	if a.renewal != nil {
		run["renewal"] = a.renewal.Run
	}
	for name, loop := range run {
		loops.Go(func() { supervise(ctx, log.With("loop", name), loop) })
	}
	// Ready means that the loops run. Waiting for the hub would have systemd
	// restart an agent that has no network yet.
	a.notifier.ready(a.Identity().ID)
	<-ctx.Done()
	a.notifier.stopping()
	loops.Wait()
	a.status.write() // the link is stopped now, and that is what stays to read
	log.Info("stopped")
	return nil
}

// alive reports whether the loops still turn: it comes back only if their
// locks do.
func (a *Agent) alive() bool {
	a.link.Status()
	a.reporter.counts()
	return true
}

// credentials reads the folder again for each attempt to connect, so that a
// device provisioned anew needs no restart. While the files are unusable the
// agent goes on with those it has; it never becomes another device.
func (a *Agent) credentials() (mtls.Credentials, error) {
	keys := a.offered()
	var err error
	if keys == nil {
		keys, err = keystore.Open(a.config.Dir)
	}
	if err != nil {
		a.config.Log.Warn("using the credentials loaded at the start", "err", err)
		a.inquiry.cred = a.keys.Credentials()
		return a.inquiry.cred, nil
	}
	if keys.Identity().String() != a.Identity().String() {
		return mtls.Credentials{}, fmt.Errorf("%s now holds the certificate of %s, but this agent runs for %s; restart it to run for the other", a.config.Dir, keys.Identity(), a.Identity())
	}
	a.inquiry.cred = keys.Credentials()
	return a.inquiry.cred, nil
}

// linkChanged passes on what the link is doing; it doesn't block.
func (a *Agent) linkChanged(now link.Status) {
	a.tellRenewal(now)
	switch now.State {
	case link.StateConnected:
		a.reporter.connected()
		a.notifier.status("connected to " + now.Hub)
	case link.StateWaiting:
		a.notifier.status(now.LastFailure.Reason)
	}
	if now.State != link.StateConnecting { // an attempt that has only begun is no news
		a.status.poke()
	}
}
