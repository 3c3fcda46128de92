package swarm

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
)

// The phases of a storm; the last is PhaseStopping.
const (
	PhaseEarning Phase = "earning tickets"
	PhaseStorm   Phase = "storm"
)

// StormConfig is what [RunStorm] needs. Scenario.Devices is the length of Credentials.
type StormConfig struct {
	Hub         string // HOST:PORT
	Scenario    scenario.Storm
	Credentials []mtls.Credentials
	Profile     mtls.Profile
	Recorder    *measure.Recorder // Up and errors, while it lasts

	// Phase, if not nil, is told when a phase begins. It must not block.
	Phase func(Phase)
}

// RunStorm has Scenario.Tickets devices connect at Scenario.ConnectRate and leave
// again, and then all of them connect at once, each over its own link and with its own
// backoff. The storm ends when each is in or refused for good, after Scenario.Limit, or
// with ctx. RunStorm returns when every goroutine it started has ended.
func RunStorm(ctx context.Context, config StormConfig) (measure.Storm, error) {
	if config.Scenario.Devices != len(config.Credentials) {
		return measure.Storm{}, fmt.Errorf("%d credentials for %d devices", len(config.Credentials), config.Scenario.Devices)
	}
	if err := checkFiles(len(config.Credentials)); err != nil {
		return measure.Storm{}, err
	}
	s := &stormy{config: config, boot: newBoot(), settled: make(chan struct{})}
	for _, cred := range config.Credentials {
		s.devices = append(s.devices, &stormDevice{cred: cred, sessions: tls.NewLRUClientSessionCache(1)})
	}
	s.phase(PhaseEarning)
	if err := s.earn(ctx); err != nil {
		return measure.Storm{}, err
	}
	return s.storm(ctx)
}

// stormy is one run of RunStorm.
type stormy struct {
	config    StormConfig
	boot      string
	devices   []*stormDevice
	began     time.Time     // of the storm; written before its links run
	open      atomic.Int64  // devices that are neither in nor refused
	settled   chan struct{} // closed when none is
	settle    sync.Once     // closes it
	stopping  atomic.Bool   // what breaks now is no failure
	timeToIn  measure.Histogram
	fullOnes  atomic.Int64
	resumedBy atomic.Int64
}

// stormDevice is one device. Its fields below the first two are owned by its link's
// goroutine until RunStorm has waited for it.
type stormDevice struct {
	cred     mtls.Credentials
	sessions tls.ClientSessionCache

	in, wasIn, refused bool
	attempts           uint64
}

func (s *stormy) phase(p Phase) {
	if s.config.Phase != nil {
		s.config.Phase(p)
	}
}

func (s *stormy) link(d *stormDevice, sessions tls.ClientSessionCache, changed func(link.Status)) (*link.Link, error) {
	return link.New(link.Config{
		Address:     s.config.Hub,
		Credentials: func() (mtls.Credentials, error) { return d.cred, nil },
		Sessions:    func(mtls.Credentials) tls.ClientSessionCache { return sessions },
		Profile:     s.config.Profile,
		Boot:        s.boot,
		Changed:     changed,
	})
}

// earn has the devices that are to have a ticket connect once, and leave together. The
// first goes alone, ticket or not: if it meets no hub, the others needn't try.
func (s *stormy) earn(ctx context.Context) error {
	running, stop := context.WithCancel(ctx)
	var links sync.WaitGroup
	defer links.Wait()
	defer stop()
	start := func(d *stormDevice, sessions tls.ClientSessionCache) (<-chan link.Status, error) {
		first := make(chan link.Status, 1)
		l, err := s.link(d, sessions, func(now link.Status) {
			if now.State == link.StateConnected || now.State == link.StateWaiting {
				select {
				case first <- now:
				default:
				}
			}
		})
		if err == nil {
			links.Go(func() { _ = l.Run(running) }) // returns nil only
		}
		return first, err
	}
	sessions := s.devices[0].sessions
	if s.config.Scenario.Tickets == 0 {
		sessions = tls.NewLRUClientSessionCache(1) // this one isn't kept
	}
	first, err := start(s.devices[0], sessions)
	if err != nil {
		return err
	}
	select {
	case status := <-first:
		if f := status.LastFailure; f != nil && f.Kind == link.KindUnreachable {
			return fmt.Errorf("%w: %w", ErrUnreachable, f)
		}
	case <-ctx.Done():
		return nil
	}
	pace := time.NewTicker(max(s.config.Scenario.ConnectRate.Interval(), time.Microsecond))
	defer pace.Stop()
	var earning []<-chan link.Status
	for _, d := range s.devices[min(1, s.config.Scenario.Tickets):s.config.Scenario.Tickets] {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return nil
		}
		first, err := start(d, d.sessions)
		if err != nil {
			return err
		}
		earning = append(earning, first)
	}
	for _, first := range earning {
		select {
		case <-first:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// storm has all devices connect at once.
func (s *stormy) storm(ctx context.Context) (measure.Storm, error) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var all []*link.Link
	for _, d := range s.devices {
		l, err := s.link(d, d.sessions, func(now link.Status) { s.changed(d, now) })
		if err != nil {
			return measure.Storm{}, err
		}
		all = append(all, l)
	}
	s.phase(PhaseStorm)
	s.open.Store(int64(len(all)))
	s.began = time.Now()
	var links sync.WaitGroup
	for _, l := range all {
		links.Go(func() { _ = l.Run(running) }) // returns nil only
	}
	limit := time.NewTimer(s.config.Scenario.Limit)
	defer limit.Stop()
	select {
	case <-s.settled:
	case <-limit.C:
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	lasted := time.Since(s.began)
	s.phase(PhaseStopping)
	stop()
	links.Wait()
	return s.summary(lasted), nil
}

// changed follows a device through the storm. It runs in its link's goroutine.
func (s *stormy) changed(d *stormDevice, now link.Status) {
	if s.stopping.Load() {
		return
	}
	d.attempts = now.Attempts
	switch now.State {
	case link.StateConnected:
		if d.in {
			return
		}
		d.in = true
		s.config.Recorder.Up.Add(1)
		if !d.wasIn {
			d.wasIn = true
			s.timeToIn.Add(time.Since(s.began))
			if now.Handshake.Resumed {
				s.resumedBy.Add(1)
			} else {
				s.fullOnes.Add(1)
			}
		}
		if !d.refused {
			s.settleOne(-1)
		}
		d.refused = false
	case link.StateWaiting:
		s.config.Recorder.Error(string(now.LastFailure.Kind), now.LastFailure.Error())
		if d.in {
			d.in = false
			s.config.Recorder.Up.Add(-1)
			s.settleOne(1)
		}
		if now.LastFailure.Slow() && !d.refused {
			d.refused = true
			s.settleOne(-1)
		}
	}
}

// settleOne adds to the number of devices that are neither in nor refused.
func (s *stormy) settleOne(n int64) {
	if s.open.Add(n) == 0 {
		s.settle.Do(func() { close(s.settled) })
	}
}

func (s *stormy) summary(lasted time.Duration) measure.Storm {
	sum := measure.Storm{
		Devices: len(s.devices), Lasted: lasted, Failures: s.config.Recorder.Troubles(),
		Full: int(s.fullOnes.Load()), Resumed: int(s.resumedBy.Load()),
	}
	var attempts []uint64
	for _, d := range s.devices {
		attempts = append(attempts, d.attempts)
		switch {
		case d.in:
			sum.Connected++
		case d.refused:
			sum.Refused++
		case d.wasIn:
			sum.Lost++
		default:
			sum.Waiting++
		}
	}
	sum.Attempted(attempts)
	sum.Took(&s.timeToIn)
	if sum.Full+sum.Resumed == sum.Devices {
		sum.AllIn = s.timeToIn.Max()
	}
	return sum
}
