package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/hub/authority"
)

// nothingSigned fails if the root in the folder has a record, or there is an answer.
func nothingSigned(t *testing.T, root, out string) {
	t.Helper()
	for _, file := range []string{filepath.Join(root, authority.JournalFile), out} {
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s is there: something was signed", file)
		}
	}
}

// A request that was swapped on its way has another key than was printed.
func TestRootSignsOnlyTheKeyThatItIsTold(t *testing.T) {
	work := t.TempDir()
	stick, file, out := filepath.Join(work, "stick"), filepath.Join(work, "hub.csr"), filepath.Join(work, "hub.crt")
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
	printed := writeCSR(t, filepath.Join(work, "meant.csr"), "hub")
	swapped := writeCSR(t, file, "hub")
	dir := initHub(t)
	journal := filepath.Join(dir, "root", authority.JournalFile)
	before, err := os.ReadFile(journal) // the hub's own CA
	if err != nil {
		t.Fatal(err)
	}
	for _, try := range []struct{ dir, root, line string }{
		{stick, stick, "root sign --kind operational"}, {stick, stick, "root sign --kind factory"}, {dir, "", "station authorize"},
	} {
		line := try.line + " --csr " + file + " --out " + out + " --key-sha256="
		for digits, code := range map[string]int{printed: 3, printed[:16]: 3, swapped[:15]: 2, "": 2, swapped + "00": 2, strings.Repeat("g", 64): 2} {
			refused(t, try.dir, line+digits, code, "nothing was signed")
		}
		if try.root != "" {
			nothingSigned(t, try.root, out)
		}
	}
	if after, err := os.ReadFile(journal); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the hub's root has signed something (%v)", err)
	}
	mustHub(t, stick, "root sign --kind operational --csr "+file+" --out "+out+" --key-sha256 "+strings.ToUpper(swapped[:16]))
}

// conversation is a terminal at which somebody types.
type conversation struct {
	io.Reader
	bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func TestPersonTypesBackWhatTheRequesterPrinted(t *testing.T) {
	asked := askedKey{kind: factoryWord, name: "bench-1", hash: "0123456789abcdef" + strings.Repeat("7", 48)}
	for typed, code := range map[string]int{
		"01234567\n": command.OK, " 01234567 \n": command.OK, "0123456789ABCDEF\n": command.OK,
		"\n": command.Usage, "0123456\n": command.Usage, "y\n": command.Usage,
		"01234568\n": command.Denied, "bench-1 yes\n": command.Denied, asked.hash + "7\n": command.Denied,
		"": command.Failure, "01234567": command.Failure, strings.Repeat("0", 1000): command.Failure,
	} {
		terminal := &conversation{Reader: strings.NewReader(typed)}
		if err := asked.ask("station.csr", terminal); command.Code(err) != code {
			t.Errorf("%.80q: exit code %d (%v), want %d", typed, command.Code(err), err, code)
		}
		for _, want := range []string{asked.kind, asked.name, asked.hash} {
			if !strings.Contains(terminal.String(), want) {
				t.Errorf("the terminal shows %q, without %s", terminal, want)
			}
		}
	}
}

// A name is shown before anybody has vouched for it.
func TestNameOfARequestCannotWriteToTheTerminal(t *testing.T) {
	work := t.TempDir()
	stick, file := filepath.Join(work, "stick"), filepath.Join(work, "hub.csr")
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
	key := writeCSR(t, file, "hub\x1b[2J")
	refused(t, stick, "root sign --kind operational --csr "+file+" --out "+file+".crt --key-sha256 "+key, command.Failure, "name")
	nothingSigned(t, stick, file+".crt")
}

func TestPlantedRootIsNotTakenUp(t *testing.T) {
	work := t.TempDir()
	theirs, stick := filepath.Join(work, "theirs"), filepath.Join(work, "stick")
	mustHub(t, theirs, "root init --trust-domain fleet.example --key file")
	if err := os.Mkdir(stick, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(stick, ".partial"), os.DirFS(theirs)); err != nil {
		t.Fatal(err)
	}
	if err := pemfile.Write(filepath.Join(stick, ".partial", ".complete"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := authority.RootCertificate(theirs)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, stick, "root init --trust-domain fleet.example --key file", command.Failure, "SHA-256 "+identity.Fingerprint(root))
	if _, err := os.Lstat(filepath.Join(stick, "root.crt")); err == nil {
		t.Error("the planted root is in place")
	}
	if err := os.RemoveAll(filepath.Join(stick, ".partial")); err != nil {
		t.Fatal(err)
	}
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
}

// What the root's record can't know, that a hub has removed a CA, its keeper says.
func TestRemovedCAIsNotHandedOn(t *testing.T) {
	work := t.TempDir()
	stick, in := filepath.Join(work, "stick"), func(name string) string { return filepath.Join(work, name) }
	mustHub(t, stick, "root init --trust-domain fleet.example --key file")
	if out := mustHub(t, stick, "root list"); !strings.Contains(out, "there is no record") {
		t.Errorf("without a record it lists\n%s", out)
	}
	for _, name := range []string{"hub", "hub-2"} {
		key := writeCSR(t, in(name+".csr"), name)
		mustHub(t, stick, "root sign --kind operational --csr "+in(name+".csr")+" --key-sha256 "+key+" --out "+in(name+".crt"))
	}
	key := writeCSR(t, in("s.csr"), "bench-1")
	sign := "root sign --kind factory --csr " + in("s.csr") + " --key-sha256 " + key
	refused(t, stick, sign+" --without hub-3 --out "+in("s.crt"), command.Failure, "hub-3")
	refused(t, stick, "root sign --kind operational --csr "+in("s.csr")+" --without hub --out "+in("s.crt"), command.Usage, "--without")
	out := mustHub(t, stick, sign+" --without hub --out "+in("s.crt"))
	for _, want := range []string{"handed on    hub-2 (", "had 2 lines", "plain file", "root SHA-256"} {
		if !strings.Contains(out, want) {
			t.Errorf("it doesn't say %q:\n%s", want, out)
		}
	}
	handed, err := pemfile.ReadCertificates(in("s.crt"))
	if err != nil || len(handed) != 3 || handed[2].Subject.CommonName != "hub-2" {
		t.Errorf("the station gets %d certificates (%v), want its own, the root's and hub-2's", len(handed), err)
	}
}
