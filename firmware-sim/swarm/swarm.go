// Package swarm runs N virtual devices in one process, each with its own
// certificate through the device agent's own link, so that the hub sees what
// a real fleet would do: the same handshakes, backoff, wills and topics.
package swarm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/hub/protocol"
)

// Config is what [Run] needs. Scenario.Devices is the length of Credentials.
type Config struct {
	Hub         string // HOST:PORT
	Scenario    scenario.Scenario
	Credentials []mtls.Credentials
	Recorder    *measure.Recorder
	Profile     mtls.Profile // "": mtls.ProfileDefault, as a device agent's

	// Phase, if not nil, is told when a phase begins. It must not block.
	Phase func(Phase)
}

// Phase is a part of a run.
type Phase string

// The phases of a run, in order.
const (
	PhaseConnecting Phase = "connecting"
	PhasePublishing Phase = "publishing"
	PhaseStopping   Phase = "stopping"
)

// ErrUnreachable is what Run's error wraps when no hub answers at the address.
var ErrUnreachable = errors.New("hub unreachable")

const (
	// maxInflight bounds the unanswered messages of one device. A message that
	// falls due beyond it counts as an error instead of piling up.
	maxInflight = 16

	// drainWait is how long the last messages may take to be answered, and
	// hurriedWait how long after ctx has ended: a person is waiting then.
	drainWait   = 20 * time.Second
	hurriedWait = 2 * time.Second
)

// device is one virtual device.
type device struct {
	topic string
	link  *link.Link

	first    chan link.Status // capacity 1: how the first attempt ended
	wasUp    bool             // owned by the link's goroutine
	inflight atomic.Int32
	sequence uint64 // owned by the publishing loop
}

// Run connects the devices at Scenario.ConnectRate, has all publish for
// Scenario.Duration or until ctx ends, and disconnects them. What goes wrong
// with a device is recorded, not returned. Run returns when every goroutine
// it started has ended.
func Run(ctx context.Context, config Config) error {
	if config.Scenario.Devices != len(config.Credentials) {
		return fmt.Errorf("%d credentials for %d devices", len(config.Credentials), config.Scenario.Devices)
	}
	if err := checkFiles(len(config.Credentials)); err != nil {
		return err
	}
	s := &swarm{config: config, boot: newBoot()}
	for _, cred := range config.Credentials {
		d, err := s.newDevice(cred)
		if err != nil {
			return err
		}
		s.devices = append(s.devices, d)
	}

	// Who is told to stop may meet a hub that was told the same: what breaks
	// from then on is no error.
	unhook := context.AfterFunc(ctx, func() { s.stopping.Store(true) })
	defer unhook()
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var links sync.WaitGroup
	err := s.connect(ctx, running, &links)
	if err == nil && ctx.Err() == nil {
		s.publish(ctx, running)
		s.countAbsent()
	}
	s.phase(PhaseStopping)
	s.stopping.Store(true)
	stop()
	links.Wait()
	return err
}

type swarm struct {
	config   Config
	boot     string
	devices  []*device
	stopping atomic.Bool // what breaks now is no error
}

func (s *swarm) phase(p Phase) {
	if s.config.Phase != nil {
		s.config.Phase(p)
	}
}

func (s *swarm) newDevice(cred mtls.Credentials) (*device, error) {
	d := &device{
		topic: protocol.Telemetry(cred.Identity.ID, scenario.Channel),
		first: make(chan link.Status, 1),
	}
	l, err := link.New(link.Config{
		Address:     s.config.Hub,
		Credentials: func() (mtls.Credentials, error) { return cred, nil },
		Boot:        s.boot,
		Profile:     cmp.Or(s.config.Profile, mtls.ProfileDefault),
		Changed:     func(now link.Status) { s.changed(d, now) },
	})
	d.link = l
	return d, err
}

// connect starts the links at the planned rate, over running, and returns
// once the first attempt of each has ended one way or the other. The first
// device goes alone: if it meets no hub, the others needn't try.
func (s *swarm) connect(ctx, running context.Context, links *sync.WaitGroup) error {
	s.phase(PhaseConnecting)
	start := func(d *device) { links.Go(func() { _ = d.link.Run(running) }) } // returns nil only
	start(s.devices[0])
	select {
	case status := <-s.devices[0].first:
		if f := status.LastFailure; f != nil && f.Kind == link.KindUnreachable {
			return fmt.Errorf("%w: %w", ErrUnreachable, f)
		}
	case <-ctx.Done():
		return nil
	}
	pace := time.NewTicker(max(s.config.Scenario.ConnectRate.Interval(), time.Microsecond))
	defer pace.Stop()
	for _, d := range s.devices[1:] {
		select {
		case <-pace.C:
			start(d)
		case <-ctx.Done():
			return nil
		}
	}
	for _, d := range s.devices[1:] {
		select {
		case <-d.first:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// changed records what became of a device's link. It runs in the link's
// goroutine.
func (s *swarm) changed(d *device, now link.Status) {
	r := s.config.Recorder
	switch now.State {
	case link.StateConnected:
		if d.wasUp {
			return
		}
		d.wasUp = true
		r.Up.Add(1)
		if now.Handshake.Resumed {
			r.Resumed.Add(1)
		} else {
			r.Full.Add(1)
		}
		r.Connect.Add(now.Handshake.Connect)
	case link.StateWaiting:
		if !s.stopping.Load() {
			r.Error(string(now.LastFailure.Kind), now.LastFailure.Error())
		}
		s.down(d)
	case link.StateStopped:
		s.down(d)
		return
	default:
		return
	}
	select {
	case d.first <- now:
	default:
	}
}

func (s *swarm) down(d *device) {
	if d.wasUp {
		d.wasUp = false
		s.config.Recorder.Up.Add(-1)
	}
}

// publish sends each message when it is due, never waiting for the answer to
// an earlier one: a hub that slows down meets the same load and shows it as
// latency. It returns when all answers are in.
func (s *swarm) publish(ctx, running context.Context) {
	s.phase(PhasePublishing)
	var (
		plan   = s.config.Scenario
		total  = plan.Messages()
		start  = time.Now()
		timer  = time.NewTimer(0)
		flight sync.WaitGroup
	)
	defer timer.Stop()
	drain, cancel := context.WithCancel(running)
	defer cancel()
loop:
	for n := int64(0); plan.Duration == 0 || n < total; n++ {
		due := start.Add(plan.Due(n))
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				break loop
			}
		} else if ctx.Err() != nil {
			break loop
		} else {
			s.config.Recorder.Lag(-wait)
		}
		s.send(drain, s.devices[plan.Turn(n)], &flight)
	}
	if rest := time.Until(start.Add(plan.Duration)); rest > 0 && plan.Duration > 0 && ctx.Err() == nil {
		timer.Reset(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	overdue := time.AfterFunc(drainWait, cancel)
	hurry := context.AfterFunc(ctx, func() { overdue.Reset(hurriedWait) })
	flight.Wait()
	hurry()
	overdue.Stop()
}

// send publishes d's next message in a goroutine of its own, which flight
// waits for.
func (s *swarm) send(ctx context.Context, d *device, flight *sync.WaitGroup) {
	r := s.config.Recorder
	r.Sent.Add(1)
	d.sequence++
	if d.inflight.Load() >= maxInflight {
		r.Error("backlog", fmt.Sprintf("%d messages of one device waited for their acknowledgement; the next was not sent", maxInflight))
		return
	}
	d.inflight.Add(1)
	payload := scenario.Payload(s.config.Scenario.Size, s.boot, d.sequence, time.Now())
	flight.Go(func() {
		defer d.inflight.Add(-1)
		sent := time.Now()
		switch err := d.link.Publish(ctx, d.topic, payload); {
		case err == nil:
			r.Latency.Add(time.Since(sent))
			r.Acked.Add(1)
		case s.stopping.Load():
		case errors.Is(err, link.ErrNotConnected):
			r.Error("not-connected", "a message fell due while its device had no connection")
		case errors.Is(err, link.ErrNotAcknowledged), errors.Is(err, context.Canceled):
			r.Error("unacknowledged", err.Error())
		default:
			r.Error("publish", err.Error())
		}
	})
}

// countAbsent records who is without a connection at the end and was never
// counted: a refused device waits for minutes, silently.
func (s *swarm) countAbsent() {
	for _, d := range s.devices {
		if status := d.link.Status(); status.State == link.StateConnecting && status.LastFailure == nil {
			s.config.Recorder.Error("not-connected", "a device was still connecting at the end")
		}
	}
}

// newBoot names this run in every message.
func newBoot() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (package documentation)
	return "sim-" + hex.EncodeToString(b[:])
}
