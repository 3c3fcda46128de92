package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestWrongInputIsNamedAndHasItsExitCode(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"policy explain pi-1 publish d/pi-1/tele/x --role king", command.Usage, `"king" is neither device nor service`},
		{"policy test nothere", command.NotFound, "there is no file nothere"},
		{"crl import nothere.crl", command.NotFound, "there is no file nothere.crl"},
		{"restore nothere.tar", command.NotFound, "there is no backup nothere.tar"},
		{"anomaly list nobody", command.NotFound, "no such device: nobody"},
		{"tail --from yesterday", command.Usage, `--from: "yesterday" is no place to begin`},
		{"tail --from -1day", command.Usage, `"-1day" is no place`},
		{"tail --from 99999", command.Usage, "position 99999 is not there yet: the next message gets "},
		{"consumer seek x --from soon", command.Usage, `--from: "soon" is no place to begin`},
		{"consumer delete x", command.NotFound, "no such consumer"},
		{"audit list --last -1", command.Usage, "--last: -1 is less than 0"},
		{"device revoke pi-1 --reason keyCompromise --confirm --receipt " + filepath.Join(dir, "nowhere", "x"), command.NotFound, "there is no folder " + filepath.Join(dir, "nowhere") + ": nothing was done"},
		{"device suspend pi-1 --receipt " + dir, command.Failure, "is never overwritten: nothing was done"},
		{"proposal approve x --count 1 --digest 0123456789abcdef --receipt " + dir, command.Failure, "nothing was done"},
		{"crl import " + filepath.Join(dir, "empty"), command.Usage, filepath.Join(dir, "empty") + ": "},
		{"device list --hub https://" + h.MetricsAddr(), command.Unreachable, "doesn't speak TLS: is it another port than the hub's for HTTPS"},
		{"device list --hub https://" + h.MQTTAddr(), command.Denied, "its log says why, and whether that is its HTTPS port"},
		{"store check", command.Failure, "a hub is running in " + h.Dir + ", and its stores can be looked through only at rest: stop it first"},
		{"restore " + filepath.Join(dir, "empty") + " --replace", command.Failure, "a hub is running in " + h.Dir + ": stop it first"},
	} {
		refuses(t, h, c.code, c.says, c.args)
	}
	if d := prints[admin.Device](t, h, "device show pi-1"); d.State != registry.StateRegistered {
		t.Errorf("what was refused has made pi-1 %s", d.State)
	}
	says(t, h, "anomaly list pi-1", `^no anomalies since the hub started$`)
}

func TestFlagsOfAPlaceToBeginAreThoseThatTheHubTakes(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"start", "now", "0", "48213", "2026-03-01T08:00:00Z", "2026-03-01T08:00:00+01:00", "-1h", "-90m", "-1h30m"} {
		if err := validFrom(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{"", "1h", "+1h", "--1h", "-", "2026-03-01", "end", "-5"} {
		if err := validFrom(text); command.Code(err) != command.Usage {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestConsumerIsForgottenAloud(t *testing.T) {
	h := hubtest.Start(t)
	says(t, h, "consumer list", `^NAME +KIND`, `^the journal `)
	says(t, h, "tail --consumer reader --from start --follow=false")
	says(t, h, "consumer delete reader", `^reader is forgotten; it had come to \d+$`)
	refuses(t, h, command.NotFound, "no such consumer", "consumer delete reader")
}

func TestOperatorsCertificateSaysItsRole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hub")
	run := func(args ...string) string {
		t.Helper()
		root := newRoot()
		var out bytes.Buffer
		root.SetArgs(append(args, "--dir", dir))
		root.SetOut(&out)
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	run("init")
	for ou, want := range map[string]string{"": "role     viewer: sees everything", "king": "role     viewer: ", "operator": "role     operator\n", "admin": "role     admin\n"} {
		args := []string{"operator", "issue", "ann", "--out", filepath.Join(t.TempDir(), "ann")}
		if ou != "" {
			args = append(args, "--ou", ou)
		}
		if out := run(args...); !strings.Contains(out, want) {
			t.Errorf("--ou %q: %s", ou, out)
		}
	}
	if out := run("service", "issue", "dashboard", "--out", filepath.Join(t.TempDir(), "dashboard")); strings.Contains(out, "role") {
		t.Errorf("a service: %s", out)
	}
}
