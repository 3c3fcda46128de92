#!/usr/bin/env bash
# fuzz.sh DURATION: runs every fuzz target of the repository for DURATION, one after another (go test fuzzes one at a
# time). Minimizing is bounded: on inputs of kilobytes it would take all the time. Stops at the first that fails; go
# test names the input it keeps under testdata/fuzz.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
go="${GO:-go}"
duration="${1:?usage: fuzz.sh DURATION, for example 20s}"

count=0
while read -r package; do
	while read -r target; do
		echo "== $package $target for $duration"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" -fuzzminimizetime 10x "$package"
		count=$((count + 1))
	done < <("$go" test -list '^Fuzz' "$package" | grep '^Fuzz' || true)
done < <("$go" list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | grep .)
echo "$count fuzz targets held for $duration each"
