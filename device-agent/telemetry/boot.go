package telemetry

import (
	"crypto/rand"
	"encoding/hex"
	"io/fs"
	"strings"
)

// BootID returns a name for one run of a program on one boot of the machine:
// eight digits of the kernel's boot ID, if there is one, and eight random
// ones. Sequence numbers start over with each, and readings that share the
// first half tell a restarted agent from a rebooted machine.
func BootID(root fs.FS) string {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails (package documentation)
	run := hex.EncodeToString(random[:])
	kernel := strings.TrimSpace(string(readFile(root, "proc/sys/kernel/random/boot_id")))
	if len(kernel) < 8 {
		return run
	}
	if _, err := hex.DecodeString(kernel[:8]); err != nil {
		return run
	}
	return kernel[:8] + "-" + run
}
