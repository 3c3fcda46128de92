package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

func TestOpenTakesPathsSocketsAndPorts(t *testing.T) {
	t.Parallel()
	for _, network := range []tpmtest.Network{tpmtest.Unix, tpmtest.TCP} {
		e := tpmtest.StartOn(t, network)
		addresses := []string{e.Address()}
		if path, ok := strings.CutPrefix(e.Address(), "unix://"); ok {
			addresses = append(addresses, path)
		}
		for _, address := range addresses {
			d, err := Open(address)
			if err != nil {
				t.Errorf("%s: %v", address, err)
				continue
			}
			wantUnsealed(t, d, mustSeal(t, d, []byte("s")), []byte("s"))
			if d.Address() != address {
				t.Errorf("%s says it is at %s", address, d.Address())
			}
		}
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stopped := tpmtest.Start(t)
	stopped.Stop()
	for address, says := range map[string]string{
		"":                    "/dev/tpmrm0, ",
		"tpmrm0":              "/dev/tpmrm0, ",
		"tcp://127.0.0.1":     "tcp://127.0.0.1:2321",
		"tcp://127.0.0.1:1/x": "tcp://127.0.0.1:2321",
		"unix://host/socket":  "unix:///run/swtpm.sock",
		"http://127.0.0.1:1":  "is none",
		file:                  "neither a device nor a socket",
		"/dev/null":           "EOF",
		stopped.Address():     "no such file",
		"unix://" + stranger(t, []byte("220 mail.example ESMTP")): "is this the address of a TPM?",
		"unix://" + stranger(t, nil):                              "EOF",
	} {
		if _, err := Open(address); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v; want it to say %q", address, err, says)
		}
	}
	if _, err := Open(filepath.Join(dir, "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

// stranger returns the socket of a server that isn't a TPM.
func stranger(t *testing.T, greeting []byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { // until the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 100))
			_, _ = c.Write(greeting)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		served.Wait()
		_ = os.RemoveAll(dir)
	})
	return path
}

func TestDetectWantsATPM20(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		devices []string
		version string
		address string
	}{
		{"none", nil, "", ""},
		{"shared", []string{"tpm0", "tpmrm0"}, "2\n", "/dev/tpmrm0"},
		{"old kernel", []string{"tpm0"}, "2\n", "/dev/tpm0"},
		{"TPM 1.2", []string{"tpm0"}, "1\n", ""},
		{"unknown version", []string{"tpm0"}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "sys/class/tpm/tpm0"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(root, "dev"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range tt.devices {
				if err := os.Symlink(os.DevNull, filepath.Join(root, "dev", name)); err != nil {
					t.Fatal(err)
				}
			}
			if tt.version != "" {
				if err := os.WriteFile(filepath.Join(root, "sys/class/tpm/tpm0/tpm_version_major"), []byte(tt.version), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if address, ok := detect(root); address != tt.address || ok != (tt.address != "") {
				t.Errorf("%q, %t", address, ok)
			}
		})
	}
	if address, ok := Detect(); ok != (address != "") { // whatever this machine has
		t.Errorf("%q, %t", address, ok)
	}
}

func TestTPMThatIsBackWorksAgain(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	sealed := mustSeal(t, d, []byte("s"))
	e.Stop()
	if _, err := d.Unseal(sealed); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), e.Address()) {
		t.Errorf("%v", err)
	}
	e.Restart()
	wantUnsealed(t, d, sealed, []byte("s"))
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		is   error
		says string
	}{
		{&fs.PathError{Op: "open", Path: "/dev/tpmrm0", Err: syscall.EACCES}, ErrAccess, "tss"},
		{&fs.PathError{Op: "open", Path: "/dev/tpm0", Err: syscall.EBUSY}, ErrBusy, "/dev/tpmrm0"},
		{tpm2.TPMRCLockout, ErrLockedOut, "tpm2_dictionarylockout"},
		{tpm2.TPMRCHierarchy, ErrAccess, "disabled"},
		{tpm2.TPMRCInitialize, nil, "startup-clear"},
		{tpm2.TPMRCFailure, tpm2.TPMRCFailure, "power"},
		{fmt.Errorf("open: %w", ErrOtherTPM), ErrOtherTPM, "cleared"},
		{syscall.ECONNREFUSED, syscall.ECONNREFUSED, "refused"},
	} {
		got := explain(tt.err)
		if tt.is != nil && !errors.Is(got, tt.is) || !strings.Contains(got.Error(), tt.says) {
			t.Errorf("%v is explained as %q", tt.err, got)
		}
	}
}
