//go:build unix

package cakey

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// moduleVariable is the environment's name of a PKCS #11 module that is loaded whoever
// owns it: whoever sets a command's environment can have it run anything.
const moduleVariable = "FLEETHUB_PKCS11_MODULE"

// trustedModule returns the path, without links, of a module that may be loaded: it and
// every folder above it are root's, and nobody else can write to them, so they stay what
// they were seen to be. The named one is taken as it is.
func trustedModule(module, named string) (string, error) {
	if !filepath.IsAbs(module) {
		return "", fmt.Errorf("the PKCS #11 module %q is not an absolute path: name it by one in module-path", module)
	}
	if module == named {
		return module, nil
	}
	path, err := filepath.EvalSymlinks(module)
	if err != nil {
		return "", fmt.Errorf("the PKCS #11 module can't be found: %w", err)
	}
	for at := path; ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return "", fmt.Errorf("the PKCS #11 module %q can't be checked: %w", module, err)
		}
		if at == path && !info.Mode().IsRegular() {
			return "", fmt.Errorf("the PKCS #11 module %q is not a file: name the one that the token's maker installed", module)
		}
		if !rootsAlone(info) {
			return "", fmt.Errorf("the PKCS #11 module %q is not loaded, for others than root can change %q: "+
				"install it where only root writes, or name it in %s if you trust it", module, at, moduleVariable)
		}
		if at == filepath.Dir(at) {
			return path, nil
		}
	}
}

// rootsAlone reports whether nobody but root can change it, by owner and mode.
func rootsAlone(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0 && info.Mode().Perm()&0o022 == 0
}
