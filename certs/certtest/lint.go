package certtest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// notOurs has the sources of zlint's lints that are not for a private PKI, and why. All
// others apply: RFC 5280, 3279, 5480, 5891, 6960, 6962 and 8813, and the community's.
var notOurs = map[string]string{
	"CABF_BR":       "CA/B Forum, TLS servers of the public web: demands of host names, validity, policies and logs that no fleet has",
	"CABF_EV":       "CA/B Forum, TLS servers with a checked company name",
	"CABF_CS_BR":    "CA/B Forum, code signing",
	"CABF_SMIME_BR": "CA/B Forum, mail",
	"Apple":         "a root programme of the public web",
	"Mozilla":       "a root programme of the public web",
	"ETSI_ESI":      "qualified certificates of natural and legal persons",
}

// Lint holds certificates against zlint and returns, by the names they come under, the
// lints that call something of them an error, sorted; none where there is nothing to say.
// zlint is the one of scripts/tools.mod, built at the first use.
func Lint(t testing.TB, certs map[string]*x509.Certificate) map[string][]string {
	t.Helper()
	mod, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	var sources []string
	for source := range notOurs {
		sources = append(sources, source)
	}
	dir := t.TempDir()
	names := make([]string, 0, len(certs))
	args := []string{"tool", "-modfile=scripts/tools.mod", "zlint", "-excludeSources", strings.Join(sources, ",")}
	for name, cert := range certs {
		file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".pem")
		if err := os.WriteFile(file, pemfile.EncodeCertificates(cert), 0o600); err != nil {
			t.Fatal(err)
		}
		names, args = append(names, name), append(args, file)
	}
	zlint := exec.CommandContext(t.Context(), "go", args...)
	zlint.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	var stderr bytes.Buffer
	zlint.Stderr = &stderr
	out, err := zlint.Output()
	if err != nil {
		t.Fatalf("zlint: %v: %s", err, stderr.Bytes())
	}
	found := make(map[string][]string)
	results := json.NewDecoder(bytes.NewReader(out)) // one object a file, in order
	for _, name := range names {
		var lints map[string]struct{ Result, Details string }
		if err := results.Decode(&lints); err != nil {
			t.Fatalf("zlint's answer about %s: %v", name, err)
		}
		passed := 0
		for lint, l := range lints {
			switch strings.ToLower(l.Result) {
			case "error", "fatal":
				found[name] = append(found[name], strings.TrimSpace(lint+" "+l.Details))
			case "pass":
				passed++
			}
		}
		if passed == 0 {
			t.Fatal(errors.New("zlint had nothing to look at in " + name))
		}
		slices.Sort(found[name])
	}
	return found
}
