package station

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

func orderFile(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "po-1.csv")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestOrdersAreReadFromCSVAndJSONAlike(t *testing.T) {
	const csv = "\xef\xbb\xbfid, pattern,count,first,model,ou,labels,protection,not_after\n" +
		"a,,,,m1,press; line-2,site=bern;row=3,tpm,2036-12-31\n" +
		"b,,,,m1,press;line-2,row=3;site=bern,tpm,2036-12-31\n" +
		"c,,,,m2,,,,\n" +
		",pi-###,2,40,m2,,,any,2036-12-31T10:00:00Z\n"
	const json = `{"name": "po-9", "devices": [
		{"ids": ["a", "b"], "model": "m1", "ou": ["press", "line-2"], "labels": {"site": "bern", "row": "3"}, "protection": "tpm", "not_after": "2036-12-31"},
		{"id": "c", "model": "m2"},
		{"pattern": "pi-###", "count": 2, "first": 40, "model": "m2", "protection": "any", "not_after": "2036-12-31T10:00:00Z"}]}`
	var want string
	for name, text := range map[string]string{"csv": csv, "json": json} {
		own, lines, err := parseOrder([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := fmt.Sprintf("%+v", lines); want != "" && got != want {
			t.Errorf("%s\n%s", got, want)
		} else {
			want = got
		}
		if len(lines) != 3 || lines[0].Count != 2 || lines[2].First != 40 || lines[0].NotAfter.Format(time.RFC3339) != "2036-12-31T23:59:59Z" || (own == "po-9") != (name == "json") {
			t.Errorf("%s: %q %+v", name, own, lines)
		}
	}
}

func TestOrdersThatAreWrongSayWhere(t *testing.T) {
	long := strings.Repeat("x", 65)
	for text, want := range map[string]string{
		"":                                          "first line must name the columns",
		"id,colour\na,red\n":                        `"colour" is not one`,
		"id,id\na,b\n":                              `"id" is not one`,
		"id\n":                                      "no devices",
		"id,model\na\n":                             "wrong number of fields",
		"id\na/b\n":                                 "line 2 of the file: invalid identity",
		"id,model\na,\nb," + long + "\n":            "line 3 of the file: model or OU",
		"pattern\npi-###\n":                         "a pattern needs a count",
		"pattern,count\npi-###,0\n":                 "line 2 of the file: count",
		"pattern,count\npi-###,1000001\n":           "a pattern needs a count from 1 to 1000000",
		"pattern,count\npi-1###,5\n":                "ends in a digit",
		"pattern,count\npi-,5\n":                    "must end in one # for each digit",
		"pattern,count\n" + long + "###,5\n":        "can't be used",
		"id,count\na,2\n":                           "count and first are for a pattern",
		"id,pattern,count\na,pi-#,1\n":              "both IDs and a pattern",
		"id,protection\na,vault\n":                  "none of tpm, software, any",
		"id,labels\na,site\n":                       "not of the form",
		"id,labels\na,a=b;a=c\n":                    "each once",
		"id,labels\na,a/b=c\n":                      "label",
		"id,not_after\na,tomorrow\n":                "neither a day",
		"id,not_after\na,2020-01-01\n":              "would have ended on",
		"id\na\nb\na\n":                             "a is in the order twice",
		"pattern,count\npi-#,6000\nqi-#,5000":       "the budget is spent by this order",
		"{}":                                        "no devices",
		`{"devices": [{"id": "a", "x": 1}]}`:        "unknown field",
		`{"devices": [{"id": "a"}]} x`:              "something follows",
		`{"devices": [{}]}`:                         "entry 1 of devices: it has neither an ID nor a pattern",
		"id,model\n\n\"a\",\"x\"\n\na b,\n":         "line 5 of the file: invalid identity",
		`{"name": "a b", "devices": [{"id": "a"}]}`: "can't have the name",
	} {
		s, _ := bench(t)
		if _, _, err := s.ImportOrder(orderFile(t, text), ""); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if open, err := s.ledger.OpenOrders(); len(open) > 0 || err != nil {
			t.Errorf("%q left %v %v", text, open, err)
		}
		s.Close()
	}
}

func TestOrderImportedAgainIsTheSameOrder(t *testing.T) {
	s, _ := bench(t)
	file := orderFile(t, "id\na\nb\n")
	first, repeated, err := s.ImportOrder(file, "")
	if err != nil || repeated || first.Name != "po-1" || first.Count != 2 {
		t.Fatal(first, repeated, err)
	}
	again, repeated, err := s.ImportOrder(file, "")
	if err != nil || !repeated || again.Number != first.Number {
		t.Error(again, repeated, err)
	}
	if _, _, err := s.ImportOrder(orderFile(t, "id\nc\n"), ""); err == nil || !strings.Contains(err.Error(), "another --name") {
		t.Errorf("other devices under the same name: %v", err)
	}
	if _, _, err := s.ImportOrder(file, "other"); err == nil || !strings.Contains(err.Error(), "belongs to the open order") {
		t.Errorf("the same devices under another name: %v", err)
	}
	if _, _, err := s.ImportOrder(filepath.Join(t.TempDir(), "none"), ""); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for _, ref := range []string{"po-1", fmt.Sprint(first.Number)} {
		if o, err := s.FindOrder(ref); err != nil || o.Number != first.Number {
			t.Errorf("%s: %v %v", ref, o, err)
		}
	}
	if _, err := s.FindOrder("none"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestIssueGoesByTheImportedOrder(t *testing.T) {
	s, _ := bench(t)
	if _, _, err := s.ImportOrder(orderFile(t, "id,model,ou,protection\na,m1,press,software\nb,m1,press,tpm\nc,m1,press,any\n"), ""); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	d, err := s.Issue(DeviceOrder{ID: "a", Out: filepath.Join(out, "a")})
	if err != nil {
		t.Fatal(err)
	}
	record, _, err := s.ledger.Device("a")
	if err != nil || record.Model != "m1" || record.OU[0] != "press" || record.Serial != d.Serial {
		t.Errorf("%+v %v", record, err)
	}
	if _, err := s.Issue(DeviceOrder{ID: "b", Out: filepath.Join(out, "b")}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "demands a key in a tpm") {
		t.Errorf("a software key for b: %v", err)
	}
	if _, err := s.Issue(DeviceOrder{ID: "c", Out: filepath.Join(out, "c"), Model: "m2"}); err == nil || !strings.Contains(err.Error(), "can't be changed") {
		t.Errorf("another model for c: %v", err)
	}
	if _, err := os.Stat(filepath.Join(out, "b")); err == nil {
		t.Error("a key was made for a device that can't have it")
	}
	o, err := s.CloseOrder("po-1")
	if err != nil || o.Issued != 1 {
		t.Fatal(o, err)
	}
	if _, err := s.Issue(DeviceOrder{ID: "c", Out: filepath.Join(out, "c"), Model: "m2"}); err != nil {
		t.Errorf("c after its order was closed: %v", err)
	}
}

func TestReplacementIsMadeOnceAndNamesWhatItSupersedes(t *testing.T) {
	s, _ := bench(t)
	out := t.TempDir()
	in := func(name string) string { return filepath.Join(out, name) }
	first, err := s.Issue(DeviceOrder{ID: "a", Out: in("1"), Model: "m1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replace(DeviceOrder{ID: "a", Out: in("2")}, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := s.Replace(DeviceOrder{ID: "none", Out: in("2")}, "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no device: %v", err)
	}
	if _, err := s.Replace(DeviceOrder{ID: "a", Out: in("1")}, "x"); err == nil {
		t.Error("with the old key")
	}
	second, err := s.Replace(DeviceOrder{ID: "a", Out: in("2")}, "board swapped")
	if err != nil || second.Supersedes != first.Serial || second.Serial == first.Serial {
		t.Fatalf("%+v %v", second, err)
	}
	again, err := s.Replace(DeviceOrder{ID: "a", Out: in("2")}, "board swapped")
	if err != nil || again.Fingerprint != second.Fingerprint || !again.Repeated {
		t.Errorf("%+v %v", again, err)
	}
	if _, err := s.Issue(DeviceOrder{ID: "a", Out: in("3")}); err == nil {
		t.Error("a third certificate without an order")
	}
	if d, err := s.Issue(DeviceOrder{ID: "a", Out: in("2")}); err != nil || d.Fingerprint != second.Fingerprint {
		t.Errorf("delivered again: %+v %v", d, err)
	}
	if n, err := s.ledger.Unexported(); n != 2 || err != nil {
		t.Errorf("%d certificates %v", n, err)
	}
	third, err := s.Replace(DeviceOrder{ID: "a", Out: in("3")}, "again")
	if err != nil || third.Supersedes != second.Serial {
		t.Errorf("%+v %v", third, err)
	}
}

// signedAuthority is an authority by a root of its own, with those extensions besides
// the usual ones.
func signedAuthority(t *testing.T, s *Station, extensions ...pkix.Extension) string {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	rootCert, err := issuance.NewRoot(certtest.TrustDomain, key, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := issuance.NewIssuer(rootCert, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	template, err := root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: s.Name(), TrustDomain: certtest.TrustDomain, PublicKey: s.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	template.ExtraExtensions = extensions
	der, err := x509.CreateCertificate(rand.Reader, template, rootCert, s.key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "authority.crt")
	if err := pemfile.WriteCertificates(file, ca, rootCert); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBudgetIsTheOneTheRootSigned(t *testing.T) {
	integer := func(n int64) []byte {
		der, err := asn1.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, test := range map[string]struct {
		extensions []pkix.Extension
		want       int // 0: refused
	}{
		"none":     {nil, 10_000},
		"two":      {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: integer(2)}}, 2},
		"zero":     {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: integer(0)}}, 0},
		"negative": {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: integer(-1)}}, 0},
		"too many": {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: integer(1 << 40)}}, 0},
		"no DER":   {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: []byte("2")}}, 0},
		"trailing": {[]pkix.Extension{{Id: issuance.BudgetExtension(), Value: append(integer(2), 0)}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := Init(dir, "bench-1"); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir, nil)
			a, err := s.Accept(signedAuthority(t, s, test.extensions...))
			if (err == nil) != (test.want > 0) || a.MaxDevices != test.want {
				t.Fatalf("%+v %v", a, err)
			}
			if test.want != 2 {
				return
			}
			out := t.TempDir()
			for i := range 2 {
				if _, err := s.Issue(DeviceOrder{ID: fmt.Sprint("d", i), Out: filepath.Join(out, fmt.Sprint(i))}); err != nil {
					t.Fatal(err)
				}
			}
			_, one := s.Issue(DeviceOrder{ID: "d3", Out: filepath.Join(out, "3")})
			_, batch := s.Batch(t.Context(), BatchOrder{Prefix: "b-", Count: 1, Out: filepath.Join(out, "b")}, nil)
			_, _, order := s.ImportOrder(orderFile(t, "id\nx\n"), "")
			for _, err := range []error{one, batch, order} {
				if !errors.Is(err, ErrDenied) || !errors.Is(err, ledger.ErrBudget) || !strings.Contains(err.Error(), "--max-devices") {
					t.Errorf("beyond the budget: %v", err)
				}
			}
			if open, err := s.ledger.OpenOrders(); len(open) > 0 || err != nil {
				t.Errorf("orders were left open: %v %v", open, err)
			}
			if _, err := s.Replace(DeviceOrder{ID: "d0", Out: filepath.Join(out, "new")}, "spent budgets don't strand devices"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTokensAndClaimsAreBounded(t *testing.T) {
	s, _ := bench(t)
	if _, _, err := s.ImportOrder(orderFile(t, "id\na\nb\n"), ""); err != nil {
		t.Fatal(err)
	}
	for _, o := range []TokenOrder{
		{Order: "po-1", Count: 0, Valid: time.Hour}, {Order: "po-1", Count: maxTokens + 1, Valid: time.Hour}, {ID: "a", Count: 2, Valid: time.Hour},
		{Order: "po-1", Count: 1}, {Order: "po-1", Count: 1, Valid: maxTokenLife + 1}, {Count: 1, Valid: time.Hour}, {ID: "a/b", Count: 1, Valid: time.Hour},
	} {
		if _, err := s.MakeTokens(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	out := t.TempDir()
	for i, o := range []ClaimOrder{
		{Order: "po-1", Max: 3, Valid: time.Hour}, {Order: "po-1", Valid: maxClaimLife + 1}, {Order: "po-1"}, {Order: "po-1", Name: "a b", Valid: time.Hour},
	} {
		o.Out = filepath.Join(out, fmt.Sprint(i))
		if _, err := s.MakeClaim(o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	good := ClaimOrder{Order: "po-1", Valid: time.Hour, Out: filepath.Join(out, "good")}
	if c, err := s.MakeClaim(good); err != nil || c.Max != 2 {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := s.MakeClaim(good); err == nil {
		t.Error("a claim certificate was overwritten")
	}
	made, err := s.MakeTokens(TokenOrder{ID: "own", Count: 1, Valid: time.Hour, Model: "m"})
	if err != nil || len(made.Tokens) != 1 {
		t.Fatal(made, err)
	}
	if _, err := s.RevokeToken(made.Tokens[0]); err != nil {
		t.Error(err)
	}
	if _, err := s.RevokeToken("fh1.x.y"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if _, err := s.RevokeClaim("none"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add("id,model\na,m\n")
	f.Add("pattern,count,labels\npi-###,5,a=b;c=d\n")
	f.Add(`{"devices": [{"pattern": "p-#", "count": 2}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		_, lines, err := parseOrder([]byte(text))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v", err)
			}
			return
		}
		total := 0
		for _, line := range lines {
			total += line.Count
			if line.Count < 1 || (line.Pattern == ledger.Pattern{}) == (len(line.IDs) == 0) || validAttributes(line.Attributes) != nil {
				t.Errorf("%+v", line)
			}
		}
		if total > MaxBatch {
			t.Errorf("%d devices", total)
		}
	})
}
