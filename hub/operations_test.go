package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
)

// refuses runs the command line and fails unless it ends with that exit code and says
// want.
func refuses(t *testing.T, h *hubtest.Hub, code int, want, args string) {
	t.Helper()
	out, err := hub(t, h, strings.Fields(args)...)
	if err == nil || command.Code(err) != code || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("hub %s: exit code %d, %v; want %d with %q\n%s", args, command.Code(err), err, code, want, out)
	}
}

// prints runs the command line with JSON output and decodes what it prints.
func prints[T any](t *testing.T, h *hubtest.Hub, args string) (v T) {
	t.Helper()
	out, err := hub(t, h, append(strings.Fields(args), "--output", "json")...)
	if err != nil {
		t.Fatalf("hub %s: %v", args, err)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("hub %s: %v in\n%s", args, err, out)
	}
	return v
}

func TestSelectionCommands(t *testing.T) {
	h := hubtest.Start(t)
	for _, id := range []string{"pi-1", "pi-2", "pi-3", "cam-1"} {
		h.Device(id)
	}
	online(t, h, h.Device("pi-4"))
	dir := t.TempDir()

	says(t, h, "device label pi-1 --set site=north,ring=canary --new-batch lot-1 --meta shelf=3", `^1 device changed$`)
	says(t, h, "device label --select id=pi-2|pi-3 --new-batch lot-1", `^dry run: it is for 2 devices, such as pi-2, pi-3$`, `add --confirm to do it`)
	says(t, h, "device label --select id=pi-2|pi-3 --new-batch lot-1 --confirm", `^2 devices changed$`)
	says(t, h, "device show pi-1", `^batch +lot-1$`, `^labels +ring=canary, site=north$`, `^metadata +shelf=3$`, `^certificate .* usable$`, `^history .* - → registered by hubtest \(manifest \d+ of station bench-1\)$`)
	says(t, h, "device list --batch lot-1", `^ID +STATE +ONLINE +MODEL +BATCH`, `^pi-1 +registered .*lot-1`, `^pi-3 `)
	if out, err := hub(t, h, "device", "list", "--select", "id=pi-*", "--batch", "lot-1"); err != nil || strings.Contains(out, "cam-1") || strings.Contains(out, "pi-4") {
		t.Errorf("%v:\n%s", err, out)
	}
	says(t, h, "device list --expiring 30d", `^no device is picked by expires<30d$`)
	says(t, h, "device list --expiring 90d --select id=pi-1", `^no device is picked by id=pi-1,expires<90d$`)
	refuses(t, h, command.Usage, "there is no field", "device list --select bacth=lot-1")
	refuses(t, h, command.Usage, `--expiring: "soon" is neither a duration`, "device list --expiring soon")
	refuses(t, h, command.Usage, "--expiring", "device list --expiring 30d,id=x")

	says(t, h, "device export --batch lot-1 --format csv --out "+dir+"/lot.csv", `^3 devices in `)
	data, err := os.ReadFile(dir + "/lot.csv")
	if err != nil || !regexp.MustCompile(`(?s)^id,state,.*\npi-1,registered,,,lot-1,bench-1,software,"?ring=canary site=north"?,[0-9a-f]+,.*\npi-3,`).Match(data) {
		t.Errorf("%v:\n%s", err, data)
	}
	refuses(t, h, 1, "exists", "device export --out "+dir+"/lot.csv")
	says(t, h, "device export --select id=cam-1", `^\{"id":"cam-1"`)

	// A dry run by default, with a mark in JSON.
	says(t, h, "device revoke --select id=pi-* --reason keyCompromise", `^dry run: 4 devices would be revoked \(keyCompromise\), for good$`, `^  batch +lot-1 3, bench-1\.\d+ 1$`, `^  connected now +1$`, `add --confirm to do it$`)
	if plan := prints[admin.SelectionAnswer](t, h, "device revoke --select id=pi-* --reason keyCompromise"); plan.Plan == nil || !plan.Plan.DryRun || plan.Plan.Count != 4 {
		t.Errorf("plan = %+v", plan)
	}
	if plan := prints[admin.RevokePlan](t, h, "device revoke pi-1 --reason keyCompromise"); !plan.DryRun {
		t.Errorf("plan = %+v", plan)
	}
	if plan := prints[admin.IssuerPlan](t, h, "issuer remove bench-1"); !plan.DryRun {
		t.Errorf("plan = %+v", plan)
	}
	says(t, h, "device suspend --batch lot-1 --reason drill --confirm", `^3 devices suspended \(certificateHold: drill\)$`)
	says(t, h, "device resume --select state=suspended --confirm --count 3", `^3 devices resumed$`)
	refuses(t, h, 1, "not 5", "device revoke --select id=pi-* --reason keyCompromise --confirm --count 5")
	says(t, h, "device revoke --select id=pi-* --reason keyCompromise --note stolen --confirm --count 4 --receipt "+dir+"/r.jws",
		`^4 devices revoked \(keyCompromise: stolen\)$`, `^  sessions closed +1, the last at `, `^  time to revoke +p50 `, `^  certificates +4 revoked$`, `^  by +admin$`)
	refuses(t, h, 1, "no device to change", "device revoke --select id=pi-* --reason keyCompromise --confirm")

	// The proof, without a hub.
	says(t, h, "receipt verify "+dir+"/r.jws", `^good: signed by CN=hub`, `^4 devices revoked`)
	verified := prints[verified](t, h, "receipt verify "+dir+"/r.jws")
	if !verified.Valid || len(verified.Receipt.Devices) != 4 || verified.Receipt.AuditHead == nil {
		t.Errorf("verified = %+v", verified)
	}
	if data, err = os.ReadFile(dir + "/r.jws"); err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(dir+"/forged.jws", data, 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, h, 1, "receipt not accepted", "receipt verify "+dir+"/forged.jws")
	refuses(t, h, command.NotFound, "there is no file", "receipt verify "+dir+"/none.jws")
	other := certtest.New(t)
	other.Device("x").WriteTo(filepath.Join(dir, "other"), "x")
	refuses(t, h, 1, "not of this fleet", "receipt verify "+dir+"/r.jws --ca "+dir+"/other/ca.crt")
	id := verified.Receipt.ReceiptID
	says(t, h, "receipt list", `^`+id+` +revoke +4 +id=pi-\* +keyCompromise +1 +admin +-$`)
	says(t, h, "receipt show "+id, `^4 devices revoked`)
	says(t, h, "receipt save "+id+" --out "+dir+"/again.jws", `^receipt `+id)
	refuses(t, h, 1, "never overwritten", "receipt save "+id+" --out "+dir+"/again.jws")
	refuses(t, h, command.NotFound, "no such receipt", "receipt show nothing")

	says(t, h, "device retire cam-1 --note worn", `^dry run: device cam-1 .* would be retired for cessationOfOperation, for good$`)
	says(t, h, "device retire cam-1 --note worn --confirm", `^device cam-1 is retired \(cessationOfOperation: worn\)$`)
	says(t, h, "device reinstate cam-1", `^dry run: device cam-1 is retired`)
	says(t, h, "device reinstate cam-1 --confirm", `^device cam-1 is still retired, and may come back`)
	says(t, h, "device show cam-1", `^may come back +with a new certificate, by leave of admin`, `^certificate .* revoked .*\(cessationOfOperation\)$`)
	h.Device("new-1")
	h.Device("new-2")
	refuses(t, h, command.Usage, "another device", "device replace new-1 --by new-1 --confirm")
	says(t, h, "device replace new-1 --by new-2 --confirm", `^device new-1 is replaced \(superseded\)$`)
	says(t, h, "device show new-2", `^replaces +new-1$`)
	for _, args := range []string{"device revoke --reason keyCompromise", "device suspend", "device suspend pi-1 --batch x", "device label --set a=b", "device label pi-1 --set a"} {
		refuses(t, h, command.Usage, "", args)
	}
}

func TestAuditCommands(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	h.Device("pi-2")
	says(t, h, "device suspend pi-1 --reason lost", `^device pi-1 is suspended \(certificateHold: lost\)$`)
	dir := t.TempDir()
	for args, want := range map[string]int{
		"":                                      3,
		"--device pi-1":                         2,
		"--action device.":                      1,
		"--action device.suspend --actor admin": 1,
		"--actor hubtest":                       2,
		"--outcome refused":                     0,
		"--since 1h":                            3,
		"--until 1h":                            0,
		"--until 2999-01-01":                    3,
		"--last 2":                              2,
	} {
		if got := prints[[]registry.AuditRecord](t, h, "audit list "+args); len(got) != want {
			t.Errorf("audit list %s lists %d records, want %d", args, len(got), want)
		}
	}
	says(t, h, "audit list --device pi-1", `^NO +TIME`, `device\.suspend +pi-1 +done +registered→suspended +certificateHold: lost$`)
	says(t, h, "audit list --device nobody", `^no such records$`)
	refuses(t, h, command.Usage, "neither a duration", "audit list --since yesterday")
	refuses(t, h, command.Usage, "outcome", "audit list --outcome maybe")

	verified := prints[auditVerified](t, h, "audit verify")
	if !verified.Valid || verified.Head.Number != 3 || verified.Receipts != 1 {
		t.Fatalf("verified = %+v", verified)
	}
	head := "3:" + verified.Head.Hash.String()
	says(t, h, "audit verify", `^good: 3 records, none changed, removed or moved, as 1 receipt noted it$`, `^head +`+head+`$`)
	says(t, h, "audit export --out "+dir+"/audit.jsonl", `^3 records in `, `^head +`+head+`$`)
	says(t, h, "audit verify "+dir+"/audit.jsonl --expect "+head, `^good: 3 records`)
	h.Device("pi-3")
	says(t, h, "audit verify --expect "+head, `^good: 4 records`)
	forged := "3:" + strings.Repeat("0", 64)
	refuses(t, h, 1, "not the one expected", "audit verify --expect "+forged)
	refuses(t, h, 1, "not the one expected", "audit verify "+dir+"/audit.jsonl --expect "+forged)
	refuses(t, h, 1, "before the one expected", "audit verify "+dir+"/audit.jsonl --expect 9:"+verified.Head.Hash.String())
	refuses(t, h, command.Usage, "NUMBER:HASH", "audit verify --expect 3")
	data, err := os.ReadFile(dir + "/audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/forged.jsonl", []byte(strings.Replace(string(data), "lost", "sold", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	refuses(t, h, 1, "audit log was changed", "audit verify "+dir+"/forged.jsonl")
}

func TestSecondOperatorOnTheCommandLine(t *testing.T) {
	h := hubtest.Start(t, func(c *server.Config) { c.Operations.FourEyesOver = 1 })
	h.Device("pi-1")
	h.Device("pi-2")
	h.Fleet.Operator("ben", certtest.WithOU("operator")).WriteTo(filepath.Join(h.Dir, "ben"), "operator")
	h.Fleet.Operator("vic", certtest.WithOU("viewer")).WriteTo(filepath.Join(h.Dir, "vic"), "operator")
	ben, vic := " --credentials "+filepath.Join(h.Dir, "ben"), " --credentials "+filepath.Join(h.Dir, "vic")
	says(t, h, "device revoke --select id=pi-* --reason keyCompromise", `a second operator must approve it then$`)
	answer := prints[admin.SelectionAnswer](t, h, "device revoke --select id=pi-* --reason keyCompromise --confirm")
	if answer.Proposal == nil {
		t.Fatalf("answer = %+v", answer)
	}
	id, digest := answer.Proposal.ID, " --digest "+answer.Proposal.Tag
	says(t, h, "proposal list", `^`+id+` +revoke +2 +id=pi-\* +admin +keyCompromise .* `+answer.Proposal.Tag+`$`)
	refuses(t, h, 1, "digest", "proposal approve "+id+" --count 2"+ben)
	refuses(t, h, 1, "not the proposal that was reviewed", "proposal approve "+id+" --count 2 --digest 0123456789abcdef"+ben)
	refuses(t, h, command.Denied, "second operator", "proposal approve "+id+" --count 2"+digest)
	refuses(t, h, command.Denied, "takes the role operator", "proposal approve "+id+" --count 2"+digest+vic)
	says(t, h, "proposal list"+vic, `^`+id)
	refuses(t, h, 1, "not 1", "proposal approve "+id+" --count 1"+digest+ben)
	says(t, h, "proposal approve "+id+" --count 2"+digest+ben, `^2 devices revoked`, `^  by +admin, approved by ben$`)
	refuses(t, h, command.NotFound, "no such proposal", "proposal withdraw "+id)
	h.Device("cam-1")
	h.Device("cam-2")
	answer = prints[admin.SelectionAnswer](t, h, "device retire --select id=cam-* --confirm"+ben)
	says(t, h, "proposal withdraw "+answer.Proposal.ID, `is withdrawn; nothing was changed$`)
}

func TestIssuerIsRevokedOnTheCommandLine(t *testing.T) {
	h := hubtest.Start(t)
	bench2 := h.Station("bench-2")
	online(t, h, bench2.Device("pi-2"))
	h.Device("pi-1")
	says(t, h, "issuer revoke bench-2", `^dry run: 1 device would be revoked \(cACompromise\), for good$`, `^  connected now +1$`)
	says(t, h, "issuer revoke bench-2 --confirm --count 1", `^issuer bench-2 .* is no longer trusted$`, `^1 device revoked \(cACompromise\)$`)
	if d := prints[admin.Device](t, h, "device show pi-2"); d.State != registry.StateRevoked {
		t.Errorf("pi-2 is %s", d.State)
	}
	if d := prints[admin.Device](t, h, "device show pi-1"); d.State != registry.StateRegistered {
		t.Errorf("pi-1 is %s", d.State)
	}
	refuses(t, h, command.NotFound, "hub device revoke --select issuer=KEY", "issuer revoke bench-2")
	refuses(t, h, 1, "can't do without", "issuer revoke hub --confirm")
	// A device of an issuer that was removed, not revoked, has no usable certificate either.
	says(t, h, "issuer remove bench-1 --confirm", `no longer trusted`)
	says(t, h, "device show pi-1", `^certificate .* not accepted: its issuing CA is not trusted$`)
	if r := prints[[]fleet.Receipt](t, h, "receipt list"); len(r) != 1 || r[0].Reason != "cACompromise" {
		t.Errorf("receipts = %+v", r)
	}
	// So a revocation that a kill has cut short after the removal is gone on with by the issuer's key.
	h.Restart()
	key := prints[admin.Device](t, h, "device show pi-1").Certificates[0].Issuer
	says(t, h, "device revoke --select issuer="+key+" --reason cACompromise --confirm --count 1", `^1 device revoked \(cACompromise\)$`)
}
