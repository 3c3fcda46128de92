// Package server puts the hub together: it alone imports every room of it, decides
// who needs whom, and in which order they start and stop.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/admission"
	"github.com/fleethub/fleethub/hub/authority"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/broker"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/misuse"
	"github.com/fleethub/fleethub/hub/session"
	"github.com/fleethub/fleethub/hub/status"
	"github.com/fleethub/fleethub/hub/ticket"
	"github.com/fleethub/fleethub/hub/why"
)

// ticketFile is where the ring of ticket keys is kept in a hub's folder.
const ticketFile = "tickets.json"

// drainTimeout bounds the orderly end: what is not done by then is cut.
const drainTimeout = 10 * time.Second

// Hub is one running hub. Two in one process share nothing.
type Hub struct {
	config  Config
	filed   Config // as hub.yaml and the environment said at the start; config has the flags, too
	now     func() time.Time
	started time.Time
	log     *slog.Logger
	level   slog.LevelVar
	metrics *metrics
	account *account
	ready   atomic.Bool

	refusing atomic.Bool // the journal takes no writes

	trusting    sync.Mutex // held by changes of trust, over their files and the cutting of connections
	verifier    *mtls.Verifier
	certificate *mtls.Reloader
	keys        *keyring
	cas         authority.Folder
	leafOnly    atomic.Bool // present no issuer: see presented
	store       *boltstore.Store
	journal     *journal.Journal
	fleet       *fleet.Fleet
	sessions    *session.Table
	admission   *admission.Admission
	tickets     *ticket.Ring
	codec       *ticket.Codec
	broker      *broker.Broker
	policies    policies
	consumers   *consumer.Consumers
	sinks       *consumer.Sinks
	settling    chan string // devices that have connected after a renewal
	tpms        *attestation.Verifier
	demands     demands
	newcomers   newcomers
	book        *why.Book
	misuse      *misuse.Watch
	anomalies   chan misuse.Anomaly // wait for the audit log
	status      *status.Publisher
	foreign     *status.Foreign
	statusDoor  *http.Server // nil if there is none
	mqtt        *listener.Listener
	tokens      *admin.Tokens // nil if none are taken
	api         *http.Server
	health      *http.Server

	keyLog   io.Closer // nil but in builds that log TLS secrets
	endpoint Endpoint
	failed   chan error // one slot; the first listener that fails fills it
	stop     context.CancelFunc
	running  sync.WaitGroup // the goroutines that Start began
	closing  sync.Once
}

// New reads everything a hub of that configuration needs and opens its store. It
// listens nowhere yet: Start does. Close it in any case. What is wrong with the
// configuration or the files it names carries the exit code for that.
func New(config Config, logTo io.Writer) (*Hub, error) {
	if err := config.Check(); err != nil {
		return nil, command.WithCode(command.BadConfig, err)
	}
	h := &Hub{config: config, now: config.Now, metrics: newMetrics(), sessions: &session.Table{}, settling: make(chan string, settlingQueue), failed: make(chan error, 1), stop: func() {}}
	if h.now == nil {
		h.now = time.Now
	}
	h.started = h.now()
	if filed, err := LoadConfig(config.Dir, os.Environ()); err == nil { // else there is nothing to compare a reload with
		h.filed = filed
	}
	level, err := parseLevel(config.Log.Level)
	if err != nil {
		return nil, err
	}
	h.level.Set(level)
	h.demands.current.Store(&config.KeyProtection)
	h.newcomers.set(config)
	h.log = newLogger(logTo, config.Log.Format, &h.level)
	h.keys = newKeyring(config, h.now, h.log)
	h.cas = authority.In(config.Dir, h.keys)
	if err := h.load(); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// loadGC is the garbage collector's target while the stores are read, nearly all of
// which stays: looking through it again and again took a third of the time.
const loadGC = 1000

// load builds the rooms from the ground up.
func (h *Hub) load() error {
	if before := debug.SetGCPercent(loadGC); before >= 0 && before < loadGC {
		defer debug.SetGCPercent(before)
	} else {
		debug.SetGCPercent(before)
	}
	// Whom we trust and who we are: nothing works without, and a mistake in it is
	// better told before the store is touched.
	trust, err := loadTrust(h.config.Dir, h.config.TrustDomain)
	if err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	if h.verifier, err = mtls.NewVerifier(trust, h.now); err != nil {
		return command.WithCode(command.BadConfig, fmt.Errorf("trust in %s: %w", h.config.Dir, err))
	}
	if h.certificate, err = mtls.NewReloader(h.serverFile(".crt"), h.serverFile(".key")); err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	if err := h.renewCertificate(h.now()); err != nil {
		h.log.Error("server certificate not renewed", "error", err)
	}
	h.decideChain()
	if err := h.checkCertificate(h.now()); err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	if err := h.loadPolicy(); err != nil {
		return err
	}
	if err := h.openTokens(); err != nil {
		return err
	}
	// The fleet before anyone who admits, the sessions before the fleet: it must be
	// able to cut them from its first revocation.
	if h.store, err = boltstore.Open(filepath.Join(h.config.Dir, storeFile)); err != nil {
		return err
	}
	h.fleet, err = fleet.Open(fleet.Config{
		Store: h.store, Sessions: deviceSessions{h}, TrustDomain: h.config.TrustDomain,
		Roots:   func() []*x509.Certificate { return h.verifier.Trust().Roots },
		Issuers: func() []*x509.Certificate { return h.verifier.Trust().Issuers }, BeforeImport: h.refreshTrust,
		NeedsTPM: h.demands.needsTPM, Quarantine: h.newcomers.waiting,
		Sign: h.signReceipt, FourEyesOver: h.config.Operations.FourEyesOver, Changed: h.relabelled,
		Now: h.now, Log: h.log,
	})
	if err != nil {
		return err
	}
	allow := h.config.Allow
	if allow == nil {
		allow = h.policies.current.Allow
	}
	if err := h.openStatus(); err != nil {
		return err
	}
	h.admission = admission.New(h.fleet, allow)
	h.account = newAccount(h.fleet, h.now, maxAccounts)
	observer := observer{h.metrics, h.account}
	h.book = why.NewBook(0, 0, h.now)
	h.openMisuse()
	state, err := h.openJournal()
	if err != nil {
		return err
	}
	h.broker, err = broker.New(broker.Config{
		Devices: h.fleet, Allow: allow, Attributes: h.attributes, Journal: h.journal, State: state, Sessions: h.sessions, Seen: h.seen, MaxPacketSize: h.config.MQTT.MaxPacketSize,
		Quotas: h.config.MQTT.Quotas.broker(), CheckpointAfter: int64(h.config.Journal.CheckpointAfter),
		OnRefused: observer.OnRefused, Observer: watchman{chronicle{h}}, Now: h.now, Log: h.log,
	})
	if err != nil {
		return err
	}
	// The policy may have changed while the hub was down.
	if err := h.policies.revise(context.Background(), new(admin.PolicyReload)); err != nil {
		return err
	}
	if err := h.openConsumers(context.Background()); err != nil {
		return err
	}
	if h.tickets, err = ticket.OpenRing(filepath.Join(h.config.Dir, ticketFile), ticket.Config{Lifetime: h.config.MQTT.TicketLifetime, Now: h.now}); err != nil {
		return command.WithCode(command.BadConfig, err)
	}
	h.codec = ticket.New(h.tickets, h.fleet, h.now)
	mqttTLS := mtls.ServerConfig(mtls.ServerOptions{Certificate: h.presented, Profile: mtls.Profile(h.config.MQTT.TLSProfile)})
	mqttTLS.Time = h.now
	h.codec.Install(mqttTLS)
	if h.keyLog, err = openKeyLog(mqttTLS, h.log); err != nil {
		return err
	}
	h.mqtt = listener.New(listener.Config{
		TLS:              mqttTLS,
		Verify:           h.verifyMQTT,
		Handle:           h.serveMQTT,
		HandshakeTimeout: h.config.MQTT.HandshakeTimeout,
		ConnectTimeout:   h.config.MQTT.ConnectTimeout,
		MaxConnections:   h.config.MQTT.MaxConnections,
		Limits:           h.config.MQTT.Limits.listener(),
		Observer:         doorObserver{observer, chronicle{h}},
		Log:              h.log,
	})
	h.api = admin.NewServer(admin.Config{
		Fleet: h.fleet, Verifier: h.verifier, Watch: h.watch, Live: h.live, Backup: h.Backup, Handshakes: h.account.of, Log: h.log,
		Consumers: h.consumers, Sinks: h.sinks, Policies: &h.policies, Issuers: issuers{h}, Lists: lists{h}, Why: h.why, Anomalies: h.anomaliesOf, Tickets: h.tickets, TicketStats: &h.codec.Stats, Started: h.started, Answers: h.store, Tokens: h.tokens, Now: h.now,
	}, h.apiTLS())
	if h.tpms, err = h.newTPMVerifier(); err != nil {
		return err
	}
	if h.api.Handler, err = h.withConsole(h.api.Handler); err != nil {
		return err
	}
	h.api.Handler = withEST(h.newEST(), h.api.Handler)
	h.api.Handler = h.withStatus(h.withWhy(h.api.Handler))
	if h.config.Status.Addr != "" {
		h.statusDoor = h.newStatusDoor()
	}
	h.health = newMetricsServer(h.metrics, h.unready)
	h.registerMetrics()
	return nil
}

// verifyMQTT admits devices and services. It runs inside every handshake, full or
// resumed.
func (h *Hub) verifyMQTT(cs tls.ConnectionState) (mtls.Peer, error) {
	peer, err := h.verifier.Verify(cs, identity.RoleDevice, identity.RoleService)
	if err != nil {
		return peer, err
	}
	if err := h.refusedByList(peer); err != nil {
		return peer, err
	}
	if err := h.admission.Check(peer); err != nil {
		return peer, h.verifyUnknown(peer, err)
	}
	return peer, nil
}

// verifyAPI lets in whoever is of this fleet, likewise, and whoever shows no certificate.
// What is behind it asks each request for the certificate it needs, and says what it
// misses: an alert could not.
func (h *Hub) verifyAPI(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	_, err := h.verifier.Verify(cs, identity.RoleOperator, identity.RoleService, identity.RoleDevice, identity.RoleStation)
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok {
		if h.inGrace(cs.PeerCertificates[0], refusal) {
			return nil
		}
		h.metrics.refused.WithLabelValues("api-" + string(refusal.Reason)).Inc()
		h.log.Warn("API connection refused", "reason", refusal.Reason, "detail", refusal.Detail)
		if refusal.Identity.Role == identity.RoleDevice && refusal.Identity.ID != "" { // it came to renew, beyond the grace for instance
			chronicle{h}.note(refusal.Identity, why.Event{Kind: why.NotRenewed, Reason: string(refusal.Reason), Detail: refusal.Detail, Own: true})
		}
	}
	return err
}

// deviceSessions is the broker as the fleet sees it: the fleet is made first, because
// the broker asks it who may connect.
type deviceSessions struct{ h *Hub }

// DisconnectMany implements fleet.Sessions.
func (d deviceSessions) DisconnectMany(ctx context.Context, ids []string, reason string) []fleet.Closed {
	d.h.status.Changed()
	closed := make([]fleet.Closed, 0, len(ids))
	for _, c := range d.h.broker.DisconnectMany(ctx, ids, reason) {
		closed = append(closed, fleet.Closed{ID: c.ID, Sessions: c.Sessions, At: c.At, LastPacket: c.LastPacket})
	}
	return closed
}

// watch feeds the operators' watch from the broker.
func (h *Hub) watch(ctx context.Context, filter string, deliver func(admin.Message)) error {
	return h.broker.Watch(ctx, filter, func(m broker.Message) {
		deliver(admin.Message{Time: m.Time, Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retained: m.Retained, Dropped: m.Missed})
	})
}

// live returns a device's live connection.
func (h *Hub) live(id string) (admin.Session, bool) {
	c, ok := h.broker.Live(id)
	if !ok {
		return admin.Session{}, false
	}
	return admin.Session{
		ClientID: id, Address: c.Address, ConnectedAt: c.Since, Resumed: c.Resumed,
		TLS: tls.VersionName(c.Version), Suite: tls.CipherSuiteName(c.Suite), Curve: c.Curve.String(),
	}, true
}

// Start opens the three doors, then says so in run/hub.json and to systemd. When it
// returns nil, everything answers.
func (h *Hub) Start() error {
	h.checkFileLimit()
	mqtt, err := listen(h.config.MQTT.Addr, "mqtt-addr")
	if err != nil {
		return err
	}
	https, err := listen(h.config.HTTPS.Addr, "https-addr")
	if err != nil {
		mqtt.Close()
		return err
	}
	metrics, err := listen(h.config.Metrics.Addr, "metrics-addr")
	if err != nil {
		mqtt.Close()
		https.Close()
		return err
	}
	var statusDoor net.Listener
	if h.statusDoor != nil {
		if statusDoor, err = listen(h.config.Status.Addr, "status-addr"); err != nil {
			mqtt.Close()
			https.Close()
			metrics.Close()
			return err
		}
	}
	h.endpoint = Endpoint{PID: os.Getpid(), MQTT: mqtt.Addr().String(), HTTPS: https.Addr().String(), Metrics: metrics.Addr().String()}
	if statusDoor != nil {
		h.endpoint.Status = statusDoor.Addr().String()
		h.running.Go(func() { h.fail("status", h.statusDoor.Serve(statusDoor)) })
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	h.sinks.Start()
	h.running.Go(func() { h.fail("MQTT", h.mqtt.Serve(mqtt)) })
	h.running.Go(func() { h.fail("HTTPS", h.api.ServeTLS(https, "", "")) })
	h.running.Go(func() { h.fail("metrics", h.health.Serve(metrics)) })
	h.running.Go(func() { h.keepFresh(ctx) })
	h.running.Go(func() { h.status.Run(ctx) })
	h.running.Go(func() { h.watchForeign(ctx) })
	h.running.Go(func() { h.recordAnomalies(ctx) })
	h.running.Go(func() { h.settleRenewals(ctx) })
	h.running.Go(func() { watchdog(ctx) })
	h.running.Go(func() { tidy(ctx) })
	if err := h.writeEndpoint(); err != nil {
		return err
	}
	h.ready.Store(true)
	h.log.Info("hub ready", "mqtt", h.endpoint.MQTT, "https", h.endpoint.HTTPS, "metrics", h.endpoint.Metrics,
		"devices", h.fleet.Len(), "issuers", len(h.verifier.Trust().Issuers), "commit", command.Commit())
	daemon.SdNotify(false, daemon.SdNotifyReady) // no systemd, no error worth a word
	return nil
}

// Endpoint returns where the hub listens, after Start.
func (h *Hub) Endpoint() Endpoint { return h.endpoint }

// Fleet returns the hub's registry, for tests that look behind the API.
func (h *Hub) Fleet() *fleet.Fleet { return h.fleet }

// Failed delivers the error of a listener that ended by itself.
func (h *Hub) Failed() <-chan error { return h.failed }

func (h *Hub) fail(door string, err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) {
		return
	}
	select {
	case h.failed <- fmt.Errorf("%s listener: %w", door, err):
	default:
	}
}

// Close ends the hub in the reverse order of its start: no new connections, then none,
// then the rooms below them. It is safe to call more than once, and before Start.
func (h *Hub) Close() {
	h.closing.Do(func() {
		h.ready.Store(false)
		daemon.SdNotify(false, daemon.SdNotifyStopping)
		h.stop()
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		if h.api != nil {
			if h.api.Shutdown(ctx) != nil {
				h.api.Close()
			}
		}
		if h.tokens != nil {
			h.tokens.Close()
		}
		if h.broker != nil {
			if err := h.broker.Close(); err != nil { // before the listener: it says goodbye
				h.log.Error("broker not closed", "error", err)
			}
		}
		if h.mqtt != nil {
			h.mqtt.Close()
		}
		if h.health != nil {
			h.health.Close()
		}
		if h.statusDoor != nil {
			h.statusDoor.Close()
		}
		h.running.Wait()
		if h.sinks != nil {
			h.sinks.Close()
		}
		if h.journal != nil {
			if err := h.journal.Close(); err != nil {
				h.log.Error("journal not closed", "error", err)
			}
		}
		if h.fleet != nil {
			h.fleet.Close()
		}
		if h.store != nil {
			if err := h.store.Close(); err != nil {
				h.log.Error("store not closed", "error", err)
			}
		}
		if h.keyLog != nil {
			h.keyLog.Close()
		}
		if h.endpoint.PID != 0 {
			os.Remove(EndpointFile(h.config.Dir))
			h.log.Info("hub stopped")
		}
	})
}

// listen opens a TCP port; one that is taken is named with its flag.
func listen(addr, flag string) (net.Listener, error) {
	l, err := (&net.ListenConfig{KeepAlive: -1, Control: keepAlive}).Listen(context.Background(), "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is in use by another program: stop that one, or choose another address with --%s", addr, flag)
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("this machine has no address %s: choose one of its own with --%s, or :PORT for all of them", addr, flag)
	}
	if errors.Is(err, syscall.EACCES) {
		return nil, fmt.Errorf("this user may not open %s: choose a port from 1024 on with --%s, or give the program CAP_NET_BIND_SERVICE", addr, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w", flag, addr, err)
	}
	return l, nil
}

// checkFileLimit says so if there are fewer file descriptors (Go has raised the soft
// limit to the hard one) than the connections configured.
func (h *Hub) checkFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return
	}
	const spare = 256 // store, API, metrics, the process itself
	if limit.Cur < uint64(h.config.MQTT.MaxConnections)+spare {
		h.log.Warn("fewer file descriptors than mqtt.max_connections asks for: raise LimitNOFILE (ulimit -n)", "descriptors", limit.Cur, "max_connections", h.config.MQTT.MaxConnections)
	}
}

// watchdog tells systemd that we live, at half the interval it asks for.
func watchdog(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return
		}
	}
}
