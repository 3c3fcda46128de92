#!/usr/bin/env bash
# Runs, under the race detector, the tests behind a build tag, and only those: what they need is more than a Go
# toolchain, which setup.sh installs. For each tag given: `tagged.sh browser pkcs11`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for tag in "$@"; do
	mapfile -t files < <(grep -rl --include='*_test.go' --exclude-dir=_dev --exclude-dir=.git "^//go:build $tag\$" .)
	# No test behind a tag is a tag misspelt, not a success.
	if ((${#files[@]} == 0)); then
		echo "tagged: no test is behind the build tag $tag" >&2
		exit 1
	fi
	names="$(grep -ho '^func Test[A-Za-z0-9_]*' "${files[@]}" | sed 's/^func //' | paste -sd '|')"
	mapfile -t folders < <(dirname "${files[@]}" | sort -u)
	# With cgo: the race detector needs it, and so does what speaks PKCS#11.
	CGO_ENABLED=1 "${GO:-go}" test -race -timeout "${TESTTIME:-10m}" -tags "$tag" -run "^($names)\$" "${folders[@]}"
done
