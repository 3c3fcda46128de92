#!/usr/bin/env bash
# interop.sh [SUITES]: runs public MQTT interoperability suites against a hub of this checkout. Needs git, go and python3.
#
# The suites are fetched into SUITES (default: the user's cache folder) at the commits below; none is part of this
# repository. They know neither TLS nor that a client is who its certificate says, so a test-only shim stands in front of
# the hub (hub/broker/conformance/shim_test.go), whose policy lets services do everything. hub/wire/CONFORMANCE.md says which
# of their tests must fail, and why. Takes about seven minutes, most of them the suites' own waiting.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SUITES="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fleethub-interop}"

# fetch NAME URL COMMIT gets one suite, once.
fetch() {
	[[ -d $SUITES/$1 ]] && return
	local part="$SUITES/.$1.part"
	rm -rf "$part"
	git init --quiet "$part"
	git -C "$part" fetch --quiet --depth 1 "$2" "$3"
	git -C "$part" checkout --quiet FETCH_HEAD
	mv "$part" "$SUITES/$1"
}

mkdir -p "$SUITES"
fetch paho https://github.com/eclipse/paho.mqtt.testing 9d7bb80bb8b9d9cfc0b52f8cb4c1916401281103
fetch testmqtt https://github.com/bromq-dev/testmqtt f449eb12b082673a1e381cc0c8e11ed1c743ed87
[[ -x $SUITES/testmqtt/testmqtt ]] || go build -C "$SUITES/testmqtt" -o testmqtt .

export INTEROP_PAHO="$SUITES/paho/interoperability" INTEROP_TESTMQTT="$SUITES/testmqtt/testmqtt"
go test -count=1 -v -timeout 30m -tags interop -run 'TestPaho|TestTestmqtt' ./hub/broker/conformance
