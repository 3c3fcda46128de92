package swarm

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// Load reads the first n credential folders below dir, in the order of their
// names. Its error says how to make more.
func Load(dir string, n int) ([]mtls.Credentials, error) {
	names, err := credentialFolders(dir)
	if err != nil {
		return nil, err
	}
	if len(names) < n {
		return nil, fmt.Errorf("%s has %s, %d are needed: make them with `provisioning batch --dir STATION --prefix sim- --count %d --out %s` and import the station's manifest at the hub",
			dir, count(len(names), "credential folder"), n, n, dir)
	}
	loaded := make([]mtls.Credentials, 0, n)
	seen := make(map[string]string, n)
	for _, name := range names[:n] {
		cred, err := mtls.LoadCredentials(filepath.Join(dir, name), "device")
		if err != nil {
			return nil, fmt.Errorf("credentials of a device: %w", err)
		}
		if cred.Identity.Role != identity.RoleDevice {
			return nil, fmt.Errorf("%s holds the certificate of a %s, not of a device", filepath.Join(dir, name), cred.Identity.Role)
		}
		if other, ok := seen[cred.Identity.ID]; ok {
			return nil, fmt.Errorf("%s and %s are both of %s: two devices of one identity take each other's session over", filepath.Join(dir, other), filepath.Join(dir, name), cred.Identity.ID)
		}
		seen[cred.Identity.ID] = name
		shareRoots(&cred, loaded)
		loaded = append(loaded, cred)
	}
	return loaded, nil
}

func credentialFolders(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--creds: %w: `provisioning batch --dir STATION --prefix sim- --count N --out %s` makes credential folders", err, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("--creds: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), "device.crt")); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// shareRoots has devices of one fleet share the parsed trust bundle, which is
// most of what one's credentials weigh.
func shareRoots(cred *mtls.Credentials, loaded []mtls.Credentials) {
	if len(loaded) == 0 {
		return
	}
	first := loaded[0].Roots
	if slices.EqualFunc(first, cred.Roots, func(a, b *x509.Certificate) bool { return a.Equal(b) }) {
		cred.Roots = first
	}
}

// spareFiles is what the process needs besides one socket a device.
const spareFiles = 64

// checkFiles says when the system won't let one process have n sockets. The
// Go runtime has raised the soft limit to the hard one already.
func checkFiles(n int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil // unknown: the sockets will tell
	}
	if uint64(n)+spareFiles > limit.Cur {
		return fmt.Errorf("--devices %d needs as many open files, and this process may have %d: raise `ulimit -n` or run several simulators on parts of the folder", n, limit.Cur)
	}
	return nil
}

func count(n int, what string) string {
	switch n {
	case 0:
		return "no " + what
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
