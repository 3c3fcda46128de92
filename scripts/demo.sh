#!/usr/bin/env bash
# demo.sh: a throwaway fleet on this machine, alive until Ctrl-C. `make run` builds the programs, then calls this.
#
# It sets up a hub, a factory station, 25 provisioned devices and a service under _dev/, starts the hub, one device-agent
# that reports this machine's own readings and 24 simulated devices, and prints what arrives, one line a second.
# _dev/ is kept for the next run; one that a killed run left half-made is made anew.
#
#   MQTT_ADDR, HTTPS_ADDR, METRICS_ADDR   where the hub listens     DEV_DIR   instead of _dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly MQTT_ADDR="${MQTT_ADDR:-127.0.0.1:8883}"
readonly HTTPS_ADDR="${HTTPS_ADDR:-127.0.0.1:8443}"
readonly METRICS_ADDR="${METRICS_ADDR:-127.0.0.1:9464}"
readonly DEV="${DEV_DIR:-_dev}"
readonly LOGS="$DEV/log" # what the programs print; the name of each is the program's
readonly STATION=bench-1 AGENT=pi-1 SIMULATED=24
readonly DAYS=30 # a fleet older than this is made anew, before its certificates run out
readonly SETUP_SECONDS=60 STOP_SECONDS=10

declare -A PIDS=() # of what runs in the background, by name

die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

# own_folder takes $DEV for this run: made by an earlier run or new, and in use by no other.
own_folder() {
	if [[ -d $DEV && ! -e $DEV/.demo && -n $(ls -A "$DEV") ]]; then
		die "$DEV holds files that are not this demo's; move them, or choose another folder with DEV_DIR=FOLDER"
	fi
	mkdir -p "$DEV"
	touch "$DEV/.demo"
	exec 9>"$DEV/.lock"
	flock -n 9 || die "another run uses $DEV; stop it, or choose another folder with DEV_DIR=FOLDER"
}

# need_port ADDRESS VARIABLE FLAG refuses an address that somebody listens on already.
need_port() {
	local address=$1 variable=$2 flag=$3
	local host=${address%:*} port=${address##*:}
	[[ $address == *:* && $port =~ ^[0-9]+$ ]] || die "$variable=$address is not HOST:PORT"
	[[ $port != 0 ]] || return 0
	[[ -n $host && $host != 0.0.0.0 && $host != "[::]" ]] || host=127.0.0.1
	host=${host#[} host=${host%]}
	if (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then
		die "$address is taken: another program listens there. Choose another port for the hub's $flag:" \
			"make run $variable=$host:$(((port + 10000) % 64512))"
	fi
}

# step runs one command of the setup. Its output goes to the log, and to the terminal only if it fails.
step() {
	printf '$ %s\n' "$*" >>"$LOGS/setup.log"
	"$@" >>"$LOGS/setup.log" 2>&1 9>&- || {
		tail -n 5 "$LOGS/setup.log" >&2
		die "setting up $DEV stopped at: $*"
	}
}

# make_fleet makes everything that needs no running hub. .made is written last: without it the folder is not trusted.
make_fleet() {
	if [[ -e $DEV/.made && -z $(find "$DEV/.made" -mtime +"$DAYS") ]]; then
		echo "Using the fleet in $DEV/ (make clean removes it)."
		return
	fi
	find "$DEV" -mindepth 1 -maxdepth 1 ! -name .demo ! -name .lock -exec rm -rf {} +
	mkdir -p "$LOGS"
	echo "Setting up a hub, a factory station and $((SIMULATED + 1)) devices in $DEV/."
	step bin/hub init --dir "$DEV/hub" --hostname localhost --hostname 127.0.0.1
	step bin/provisioning init --dir "$DEV/station" --name "$STATION" --output json
	local key # as the station printed it: the root signs no other
	key=$(sed -n 's/.*"key_sha256": *"\([0-9a-f]*\)".*/\1/p' "$LOGS/setup.log" | tail -n 1)
	step bin/hub station authorize --dir "$DEV/hub" --csr "$DEV/station/station.csr" --key-sha256 "$key" --out "$DEV/station.crt"
	step bin/provisioning accept --dir "$DEV/station" "$DEV/station.crt"
	step bin/provisioning issue --dir "$DEV/station" --id "$AGENT" --model this-machine --out "$DEV/device"
	step bin/provisioning batch --dir "$DEV/station" --prefix sim- --count "$SIMULATED" --out "$DEV/sim"
	step bin/provisioning manifest --dir "$DEV/station" --out "$DEV/manifest"
	step bin/hub service issue dashboard --dir "$DEV/hub" --out "$DEV/service"
	touch "$DEV/.made"
}

# start NAME COMMAND... runs it in the background with its output in NAME's log. It gets a session of its own, so that
# Ctrl-C reaches only this script, which stops things in order; and should this script be killed, it ends too.
start() {
	local name=$1
	shift
	setsid setpriv --pdeathsig TERM "$@" >"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
	PIDS[$name]=$!
}

# check_running NAME... stops the demo with the last words of a program that has ended by itself.
check_running() {
	local name
	for name; do
		kill -0 "${PIDS[$name]}" 2>/dev/null && continue
		tail -n 5 "$LOGS/$name.log" >&2
		die "$name has ended; the lines above are the end of $LOGS/$name.log"
	done
}

# running_value KEY prints what the hub that this script started says of itself.
running_value() {
	sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$DEV/hub/run/hub.json" 2>/dev/null || true
}

start_hub() {
	local deadline=$((SECONDS + SETUP_SECONDS))
	start hub bin/hub serve --dir "$DEV/hub" \
		--mqtt-addr "$MQTT_ADDR" --https-addr "$HTTPS_ADDR" --metrics-addr "$METRICS_ADDR"
	until [[ $(running_value pid) == "${PIDS[hub]}" ]]; do
		check_running hub
		((SECONDS < deadline)) || die "the hub did not start within $SETUP_SECONDS s; see $LOGS/hub.log"
		sleep 0.1
	done
	if [[ ! -e $DEV/.imported ]]; then
		step bin/hub manifest import "$DEV/manifest" --dir "$DEV/hub"
		touch "$DEV/.imported"
	fi
}

start_devices() {
	local address=$1
	start device-agent bin/device-agent run --dir "$DEV/device" --hub "$address" --interval 5s
	start firmware-sim bin/firmware-sim run --creds "$DEV/sim" --hub "$address" --devices "$SIMULATED" \
		--rate 1/s --duration 0
}

# start_watch puts every telemetry message on file descriptor 3, as the operator sees it.
start_watch() {
	rm -f "$DEV/feed"
	mkfifo "$DEV/feed"
	exec 3<>"$DEV/feed"
	setsid setpriv --pdeathsig TERM bin/hub watch 'd/+/tele/#' --dir "$DEV/hub" >"$DEV/feed" 2>"$LOGS/watch.log" \
		</dev/null 3>&- 9>&- &
	PIDS[watch]=$!
}

print_commands() {
	local victim
	victim="$(find "$DEV/sim" -mindepth 1 -maxdepth 1 -name 'sim-*' -printf '%f\n' | sort | sed -n 7p)"
	cat <<-TEXT

		Try in another terminal:
		  bin/hub device list --dir $DEV/hub
		  bin/hub watch 'd/$AGENT/#' --dir $DEV/hub
		  bin/hub device revoke $victim --reason keyCompromise --dir $DEV/hub    (shows what would happen; --confirm does it)
		Ctrl-C stops everything. What the programs say is in $LOGS/.

	TEXT
}

# brief shortens a line of hub watch: the topic, the reading's number and its values.
brief() {
	local line=${1#*  } # without the time, which stands in front already
	if [[ $line =~ ^([^ ]+)\ +\{.*\"seq\":([0-9]+),\"values\":\{(.*)\}\}$ ]]; then
		line="${BASH_REMATCH[3]//\"/}"
		line="${BASH_REMATCH[1]}  #${BASH_REMATCH[2]}  ${line//,/ }"
	fi
	printf '%s' "$line"
}

# stream prints one message a second of those that arrive, picked by chance, but this machine's own whenever there is one.
stream() {
	local line latest="" own="" count=0 second=$SECONDS width=160
	[[ -t 1 ]] && width=$(tput cols 2>/dev/null || echo 160)
	while :; do
		if IFS= read -r -t 0.2 line <&3; then
			count=$((count + 1))
			((RANDOM % count)) || latest=$line
			[[ $line != *"d/$AGENT/"* ]] || own=$line
		fi
		((SECONDS != second)) || continue
		second=$SECONDS
		line="$(printf '%(%H:%M:%S)T %3d/s  %s' -1 "$count" "$(brief "${own:-${latest:-  nothing arrived}}")")"
		printf '%s\n' "${line:0:width}"
		latest="" own="" count=0
		check_running hub device-agent firmware-sim watch
	done
}

# stop_all ends what was started, the devices before the hub, and returns when nothing is left.
stop_all() {
	trap '' INT TERM HUP
	local name pid deadline
	for name in watch firmware-sim device-agent hub; do
		pid=${PIDS[$name]:-}
		[[ -n $pid ]] || continue
		kill -TERM "$pid" 2>/dev/null || true
		deadline=$((SECONDS + STOP_SECONDS))
		while kill -0 "$pid" 2>/dev/null; do
			((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null || true
			sleep 0.05
		done
	done
	rm -f "$DEV/feed"
}

trap stop_all EXIT
# Ctrl-C is how this demo ends: exit 0. The EXIT trap does the stopping.
trap 'echo; echo "Stopping."; exit 0' INT TERM HUP

own_folder
need_port "$MQTT_ADDR" MQTT_ADDR --mqtt-addr
need_port "$HTTPS_ADDR" HTTPS_ADDR --https-addr
need_port "$METRICS_ADDR" METRICS_ADDR --metrics-addr
make_fleet
start_hub
address="$(running_value mqtt)"
echo "The hub listens on $address (MQTT over mutual TLS) and $(running_value https) (HTTPS)."
start_devices "127.0.0.1:${address##*:}"
start_watch
print_commands
stream
