package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/broker"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/journal"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/ticket"
)

// Config is everything a hub can be told. Its zero value is not useful: start from
// DefaultConfig or LoadConfig. The yaml tags are the keys of hub.yaml, and, in
// capitals and joined by two underscores, the environment variables
// (FLEETHUB_MQTT__ADDR). The shipped hub.yaml (hub init writes it) explains each.
type Config struct {
	// Dir is the hub's folder: certificates, store, run-time files. Not in the file,
	// which lies in it.
	Dir string `yaml:"-"`

	TrustDomain string        `yaml:"trust_domain"`
	MQTT        MQTTConfig    `yaml:"mqtt"`
	HTTPS       HTTPSConfig   `yaml:"https"`
	Metrics     MetricsConfig `yaml:"metrics"`

	IssuingKey IssuingKeyConfig `yaml:"issuing_key"`
	Policy     PolicyConfig     `yaml:"policy"`
	Renewal    RenewalConfig    `yaml:"renewal"`
	Operations OperationsConfig `yaml:"operations"`
	OIDC       OIDCConfig       `yaml:"oidc"`
	Status     StatusConfig     `yaml:"status"`
	Misuse     MisuseConfig     `yaml:"misuse"`
	Journal    JournalConfig    `yaml:"journal"`
	Log        LogConfig        `yaml:"log"`

	Sinks []consumer.SinkConfig `yaml:"sinks"` // not in the environment

	KeyProtection KeyProtectionConfig `yaml:"key_protection"`

	Admission  string           `yaml:"admission"` // registered or just-in-time
	JustInTime JustInTimeConfig `yaml:"just_in_time"`

	// Passphrase returns the passphrase or PIN of the key in that file of ca/; nil:
	// systemd's credentials have it (see IssuingKeyConfig.Source). It is called from
	// several goroutines, and its answer overwritten.
	Passphrase func(path string) ([]byte, error) `yaml:"-"`
	// Now is the hub's clock; nil is time.Now. For tests.
	Now func() time.Time `yaml:"-"`
	// Allow is the policy; nil is that of Policy. For tests.
	Allow func(policy.Subject, policy.Action, string) policy.Decision `yaml:"-"`
	// JournalFS is the journal's file system; nil is the real one. For tests of failing disks.
	JournalFS journal.FS `yaml:"-"`
}

// MQTTConfig is the device door.
type MQTTConfig struct {
	Addr             string        `yaml:"addr"`
	MaxConnections   int           `yaml:"max_connections"`
	MaxPacketSize    int           `yaml:"max_packet_size"` // bytes
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`
	ConnectTimeout   time.Duration `yaml:"connect_timeout"`
	TLSProfile       string        `yaml:"tls_profile"`
	TicketLifetime   time.Duration `yaml:"ticket_lifetime"`
	Limits           LimitsConfig  `yaml:"limits"`
	Quotas           QuotasConfig  `yaml:"quotas"`
}

// QuotasConfig bounds what one client can make the hub hold: see broker.Quotas. Zero is
// the default.
type QuotasConfig struct {
	QueuedMessages   int `yaml:"queued_messages"`
	QueuedBytes      int `yaml:"queued_bytes"`
	TotalQueuedBytes int `yaml:"total_queued_bytes"`
	Subscriptions    int `yaml:"subscriptions"`
	Inflight         int `yaml:"inflight"`
	ReceiveMaximum   int `yaml:"receive_maximum"`
	PublishRate      int `yaml:"publish_rate"` // per second
}

// LimitsConfig bounds what handshakes may cost: see listener.Limits. Zero is the
// default that fits the machine's cores and max_connections.
type LimitsConfig struct {
	HandshakesAtOnce int           `yaml:"handshakes_at_once"`
	FullQueue        int           `yaml:"full_queue"`
	ResumedQueue     int           `yaml:"resumed_queue"`
	QueueWait        time.Duration `yaml:"queue_wait"`
	AddressBurst     int           `yaml:"address_burst"`
	AddressRate      int           `yaml:"address_rate"` // per second
	IssuerBurst      int           `yaml:"issuer_burst"`
	IssuerRate       int           `yaml:"issuer_rate"` // per second
	DeviceBurst      int           `yaml:"device_burst"`
	DeviceRate       int           `yaml:"device_rate"` // per second
}

// JournalConfig is where messages and sessions are kept.
type JournalConfig struct {
	RetainBytes int           `yaml:"retain_bytes"` // of messages that only readers of the journal want
	RetainAge   time.Duration `yaml:"retain_age"`   // likewise
	SegmentSize int           `yaml:"segment_size"` // bytes of one file
	// CheckpointAfter is how many bytes are written before sessions are written anew.
	CheckpointAfter int `yaml:"checkpoint_after"`
}

// HTTPSConfig is the operators' door.
type HTTPSConfig struct {
	Addr string `yaml:"addr"`
}

// PolicyConfig says who may use which topic.
type PolicyConfig struct {
	// File is the policy's file, relative to Dir. "": PolicyFile if there is one, else
	// the rules built in.
	File string `yaml:"file"`
}

// RenewalConfig is how devices renew their certificates.
type RenewalConfig struct {
	Lifetime time.Duration `yaml:"lifetime"` // of a certificate that the hub issues
	Grace    time.Duration `yaml:"grace"`    // how long after its end a certificate may still be renewed
}

// OperationsConfig is how operators work.
type OperationsConfig struct {
	FourEyesOver int `yaml:"four_eyes_over"` // devices; 0: one operator is always enough
}

// MetricsConfig is the monitoring door: plain HTTP, so loopback only unless told
// otherwise.
type MetricsConfig struct {
	Addr string `yaml:"addr"`
}

// LogConfig says what is logged to standard error, and how.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// ConfigFile is the name of the configuration file in a hub's folder.
const ConfigFile = "hub.yaml"

// envPrefix begins every environment variable that is a setting.
const envPrefix = "FLEETHUB_"

// DefaultConfig returns the defaults for a hub in dir.
func DefaultConfig(dir string) Config {
	return Config{
		Dir:         dir,
		TrustDomain: "fleet.example",
		MQTT: MQTTConfig{
			Addr:             ":8883",
			MaxConnections:   15000,
			MaxPacketSize:    256 << 10,
			HandshakeTimeout: 5 * time.Second,
			ConnectTimeout:   10 * time.Second,
			TLSProfile:       string(mtls.ProfileDefault),
			TicketLifetime:   ticket.DefaultLifetime,
			Limits:           LimitsConfig{QueueWait: 10 * time.Second},
		},
		HTTPS:      HTTPSConfig{Addr: ":8443"},
		Metrics:    MetricsConfig{Addr: "127.0.0.1:9464"},
		IssuingKey: IssuingKeyConfig{Credential: "operational.key" + cakey.CredentialSuffix},
		Renewal:    RenewalConfig{Lifetime: 365 * 24 * time.Hour, Grace: 30 * 24 * time.Hour},
		Journal:    JournalConfig{RetainBytes: 1 << 30, RetainAge: 7 * 24 * time.Hour, SegmentSize: 64 << 20, CheckpointAfter: 64 << 20},
		Log:        LogConfig{Level: "info", Format: "text"},
		Status:     StatusConfig{ListLifetime: 24 * time.Hour, AnswerLifetime: time.Hour},
		Admission:  admitRegistered,
		JustInTime: JustInTimeConfig{Activate: []string{}, Waiting: fleet.DefaultQuarantine},
		Misuse:     MisuseConfig{HalfLife: 10 * time.Minute, Suspend: suspendNever},
	}
}

// LoadConfig reads dir/hub.yaml over the defaults, then the environment (a list of
// KEY=value, as os.Environ returns) over the file. An unknown key in either is an
// error that names it: a mistyped setting must not pass for a set one.
func LoadConfig(dir string, environ []string) (Config, error) {
	c := DefaultConfig(dir)
	path := filepath.Join(dir, ConfigFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%s is missing: run `hub init --dir %s` first, or name the hub's folder with --dir", path, dir)
	}
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
		return c, fmt.Errorf("%s: %s", path, explainYAML(data, err))
	}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		name, ok := strings.CutPrefix(key, envPrefix)
		if !ok || key == TokenVariable {
			continue
		}
		if err := set(reflect.ValueOf(&c).Elem(), strings.Split(strings.ToLower(name), "__"), value); err != nil {
			return c, fmt.Errorf("environment variable %s: %w", key, err)
		}
	}
	if err := c.Check(); err != nil {
		return c, fmt.Errorf("%s or the environment: %w", path, err)
	}
	return c, nil
}

// Check returns an error that names the first setting that can't be used.
func (c Config) Check() error {
	if err := identity.ValidTrustDomain(c.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	for _, a := range []struct{ key, addr string }{{"mqtt.addr", c.MQTT.Addr}, {"https.addr", c.HTTPS.Addr}, {"metrics.addr", c.Metrics.Addr}} {
		if err := CheckAddress(a.addr); err != nil {
			return fmt.Errorf("%s: %w", a.key, err)
		}
	}
	limits, quotas := c.MQTT.Limits, c.MQTT.Quotas
	for _, n := range []struct {
		key            string
		value, low, up int
	}{
		{"operations.four_eyes_over", c.Operations.FourEyesOver, 0, 1 << 30},
		{"mqtt.limits.handshakes_at_once", limits.HandshakesAtOnce, 0, 1 << 16},
		{"mqtt.limits.full_queue", limits.FullQueue, 0, 1 << 20},
		{"mqtt.limits.resumed_queue", limits.ResumedQueue, 0, 1 << 20},
		{"mqtt.limits.queue_wait (ms)", int(limits.QueueWait.Milliseconds()), 100, 60_000},
		{"mqtt.limits.address_burst", limits.AddressBurst, 0, 1 << 20},
		{"mqtt.limits.address_rate", limits.AddressRate, 0, 1 << 20},
		{"mqtt.limits.issuer_burst", limits.IssuerBurst, 0, 1 << 20},
		{"mqtt.limits.issuer_rate", limits.IssuerRate, 0, 1 << 20},
		{"mqtt.limits.device_burst", limits.DeviceBurst, 0, 1 << 20},
		{"mqtt.limits.device_rate", limits.DeviceRate, 0, 1 << 20},
		{"renewal.lifetime (s)", int(c.Renewal.Lifetime.Seconds()), 600, 10 * 365 * 24 * 3600},
		{"renewal.grace (s)", int(c.Renewal.Grace.Seconds()), 0, 10 * 365 * 24 * 3600},
		{"mqtt.max_connections", c.MQTT.MaxConnections, 1, 1 << 20},
		{"mqtt.max_packet_size", c.MQTT.MaxPacketSize, 1 << 10, 256 << 20},
		{"mqtt.handshake_timeout (ms)", int(c.MQTT.HandshakeTimeout.Milliseconds()), 100, 60_000},
		{"mqtt.connect_timeout (ms)", int(c.MQTT.ConnectTimeout.Milliseconds()), 100, 60_000},
		{"journal.retain_bytes", c.Journal.RetainBytes, 1 << 20, 1 << 50},
		{"journal.retain_age (s)", int(c.Journal.RetainAge.Seconds()), 60, 10 * 365 * 24 * 3600},
		{"journal.checkpoint_after", c.Journal.CheckpointAfter, 64 << 10, 1 << 40},
		{"mqtt.quotas.queued_messages", quotas.QueuedMessages, 0, 65_000},
		{"mqtt.quotas.queued_bytes", quotas.QueuedBytes, 0, 1 << 40},
		{"mqtt.quotas.total_queued_bytes", quotas.TotalQueuedBytes, 0, 1 << 50},
		{"mqtt.quotas.subscriptions", quotas.Subscriptions, 0, 1 << 20},
		{"mqtt.quotas.inflight", quotas.Inflight, 0, 65_535},
		{"mqtt.quotas.receive_maximum", quotas.ReceiveMaximum, 0, 65_535},
		{"mqtt.quotas.publish_rate", quotas.PublishRate, 0, 1 << 30},
		{"journal.segment_size", c.Journal.SegmentSize, 1 << 20, 1 << 34},
		{"mqtt.ticket_lifetime (s)", int(c.MQTT.TicketLifetime.Seconds()), 60, int(ticket.MaxLifetime.Seconds())},
	} {
		if n.value < n.low || n.value > n.up {
			return fmt.Errorf("%s: %d is not between %d and %d", n.key, n.value, n.low, n.up)
		}
	}
	if err := errors.Join(c.IssuingKey.check(), c.OIDC.check(), c.Status.check(), c.Misuse.check(), c.KeyProtection.check(), c.checkAdmission()); err != nil {
		return err
	}
	if err := consumer.CheckSinks(c.Sinks); err != nil {
		return err
	}
	if _, err := mtls.ParseProfile(c.MQTT.TLSProfile); err != nil {
		return fmt.Errorf("mqtt.tls_profile: %w", err)
	}
	if _, err := parseLevel(c.Log.Level); err != nil {
		return err
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return fmt.Errorf("log.format: %q is neither text nor json", c.Log.Format)
	}
	return nil
}

// CheckAddress says what is wrong with an address to listen at, or returns nil.
func CheckAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%.80q is not HOST:PORT or :PORT, with a port up to 65535", addr)
	}
	return nil
}

// set puts a value at a path of yaml keys.
func set(v reflect.Value, path []string, value string) error {
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag.Get("yaml")
		if tag != path[0] || tag == "-" {
			continue
		}
		field := v.Field(i)
		if field.Kind() == reflect.Struct {
			if len(path) == 1 {
				break
			}
			return set(field, path[1:], value)
		}
		if len(path) > 1 {
			break
		}
		return setScalar(field, value)
	}
	return fmt.Errorf("there is no such setting; see %s for the keys", ConfigFile)
}

func setScalar(field reflect.Value, value string) error {
	switch field.Interface().(type) {
	case string:
		field.SetString(value)
	case time.Duration:
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 5s", value)
		}
		field.SetInt(int64(d))
	case int:
		n, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", value)
		}
		field.SetInt(int64(n))
	default:
		return fmt.Errorf("a setting of type %s can't be given here", field.Type())
	}
	return nil
}

// explainYAML returns a decoding error in one line that quotes the line at fault.
func explainYAML(data []byte, err error) string {
	at, ok := errors.AsType[yaml.Error](err)
	if !ok || at.GetToken() == nil {
		return strings.Join(strings.Fields(yaml.FormatError(err, false, false)), " ")
	}
	number := at.GetToken().Position.Line
	lines := strings.Split(string(data), "\n")
	if number < 1 || number > len(lines) {
		return at.GetMessage()
	}
	return fmt.Sprintf("line %d, %.120q: %s", number, strings.TrimSpace(lines[number-1]), at.GetMessage())
}

// broker returns the quotas in the terms of the broker.
func (q QuotasConfig) broker() broker.Quotas {
	return broker.Quotas{
		QueuedMessages: q.QueuedMessages, QueuedBytes: int64(q.QueuedBytes), TotalBytes: int64(q.TotalQueuedBytes),
		Subscriptions: q.Subscriptions, Inflight: q.Inflight, ReceiveMaximum: q.ReceiveMaximum, PublishRate: q.PublishRate,
	}
}

// listener returns the limits in the terms of the listener.
func (l LimitsConfig) listener() listener.Limits {
	return listener.Limits{
		Computing: l.HandshakesAtOnce, FullQueue: l.FullQueue, ResumedQueue: l.ResumedQueue, Wait: l.QueueWait,
		AddressBurst: l.AddressBurst, AddressRate: float64(l.AddressRate), IssuerBurst: l.IssuerBurst, IssuerRate: float64(l.IssuerRate),
		DeviceBurst: l.DeviceBurst, DeviceRate: float64(l.DeviceRate),
	}
}
