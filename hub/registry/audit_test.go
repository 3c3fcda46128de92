package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// auditLog returns a linked log of n records.
func auditLog(t testing.TB, n int) []AuditLine {
	t.Helper()
	var lines []AuditLine
	var hash AuditHash
	for i := range n {
		record, err := json.Marshal(AuditRecord{Number: uint64(i + 1), Time: epoch, Actor: "ann", Action: "device.revoke", Device: fmt.Sprint("pi-", i)})
		if err != nil {
			t.Fatal(err)
		}
		hash = hash.Link(uint64(i+1), record)
		lines = append(lines, AuditLine{Number: uint64(i + 1), Hash: hash, Record: record})
	}
	return lines
}

func follow(lines []AuditLine) (AuditHead, error) {
	var c AuditChain
	for _, l := range lines {
		if err := c.Next(l); err != nil {
			return c.Head(), err
		}
	}
	return c.Head(), nil
}

func TestChainFindsEveryChange(t *testing.T) {
	good := auditLog(t, 9)
	if head, err := follow(good); err != nil || head.Number != 9 || head.Hash != good[8].Hash {
		t.Fatalf("head %+v, %v", head, err)
	}
	for name, tamper := range map[string]func([]AuditLine) []AuditLine{
		"a word changed": func(l []AuditLine) []AuditLine {
			l[4].Record = json.RawMessage(strings.Replace(string(l[4].Record), "ann", "ben", 1))
			return l
		},
		"a word changed and sealed again": func(l []AuditLine) []AuditLine {
			l[4].Record = json.RawMessage(strings.Replace(string(l[4].Record), "ann", "ben", 1))
			l[4].Hash = l[3].Hash.Link(5, l[4].Record)
			return l
		},
		"a record removed": func(l []AuditLine) []AuditLine { return slices.Delete(l, 4, 5) },
		"a record removed and the others renumbered": func(l []AuditLine) []AuditLine {
			l = slices.Delete(l, 4, 5)
			for i := range l {
				l[i].Number = uint64(i + 1)
			}
			return l
		},
		"two records swapped": func(l []AuditLine) []AuditLine { l[3], l[4] = l[4], l[3]; return l },
		"a record twice":      func(l []AuditLine) []AuditLine { return slices.Insert(l, 4, l[4]) },
		"the first removed":   func(l []AuditLine) []AuditLine { return l[1:] },
		"a hash changed":      func(l []AuditLine) []AuditLine { l[4].Hash[7] ^= 1; return l },
		"space in a record":   func(l []AuditLine) []AuditLine { l[4].Record = append(l[4].Record, ' '); return l },
		"a number in a record that isn't its own": func(l []AuditLine) []AuditLine {
			l[8].Record = json.RawMessage(`{"number":8}`)
			l[8].Hash = l[7].Hash.Link(9, l[8].Record)
			return l
		},
	} {
		if _, err := follow(tamper(slices.Clone(good))); !errors.Is(err, ErrTampered) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error = %v", name, err)
		}
	}
	part := ChainFrom(AuditHead{Number: 4, Hash: good[3].Hash})
	for _, l := range good[4:] {
		if err := part.Next(l); err != nil {
			t.Fatalf("from the middle on: %v", err)
		}
	}
}

func TestHashesReadBackAsText(t *testing.T) {
	head := AuditHead{Number: 3, Hash: AuditHash{1, 2, 3}}
	data, err := json.Marshal(head)
	if err != nil {
		t.Fatal(err)
	}
	var again AuditHead
	if err := json.Unmarshal(data, &again); err != nil || again != head {
		t.Fatalf("%s reads back as %+v, %v", data, again, err)
	}
	for _, bad := range []string{`{"hash":"zz"}`, `{"hash":"0102"}`, `{"hash":""}`} {
		if err := json.Unmarshal([]byte(bad), &again); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestQueryPicksRecords(t *testing.T) {
	r := AuditRecord{Time: epoch, Actor: "spiffe://fleet.example/operator/ann", Action: "device.revoke", Device: "pi-1", Outcome: OutcomeDone, Receipt: "r-1"}
	for _, tt := range []struct {
		q    AuditQuery
		want bool
	}{
		{AuditQuery{}, true},
		{AuditQuery{Device: "pi-1", Action: "device.revoke", Outcome: OutcomeDone, Receipt: "r-1"}, true},
		{AuditQuery{Device: "pi-2"}, false},
		{AuditQuery{Actor: "ann"}, true},
		{AuditQuery{Actor: "spiffe://fleet.example/operator/ann"}, true},
		{AuditQuery{Actor: "an"}, false},
		{AuditQuery{Action: "device."}, true},
		{AuditQuery{Action: "device"}, false},
		{AuditQuery{Action: "issuer."}, false},
		{AuditQuery{Subject: "issuer x"}, false},
		{AuditQuery{Outcome: OutcomeRefused}, false},
		{AuditQuery{Receipt: "r-2"}, false},
		{AuditQuery{Since: epoch}, true},
		{AuditQuery{Since: epoch.Add(time.Second)}, false},
		{AuditQuery{Until: epoch}, false},
		{AuditQuery{Until: epoch.Add(time.Second)}, true},
	} {
		if got := tt.q.Matches(r); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.q, got, tt.want)
		}
	}
}

// TestShortActorIsOfACertificateOnly: what the subject of a token ends in is nobody's name.
func TestShortActorIsOfACertificateOnly(t *testing.T) {
	for actor, want := range map[string]bool{
		"spiffe://fleet.example/operator/ann":    true,
		"ann":                                    true,
		"oidc:https://id.example#team/ann":       false,
		"oidc:https://id.example#spiffe://x/ann": false,
		"spiffe://fleet.example/operator/joann":  false,
	} {
		if got := (AuditQuery{Actor: "ann"}).Matches(AuditRecord{Actor: actor}); got != want {
			t.Errorf("ann picks %s: %v", actor, got)
		}
		if !(AuditQuery{Actor: actor}).Matches(AuditRecord{Actor: actor}) {
			t.Errorf("%s doesn't pick itself", actor)
		}
	}
}
