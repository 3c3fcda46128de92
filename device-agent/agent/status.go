package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/renewal"
)

// statusFile is the agent's file in the credential folder.
const statusFile = "status.json"

// How often status.json is written. Each write costs a flash card a few
// blocks, so counters alone are written once a minute, and a link that flaps
// gets a few writes at once and then no more than one each writeGap.
const (
	writeCounters = time.Minute
	writeGap      = 30 * time.Second
	writeBurst    = 4
)

// maxStatus bounds what is read back of status.json.
const maxStatus = 1 << 20

// Snapshot is what status.json holds: the agent's state when it was written.
type Snapshot struct {
	Written  time.Time     `json:"written"`
	PID      int           `json:"pid"`
	Boot     string        `json:"boot"` // as in its readings
	Started  time.Time     `json:"started"`
	Interval time.Duration `json:"interval_ns"`
	Link     link.Status   `json:"link"`
	HTTPS    string        `json:"https,omitempty"` // where the hub is asked why
	// Tickets is how the saved TLS session is doing; nil before the first
	// attempt to connect.
	Tickets *keystore.SessionStats `json:"tickets,omitempty"`
	// Renewal is how the renewal of the certificate stands; nil if the agent doesn't renew it.
	Renewal  *renewal.Status `json:"renewal,omitempty"`
	Readings Counts          `json:"readings"`
	Seq      uint64          `json:"seq"` // of the last reading
}

func (a *Agent) snapshot() Snapshot {
	s := Snapshot{
		Written:  time.Now(),
		PID:      os.Getpid(),
		Boot:     a.source.Boot(),
		Started:  a.started,
		Interval: a.config.Interval,
		Link:     a.link.Status(),
		HTTPS:    a.config.HTTPS,
		Tickets:  a.tickets.stats(),
		Readings: a.reporter.counts(),
		Seq:      a.source.Seq(),
	}
	if a.renewal != nil {
		status := a.renewal.Status()
		s.Renewal = &status
	}
	return s
}

// statusWriter keeps status.json up to date.
type statusWriter struct {
	path     string
	snapshot func() Snapshot
	log      *slog.Logger
	due      chan struct{} // capacity 1; never closed
	failing  bool          // the last write failed, and that was logged
	spent    time.Time     // until when, at one a writeGap, the writes so far would have lasted; owned by run
}

func newStatusWriter(dir string, snapshot func() Snapshot, log *slog.Logger) *statusWriter {
	return &statusWriter{path: filepath.Join(dir, statusFile), snapshot: snapshot, log: log, due: make(chan struct{}, 1)}
}

// poke has the status written soon; it doesn't block.
func (w *statusWriter) poke() {
	select {
	case w.due <- struct{}{}:
	default:
	}
}

func (w *statusWriter) run(ctx context.Context) error {
	w.write()
	ticker := time.NewTicker(writeCounters)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.due:
		case <-ticker.C:
		}
		w.write()
		select { // whatever changes meanwhile waits in due
		case <-ctx.Done():
			return nil
		case <-time.After(w.pause()):
		}
	}
}

// pause returns how long the writes so far forbid the next one.
func (w *statusWriter) pause() time.Duration {
	now := time.Now()
	if w.spent.Before(now) {
		w.spent = now
	}
	w.spent = w.spent.Add(writeGap)
	return max(0, w.spent.Sub(now)-writeBurst*writeGap)
}

// write replaces status.json durably. The agent works without it, on a
// read-only folder for one, so a failure is logged once and not returned.
func (w *statusWriter) write() {
	data, err := json.MarshalIndent(w.snapshot(), "", "  ")
	if err == nil {
		err = pemfile.Write(w.path, append(data, '\n'), 0o644)
	}
	if err != nil && !w.failing {
		w.log.Warn("`device-agent status` will be out of date", "err", err)
	}
	w.failing = err != nil
}

// Report is what `device-agent status` tells: who the device is, whether an
// agent runs, and what it last wrote.
type Report struct {
	Device      string    `json:"device"`   // ID
	Identity    string    `json:"identity"` // SPIFFE URI
	Fingerprint string    `json:"fingerprint"`
	Issuer      string    `json:"issuer"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	// Problem says what is wrong with the certificate's validity, or is empty.
	Problem string `json:"problem,omitempty"`

	Running bool `json:"running"`
	// Last is nil if no agent has run with this folder yet, or if status.json
	// can't be read: then Unreadable says why.
	Last       *Snapshot `json:"last,omitempty"`
	Unreadable string    `json:"unreadable,omitempty"`
}

// ReadReport looks at a credential folder from outside. Its error is about the
// credentials; everything else is part of the report.
func ReadReport(dir string, now time.Time) (Report, error) {
	keys, err := keystore.Open(dir)
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Device:      keys.Identity().ID,
		Identity:    keys.Identity().String(),
		Fingerprint: keys.Fingerprint(),
		Issuer:      keys.Issuer(),
	}
	r.NotBefore, r.NotAfter = keys.Validity()
	if err := keys.CheckValidity(now); err != nil {
		r.Problem = err.Error()
	}
	if r.Running, err = locked(dir); err != nil {
		return Report{}, fmt.Errorf("see whether an agent runs with %s: %w", dir, err)
	}
	last, err := readSnapshot(filepath.Join(dir, statusFile))
	switch {
	case err == nil:
		r.Last = &last
	case !errors.Is(err, fs.ErrNotExist):
		r.Unreadable = err.Error()
	}
	return r, nil
}

func readSnapshot(path string) (Snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return Snapshot{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStatus))
	if err != nil {
		return Snapshot{}, err
	}
	s, err := parseSnapshot(data)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s is damaged (%w); a running agent replaces it within a minute", path, err)
	}
	return s, nil
}

func parseSnapshot(data []byte) (Snapshot, error) {
	var s Snapshot
	err := json.Unmarshal(data, &s)
	return s, err
}
