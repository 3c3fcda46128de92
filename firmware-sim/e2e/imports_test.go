package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"
)

// A rule says what one room, and every package below it, may import of ours. The first rule that matches a package counts.
type rule struct {
	room    string   // path below the module, "" for any
	imports []string // rooms, each with everything below it; a leading "=" means only that package
	reason  string
}

// houseRules is DESIGN.md §3 as a table.
var houseRules = []rule{
	{"certs/identity", nil, "floor 0: everything stands on it"},
	{"certs/revocation", nil, "floor 0: a set anybody can hold"},
	{"certs/pemfile", nil, "floor 0: files know nothing of what is in them"},
	{"certs/command", nil, "floor 0: what four command lines share, and no more"},
	{"certs/certtest", []string{"certs"}, "a throwaway fleet is made of all that certs can do"},
	{"certs/tpm/tpmtest", certs, "a TPM for tests is swtpm behind certs/tpm"},
	{"certs/cakey", append([]string{"certs/tpm"}, floor0...), "a CA's key in a file, a TPM or a token: the one room above certs/tpm"},
	{"certs", floor0, "floor 1 stands on floor 0; neighbours don't know each other"},

	{"hub/protocol", nil, "the door: what enters here enters every device"},
	{"hub/registry", floor0, "states and transitions, no I/O: nothing to call"},
	{"hub/topic", nil, "names and filters need nobody"},
	{"hub/wire", nil, "frames need nobody"},
	{"hub/journal", []string{"certs/pemfile"}, "bytes in files: knows neither MQTT nor hub"},
	{"hub/ticket", certs, "lowest hub floor"},
	{"hub/session", certs, "lowest hub floor"},
	{"hub/capture", certs, "reads captures of any TLS connection, knows no hub"},
	{"hub/authority", certs, "folders with a CA's key, the hub's and the root's: knows no fleet"},
	{"hub/fleet", under(certs, hubLow), "operator verbs stand on the registry, and reach sockets and disks through interfaces"},
	{"hub/policy", under(certs, hubLow, []string{"hub/fleet", "hub/admission"}), "rules over identities and topics"},
	{"hub/admission", under(certs, hubLow, []string{"hub/fleet", "hub/policy"}), "asks who may come in, knows no socket"},
	{"hub/ingest", under(certs, hubLow, []string{"hub/journal"}), "durable acceptance: records over the journal"},
	{"hub/consumer", under(certs, hubLow, []string{"hub/journal", "hub/ingest"}), "readers of the journal, whoever shows or sends what they read"},
	{"hub/status", under(certs, hubLow, []string{"hub/fleet"}), "what others may know of certificates, from the registry"},
	{"hub/why", under(certs, hubLow), "remembers in words, knows no socket"},
	{"hub/misuse", under(certs, hubLow), "counts what devices do, knows no socket"},
	{"hub/boltstore", under(certs, hubLow, hubMiddle), "satisfies its users' interfaces without importing the rooms beside it"},
	{"hub/listener", under(certs, hubLow, hubMiddle), "accepts connections, knows no MQTT session"},
	{"hub/broker/conformance", []string{"certs", "hub"}, "tests a whole hub from outside"},
	{"hub/broker", under(certs, hubLow, hubMiddle, []string{"hub/listener", "hub/journal"}), "speaks MQTT over what the listener accepted"},
	{"hub/admin", under(certs, hubLow, hubMiddle), "HTTP over fleet; the broker is handed to it as functions"},
	{"hub/console", under(certs, hubLow, hubMiddle), "pages over the API, which is handed to it as a handler: it has no way around it"},
	{"hub/cluster", under(certs, hubLow, hubMiddle), "other nodes behind an interface"},
	{"hub", []string{"certs", "hub"}, "the hub knows no other program"},

	{"device-agent/link/linktest", nil, "a server for tests of clients, and no more"},
	{"provisioning", []string{"certs", "provisioning"}, "the station knows no hub: a manifest file is what passes between them"},
	{"device-agent", []string{"certs", "device-agent", "hub/protocol"}, "a device knows of the hub only its door"},
	{"firmware-sim/soak", []string{"certs", "firmware-sim", "hub/protocol", "hub/wire", "hub/journal"}, "a judge reads frames and the journal's files, and nothing of the hub's insides"},
	{"firmware-sim", []string{"certs", "firmware-sim", "hub/protocol", "device-agent/link"}, "a simulated device is a device without its sensors"},
}

var (
	floor0    = []string{"certs/identity", "certs/revocation", "certs/pemfile"}
	certs     = []string{"certs"}
	hubLow    = []string{"hub/registry", "hub/topic", "hub/wire", "hub/ticket", "hub/session", "hub/protocol"}
	hubMiddle = []string{"hub/fleet", "hub/policy", "hub/admission", "hub/ingest", "hub/consumer", "hub/status", "hub/why", "hub/misuse"}
)

// onlyRooms names the rooms that may import a dependency: one owner each, so that it can be replaced there.
var onlyRooms = []struct {
	dependency string
	rooms      []string
	reason     string
}{
	{"github.com/mochi-mqtt", []string{"hub/wire", "firmware-sim/peers", "device-agent/link/linktest"}, "its defects (DESIGN §9) are contained in one room; the peers' benchmark runs its server, and tests of clients do"},
	{"github.com/eclipse/paho", []string{"device-agent/link"}, "no jitter, a store that panics: link is the only one who knows"},
	{"go.etcd.io/bbolt", []string{"hub/boltstore", "provisioning/ledger", "device-agent/outbox"}, "the file format has one owner"},
	{"github.com/nats-io", []string{"hub/cluster"}, "the hub runs without it"},
	{"github.com/google/go-tpm", []string{"certs/tpm"}, "TPM marshalling stays in one room"},
	{"github.com/foxboron/go-tpm-keyfiles", []string{"certs/tpm"}, "key files are of a TPM"},
	{"github.com/youmark/pkcs8", []string{"certs/cakey"}, "how a CA's key is kept is in one room"},
	{"github.com/ThalesGroup/crypto11", []string{"certs/cakey"}, "likewise, by build tag"},
	{"github.com/google/go-attestation", []string{"certs/tpm"}, "what is demanded of a TPM is in one room"},
	{"github.com/boombuler/barcode", []string{"provisioning/label"}, "what is printed on a board has one owner"},
	{"github.com/smallstep/pkcs7", []string{"certs/est"}, "CMS stays where EST is"},
	{"github.com/go-jose", []string{"certs/manifest", "certs/receipt", "hub/console"}, "JOSE stays where signatures are"},
	{"github.com/coreos/go-oidc", []string{"hub/admin"}, "whose tokens are good is decided in one room"},
	{"github.com/google/jsonschema-go", []string{"hub/admin"}, "the API's document is derived where its routes are"},
	{"github.com/getkin/kin-openapi", nil, "a foreign judge of that document, in tests only"},
	{"github.com/spf13/cobra", []string{"=hub", "=provisioning", "=device-agent", "=firmware-sim", "certs/command"}, "command lines are the programs' outermost layer"},
	{"github.com/vbauerster/mpb", []string{"firmware-sim", "=provisioning"}, "progress bars are for a person at a terminal"},
	{"github.com/gopacket", []string{"hub/capture"}, "packets are taken apart in one room"},
	{"github.com/tink-crypto", []string{"hub/ticket"}, "AES-SIV seals tickets and nothing else"},
	{"github.com/prometheus", []string{"hub/server"}, "rooms count, the composition root exports"},
	{"testing", testHelpers, "production code doesn't ask whether it is tested"},
}

// testHelpers may be imported by any test, and by no program.
var testHelpers = []string{"certs/certtest", "certs/tpm/tpmtest", "hub/hubtest", "device-agent/link/linktest"}

// badNames are rooms without an idea.
var badNames = []string{"util", "utils", "common", "types", "helpers", "misc", "shared"}

func under(rooms ...[]string) []string {
	var all []string
	for _, r := range rooms {
		all = append(all, r...)
	}
	return all
}

// within reports whether pkg is one of rooms or lies below one.
func within(pkg string, rooms []string) bool {
	for _, room := range rooms {
		if exact, ok := strings.CutPrefix(room, "="); ok {
			if pkg == exact {
				return true
			}
			continue
		}
		if pkg == room || strings.HasPrefix(pkg, room+"/") {
			return true
		}
	}
	return false
}

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports"}, args...)...)
	cmd.Dir = repository
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var list []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// room strips the module path; ok is false for packages that aren't ours.
func room(importPath string) (name string, ok bool) {
	return strings.CutPrefix(importPath, modulePath+"/")
}

func ruleFor(pkg string) (rule, bool) {
	for _, r := range houseRules {
		if within(pkg, []string{r.room}) {
			return r, true
		}
	}
	return rule{}, false
}

func TestPackagesImportOnlyWhatTheirFloorAllows(t *testing.T) {
	for _, p := range goList(t, "./...") {
		pkg, _ := room(p.ImportPath)
		r, ok := ruleFor(pkg)
		if !ok {
			t.Errorf("%s: no rule in houseRules; add one with its reason (DESIGN.md §3)", pkg)
			continue
		}
		isHelper := within(pkg, testHelpers)
		for _, importPath := range p.Imports {
			imported, ours := room(importPath)
			switch {
			case !ours:
			case within(imported, testHelpers) && !isHelper:
				t.Errorf("%s imports %s: a test helper has no place in a program", pkg, imported)
			case !within(imported, r.imports) && !isHelper && !within(imported, []string{pkg}):
				t.Errorf("%s imports %s, against the rule of %s: %s", pkg, imported, r.room, r.reason)
			}
		}
		// A test uses real components rather than fakes: any room of its own program, certs and the helpers.
		program, _, _ := strings.Cut(pkg, "/")
		allowed := under(r.imports, testHelpers, certs, []string{program})
		for _, importPath := range append(p.TestImports, p.XTestImports...) {
			if imported, ours := room(importPath); ours && !within(imported, allowed) {
				t.Errorf("the tests of %s import %s, against the rule of %s: %s", pkg, imported, r.room, r.reason)
			}
		}
	}
}

func TestDependenciesHaveOneOwner(t *testing.T) {
	for _, p := range goList(t, "./...") {
		pkg, _ := room(p.ImportPath)
		for _, only := range onlyRooms {
			if within(pkg, only.rooms) {
				continue
			}
			for _, imported := range p.Imports {
				if within(imported, []string{only.dependency}) {
					t.Errorf("%s imports %s, which belongs to %s: %s", pkg, imported, strings.Join(only.rooms, ", "), only.reason)
				}
			}
		}
	}
}

func TestPackageNamesSayWhatTheyHold(t *testing.T) {
	for _, p := range goList(t, "./...") {
		for _, bad := range badNames {
			if path.Base(p.ImportPath) == bad {
				t.Errorf("%s: a room without an idea; name it for what it owns", p.ImportPath)
			}
		}
	}
}

// What is linked into a program counts as much as what it imports itself.
func TestProgramsLinkNoTestCodeAndNoForeignProgram(t *testing.T) {
	unwanted := map[string][]string{
		"hub":          {"github.com/eclipse/paho"},
		"provisioning": {"github.com/eclipse/paho", "github.com/mochi-mqtt", modulePath + "/hub"},
		"device-agent": {"github.com/mochi-mqtt", "github.com/prometheus", modulePath + "/hub/server"},
		"firmware-sim": {"github.com/mochi-mqtt", modulePath + "/hub/server"},
	}
	for program, list := range unwanted {
		for _, p := range goList(t, "-deps", "./"+program) {
			if within(p.ImportPath, append(list, "testing", modulePath+"/certs/certtest", modulePath+"/hub/hubtest")) {
				t.Errorf("%s links %s", program, p.ImportPath)
			}
		}
	}
}
