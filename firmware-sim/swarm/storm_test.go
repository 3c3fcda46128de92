package swarm

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/firmware-sim/measure"
	"github.com/fleethub/fleethub/firmware-sim/scenario"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func stormOf(fleet *certtest.Fleet, hub string, devices, tickets int) StormConfig {
	return StormConfig{
		Hub: hub, Credentials: credentials(fleet, devices), Recorder: new(measure.Recorder),
		Scenario: scenario.Storm{Devices: devices, Tickets: tickets, ConnectRate: 100000, Limit: time.Minute},
	}
}

func TestStormEndsWhenEverybodyIsIn(t *testing.T) {
	h := hubtest.Start(t)
	const devices, tickets = 60, 20
	config := stormOf(h.Fleet, h.MQTTAddr(), 0, tickets)
	config.Scenario.Devices = devices
	var all []certtest.Credential
	for i := range devices {
		all = append(all, h.Fleet.Device(fmt.Sprintf("sim-%05d", i)))
		config.Credentials = append(config.Credentials, all[i].Credentials)
	}
	h.Register(all...)
	var phases []Phase
	config.Phase = func(p Phase) { phases = append(phases, p) }
	got, err := RunStorm(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if got.Failed() != nil || got.Connected != devices || got.Full != devices-tickets || got.Resumed != tickets ||
		got.Attempts.Max != 1 || got.AllIn == 0 || got.AllIn != got.In.Max || len(got.Failures) != 0 {
		t.Errorf("the storm came to %+v", got)
	}
	if len(phases) != 3 || phases[1] != PhaseStorm {
		t.Errorf("phases %v", phases)
	}
}

func TestRefusedDeviceEndsTheStormForItself(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	p.refuse = "sim-00002"
	got, err := RunStorm(t.Context(), stormOf(fleet, p.address, 3, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got.Failed() == nil || got.Connected != 2 || got.Refused != 1 || got.AllIn != 0 || got.Failures["refused"].Count != 1 {
		t.Errorf("the storm came to %+v", got)
	}
}

func TestStormWithoutAHub(t *testing.T) {
	if _, err := RunStorm(t.Context(), stormOf(certtest.New(t), "127.0.0.1:1", 3, 0)); !errors.Is(err, ErrUnreachable) {
		t.Errorf("RunStorm: %v", err)
	}
}

func TestStormEndsWithItsContext(t *testing.T) {
	fleet := certtest.New(t)
	p := newPeer(t, fleet)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := RunStorm(ctx, stormOf(fleet, p.address, 3, 3))
	if err != nil || got.Devices != 3 || got.Connected+got.Waiting+got.Lost+got.Refused != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}
