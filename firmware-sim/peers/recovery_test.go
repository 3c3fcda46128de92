package peers

import (
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/mtls"
)

var recoverySessions = flag.Int("sessions", 100_000, "sessions that BenchmarkRecovery has the hub find again")

const (
	queuedEach      = 10 // messages that wait for each session
	recoverySenders = 4  // services that send them
	recoveryWindow  = 200
	recoverySample  = 100 // sessions that are looked into afterwards
)

// BenchmarkRecovery measures how long a hub that was killed takes until it is ready again: from the signal to the answer to
// the first CONNECT, with 100,000 sessions and ten QoS 1 messages waiting for each. Then it looks into a sample of the
// sessions: every one must be there, with all its messages in order. It ignores b.N.
func BenchmarkRecovery(b *testing.B) {
	if !*withPeers {
		b.Skip("fills a hub, for minutes: make bench-peers")
	}
	s := emptySite(b, *recoverySessions)
	hub, end := s.launch(b)
	s.register(b)
	s.subscribeAll(b, hub)
	s.fillQueues(b, hub)
	first := s.load(b, s.folders[0], "device")

	killed := time.Now()
	end(syscall.SIGKILL)
	hub, _ = s.launch(b)
	c, err := dial(hub, first, first.Identity.ID, false)
	if err != nil {
		b.Fatal(err)
	}
	ready := time.Since(killed)
	c.close()

	found, whole := s.lookInto(b, hub)
	printFigures(b, "recovery", []peer{hub}, []figure{
		{name: fmt.Sprintf("kill to ready, %d sessions, %d queued messages", *recoverySessions, *recoverySessions*queuedEach), unit: "s/recovery", format: "%.1f s", values: map[string]float64{"hub": ready.Seconds()}, limit: 10},
		{name: fmt.Sprintf("sessions found, of %d looked for", recoverySample), unit: "sessions", format: "%.0f", values: map[string]float64{"hub": float64(found)}, limit: recoverySample, least: true},
		{name: "with every message, in order", unit: "whole-sessions", format: "%.0f", values: map[string]float64{"hub": float64(whole)}, limit: recoverySample, least: true},
	})
}

// subscribeAll gives every device a session with a subscription to its commands, and ends its connection.
func (s *site) subscribeAll(b *testing.B, hub peer) {
	b.Helper()
	var all errgroup.Group
	for w := range workers {
		all.Go(func() error {
			for i := w; i < len(s.folders); i += workers {
				d, err := mtls.LoadCredentials(s.folders[i], "device")
				if err != nil {
					return err
				}
				c, err := dial(hub, d, d.Identity.ID, false)
				if err != nil {
					return err
				}
				if err := c.subscribe("d/"+d.Identity.ID+"/cmd/#", 1); err != nil {
					return err
				}
				if err := c.send(0xe0, nil); err != nil { // DISCONNECT
					return err
				}
				c.close()
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
}

// fillQueues sends every device its messages, in turn.
func (s *site) fillQueues(b *testing.B, hub peer) {
	b.Helper()
	service := s.service(b, "bench")
	var all errgroup.Group
	for w := range recoverySenders {
		all.Go(func() error {
			c, err := dial(hub, service, fmt.Sprintf("bench:%d", w), true)
			if err != nil {
				return err
			}
			defer c.close()
			var mine []string // every device has one sender, so its messages have an order
			for i := w; i < len(s.folders); i += recoverySenders {
				mine = append(mine, filepath.Base(s.folders[i]))
			}
			for n := range queuedEach {
				err := c.publishAcknowledged(func(i int) message {
					return newMessage(fmt.Sprintf("d/%s/cmd/go/%d", mine[i], n+1), 1, strconv.Itoa(n)+payload)
				}, len(mine), recoveryWindow)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
}

// lookInto connects a sample of the devices and counts the sessions that are there, and those that have everything.
func (s *site) lookInto(b *testing.B, hub peer) (found, whole int) {
	b.Helper()
	var want []string
	for n := range queuedEach {
		want = append(want, strconv.Itoa(n)+payload)
	}
	for i := range recoverySample {
		d := s.load(b, s.folders[1+i*(len(s.folders)-1)/recoverySample], "device")
		c, err := dial(hub, d, d.Identity.ID, false)
		if err != nil {
			b.Fatal(err)
		}
		if c.present {
			found++
			c.roomy()
			if got, err := c.takeAll(queuedEach); err == nil && slices.Equal(got, want) {
				whole++
			}
		}
		c.close()
	}
	return found, whole
}
