#!/usr/bin/env bash
# Makes sure that what the tests run is there. With root or password-free sudo on a Debian it installs what is missing;
# anywhere else it names every missing tool and its Debian package, and exits 1. Safe to repeat; silent when all is there.
set -euo pipefail

# One line a tool: the command that must be found, and the Debian package that brings it.
readonly NEEDS="
gcc                 gcc
git                 git
openssl             openssl
mosquitto_pub       mosquitto-clients
mosquitto_sub       mosquitto-clients
qemu-aarch64-static qemu-user-static
qemu-arm-static     qemu-user-static
pgrep               procps
setpriv             util-linux
ss                  iproute2
strace              strace
sslscan             sslscan
swtpm               swtpm
swtpm_setup         swtpm-tools
tpm2_load           tpm2-tools
mkfs.ext4           e2fsprogs
mount               mount
losetup             mount
testssl             testssl.sh
tshark              tshark
shellcheck          shellcheck
chromium            chromium
softhsm2-util       softhsm2
pkcs11-tool         opensc
zbarimg             zbar-tools
"
readonly ATTEMPTS=4

say() { printf 'setup: %s\n' "$*" >&2; }

# missing prints "command package" for each tool that is not on the PATH, and libc6-dev where gcc can't link:
# the race detector needs both.
missing() {
	local tool package
	while read -r tool package; do
		[[ -n $tool ]] || continue
		command -v "$tool" >/dev/null || printf '%s %s\n' "$tool" "$package"
	done <<<"$NEEDS"
	# An OpenSSL module, which no PATH has.
	compgen -G '/usr/lib/*/ossl-modules/tpm2.so' >/dev/null || echo "tpm2.so tpm2-openssl"
	if command -v gcc >/dev/null && ! echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; then
		echo "stdlib.h libc6-dev"
	fi
}

# as_root prints the command prefix that makes a command run as root, or fails.
as_root() {
	if [[ $(id -u) == 0 ]]; then echo "env"; return; fi
	sudo -n true 2>/dev/null && echo "sudo -n env"
}

need_go() {
	if ! command -v "${GO:-go}" >/dev/null; then
		say "go is missing: install Go 1.26 or newer from https://go.dev/dl/ and put it on the PATH"
		exit 1
	fi
}

name_missing() {
	local tool package
	say "the tests need these, and this machine doesn't have them:"
	while read -r tool package; do say "  $tool (Debian package $package)"; done <<<"$1"
	say "$2"
	exit 1
}

need_go
wanted="$(missing)"
[[ -n $wanted ]] || exit 0

command -v apt-get >/dev/null ||
	name_missing "$wanted" "install them with this system's package manager, then run this again"
mapfile -t packages < <(awk '{ print $2 }' <<<"$wanted" | sort -u)
# gcc without libc6-dev can't link, and --no-install-recommends leaves it out.
[[ " ${packages[*]} " == *" gcc "* ]] && packages+=(libc6-dev)
root="$(as_root)" ||
	name_missing "$wanted" "not root and no password-free sudo; as root: apt-get install --no-install-recommends ${packages[*]}"

say "installing ${packages[*]}"
# --no-install-recommends: mosquitto-clients must not bring a broker that starts itself. The package lists that are there
# are tried first; only when they don't serve are new ones fetched. shellcheck disable is for the two words of $root.
for ((attempt = 1; ; attempt++)); do
	# shellcheck disable=SC2086
	if $root DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 -qq \
		install -y --no-install-recommends "${packages[@]}" </dev/null >&2; then
		break
	fi
	if ((attempt == ATTEMPTS)); then
		name_missing "$(missing)" "apt-get install ${packages[*]} failed $ATTEMPTS times; its message is above"
	fi
	say "attempt $attempt failed; refreshing the package lists"
	((attempt == 1)) || sleep $((5 * attempt))
	# shellcheck disable=SC2086
	$root DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 -qq update </dev/null >&2 || true
done

wanted="$(missing)"
[[ -z $wanted ]] || name_missing "$wanted" "the packages are installed, but these commands are still not on the PATH ($PATH)"
say "done"
