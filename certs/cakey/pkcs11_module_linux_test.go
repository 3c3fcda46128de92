package cakey

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A key's file that came on a stick names the code that would get the PIN.
func TestModuleThatOthersCanChangeIsNotLoaded(t *testing.T) {
	const system = "/etc/passwd" // root's, in root's folders
	dir := t.TempDir()
	planted := filepath.Join(dir, "evil.so")
	if err := os.WriteFile(planted, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.so")
	if err := os.Symlink(system, link); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ module, named, want string }{
		"of the system":       {system, "", system},
		"by a link to one":    {link, "", system}, // what is loaded is checked, not what led there
		"on a stick":          {planted, "", ""},
		"named":               {planted, planted, planted},
		"beside a named one":  {planted, planted + "x", ""},
		"a relative path":     {"evil.so", "", ""},
		"a relative one too":  {"evil.so", "evil.so", ""},
		"that isn't there":    {planted + "x", "", ""},
		"a folder":            {"/etc", "", ""},
		"out of a folder":     {"/etc/../" + planted, "", ""},
		"nothing, as none is": {"", "", ""},
	} {
		got, err := trustedModule(tt.module, tt.named)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tt.want)
		}
	}
}

// Not by owner alone: one that root left open to others is theirs, and so is a folder's.
func TestWhatRootAloneCanChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]bool{0o755: true, 0o644: true, 0o775: false, 0o757: false, 0o666: false} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := rootsAlone(info); got != (want && os.Getuid() == 0) {
			t.Errorf("mode %o: %t", mode, got)
		}
	}
}

func TestPromptForATokenSaysWhoGetsThePIN(t *testing.T) {
	path := write(t, []byte("pkcs11:token=fleet%1b[2J;object=root?module-path=/media/stick/evil.so\n"), 0o600)
	got := prompt(path)
	if !strings.HasPrefix(got, "PIN of token ") || !strings.Contains(got, "via \"/media/stick/evil.so\"") || strings.Contains(got, "\x1b") {
		t.Errorf("it asks %q", got)
	}
	if got := prompt(write(t, nil, 0o600)); !strings.HasPrefix(got, "Passphrase of ") {
		t.Errorf("it asks %q", got)
	}
}
