package main

import (
	"errors"
	"io/fs"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/firmware-sim/swarm"
)

// prepare checks what every command here is told of the hub and the fleet, and loads the
// devices' credentials. Its errors have their exit codes.
func prepare(hub, profile, creds string, devices int) ([]mtls.Credentials, mtls.Profile, error) {
	if err := link.CheckAddress(hub); err != nil {
		return nil, "", command.Errorf(command.Usage, "--hub: %w", err)
	}
	policy, err := mtls.ParseProfile(profile)
	if err != nil {
		return nil, "", command.Errorf(command.Usage, "--tls-profile: %w", err)
	}
	loaded, err := swarm.Load(creds, devices)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", command.WithCode(command.NotFound, err)
	}
	return loaded, policy, command.WithCode(command.BadConfig, err)
}
