package server_test

import (
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

var (
	raceRounds = flag.Int("receipt.rounds", 8, "devices that TestNothingOfADeviceIsAcceptedAfterItsReceipt cuts off")
	raceSeed   = flag.Uint64("receipt.seed", 0, "the seed of its schedule; 0: another one each time")
)

// TestNothingOfADeviceIsAcceptedAfterItsReceipt has a device do at once all that may race
// with its end: connect with full handshakes and with tickets, take its own session over,
// publish, renew its certificate and connect with the new one, while an operator cuts it
// off and, every other time, the hub is restarted. When the operator has the receipt,
// nothing that the device sends from then on may be admitted, acknowledged, or found among
// the messages that the hub has accepted.
func TestNothingOfADeviceIsAcceptedAfterItsReceipt(t *testing.T) {
	seed := *raceSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-receipt.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	h := hubtest.Start(t, func(c *server.Config) {
		c.MQTT.Limits.AddressRate, c.MQTT.Limits.AddressBurst = 1e6, 1e6 // one address, many refused
	})
	must(t, pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey))
	cutOffAt := make(map[string]time.Time)
	for round := range *raceRounds {
		id := fmt.Sprintf("pi-%d", round)
		cutOffAt[id] = raceOne(t, h, h.Device(id), random, round%2 == 1)
	}
	accepted := make(map[string]int)
	operator := h.Operator()
	for from := ""; ; {
		page, err := operator.Messages(t.Context(), admin.MessageQuery{From: from, Limit: 1000})
		must(t, err)
		for _, m := range page.Messages {
			accepted[m.Device]++
			sent, err := strconv.ParseInt(string(m.Payload), 10, 64)
			must(t, err)
			if at := cutOffAt[m.Device]; time.Unix(0, sent).After(at) || m.Time.After(at.Add(time.Millisecond)) { // it is stored in milliseconds
				t.Errorf("%s had its receipt at %v; a message that it sent at %v was accepted at %v", m.Device, at, time.Unix(0, sent), m.Time)
			}
		}
		if from = fmt.Sprint(page.Next); page.CaughtUp {
			break
		}
	}
	for id := range cutOffAt {
		if accepted[id] == 0 {
			t.Errorf("no message of %s was ever accepted, so nothing is proved by it", id)
		}
	}
}

// raceOne cuts a device off while it does its worst, and returns when its receipt was
// there.
func raceOne(t *testing.T, h *hubtest.Hub, device certtest.Credential, random *rand.Rand, restart bool) time.Time {
	t.Helper()
	r := &rogue{t: t, h: h, credentials: []certtest.Credential{device}}
	r.mqtt, r.https = h.MQTTAddr(), h.HTTPSAddr()
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 3 {
		own := rand.New(rand.NewPCG(random.Uint64(), 0))
		group.Go(func() { r.connectAgainAndAgain(own, stop) })
	}
	group.Go(func() { r.renewAgainAndAgain(stop) })
	waitFor(t, "the device has published", func() bool { return r.acknowledged.Load() > 0 })
	time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond) // any moment of what it does
	var hub sync.WaitGroup
	if restart {
		pause := time.Duration(random.IntN(10)) * time.Millisecond
		hub.Go(func() { time.Sleep(pause); h.Restart() })
	}
	verb := []fleet.Verb{fleet.VerbRevoke, fleet.VerbRetire, fleet.VerbSuspend}[random.IntN(3)]
	cutOff(t, h, device.Identity.ID, verb)
	at := time.Now()
	r.over.Store(at.UnixNano())
	hub.Wait()
	// Everybody has tried anew, with whatever it has, and once more behind a restart.
	for range 2 {
		tried := r.tried.Load()
		waitFor(t, "the device tries to come back", func() bool { return r.tried.Load() >= tried+12 })
		if restart {
			break
		}
		h.Restart()
	}
	close(stop)
	group.Wait()
	if restart {
		h.Restart()
	}
	for _, c := range r.all() {
		if admitted(h, c) {
			t.Errorf("%s is admitted after its receipt", device.Identity.ID)
		}
	}
	return at
}

// cutOff gives the order until it has a receipt: a hub that is being restarted refuses.
func cutOff(t *testing.T, h *hubtest.Hub, id string, verb fleet.Verb) {
	t.Helper()
	operator := h.Operator()
	var err error
	waitFor(t, "the order is carried out", func() bool {
		if verb == fleet.VerbSuspend {
			_, err = operator.Suspend(t.Context(), id, "a race")
		} else {
			_, err = operator.End(t.Context(), admin.EndRequest{Device: id, Verb: verb, Reason: revocation.KeyCompromise})
		}
		return err == nil
	})
}

// rogue is a device that does as it likes.
type rogue struct {
	t           *testing.T
	h           *hubtest.Hub
	mqtt, https string

	tried        atomic.Int64 // connections
	acknowledged atomic.Int64 // messages
	over         atomic.Int64 // when it was cut off, in Unix nanoseconds; 0: not yet

	mu          sync.Mutex // guards credentials
	credentials []certtest.Credential
}

func (r *rogue) all() []certtest.Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]certtest.Credential(nil), r.credentials...)
}

// connectAgainAndAgain connects, publishes what a moment allows, and hangs up, with any of
// its certificates, with a ticket or without.
func (r *rogue) connectAgainAndAgain(random *rand.Rand, stop <-chan struct{}) {
	tickets := make(map[string]*kept)
	for {
		select {
		case <-stop:
			return
		default:
		}
		all := r.all()
		c := all[random.IntN(len(all))]
		config := c.ClientConfig()
		if random.IntN(2) == 0 {
			serial := c.Leaf.SerialNumber.String()
			if tickets[serial] == nil {
				tickets[serial] = new(kept)
			}
			config.ClientSessionCache = tickets[serial]
		}
		r.connect(c.Identity.ID, config, random.IntN(40), byte(random.IntN(2)))
		r.tried.Add(1)
	}
}

// connect is one connection: some messages, each sent as soon as the one before is
// acknowledged if qos is 1.
func (r *rogue) connect(id string, config *tls.Config, messages int, qos byte) {
	began := time.Now()
	raw, err := net.DialTimeout("tcp", r.mqtt, patience)
	if err != nil {
		return // the hub is being restarted
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, config)
	if _, err := conn.Write(append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))}, id...)); err != nil {
		return
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[3] != 0 {
		return
	}
	if r.isOver(began) {
		r.t.Errorf("%s is connected: CONNACK % x to a connection begun %v after its receipt", id, answer, began.Sub(time.Unix(0, r.over.Load())))
	}
	for n := range messages {
		sent := time.Now()
		payload := strconv.FormatInt(sent.UnixNano(), 10)
		topic := "d/" + id + "/tele/x"
		body := append(binary.BigEndian.AppendUint16(nil, uint16(len(topic))), topic...)
		if qos == 1 {
			body = binary.BigEndian.AppendUint16(body, uint16(n+1))
		}
		body = append(body, payload...)
		if _, err := conn.Write(append([]byte{0x30 | qos<<1, byte(len(body))}, body...)); err != nil {
			return
		}
		if qos == 0 {
			continue
		}
		if _, err := io.ReadFull(conn, answer); err != nil || answer[0] != 0x40 {
			return
		}
		if r.isOver(sent) {
			r.t.Errorf("a message of %s is acknowledged that was sent %v after its receipt", id, sent.Sub(time.Unix(0, r.over.Load())))
		}
		r.acknowledged.Add(1)
	}
}

func (r *rogue) isOver(at time.Time) bool {
	over := r.over.Load()
	return over != 0 && at.UnixNano() > over
}

// renewAgainAndAgain asks for new certificates with any of its own, and has them used.
func (r *rogue) renewAgainAndAgain(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		all := r.all()
		with := all[len(all)-1]
		began := time.Now()
		next, err := r.renew(with)
		if err != nil {
			select {
			case <-stop:
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		if r.isOver(began) {
			r.t.Errorf("%s got a certificate after its receipt", with.Identity.ID)
		}
		r.mu.Lock()
		r.credentials = append(r.credentials, next)
		r.mu.Unlock()
	}
}

func (r *rogue) renew(with certtest.Credential) (certtest.Credential, error) {
	key, err := issuance.NewKey()
	if err != nil {
		return with, err
	}
	csr, err := issuance.NewCSR(key, with.Identity.ID)
	if err != nil {
		return with, err
	}
	client, err := est.NewClient(est.ClientConfig{URL: "https://" + r.https, TLS: with.ClientConfig(), Certificate: &with.Certificate})
	if err != nil {
		return with, err
	}
	defer client.Close()
	leaf, err := client.Reenroll(r.t.Context(), csr, key.Public())
	if err != nil {
		return with, err
	}
	next := with
	next.Key, next.Leaf, next.Issuer = key, leaf, r.h.Fleet.Operational.Certificate()
	next.Certificate = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	return next, nil
}
