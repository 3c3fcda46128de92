package ledger

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const later = 8 * time.Hour

func mustToken(t testing.TB, l *Ledger, order uint64, id string) string {
	t.Helper()
	hash := HashToken(fmt.Sprint(order, id, time.Now().UnixNano()))
	if err := l.AddTokens(noon, noon.Add(later), order, id, hash); err != nil {
		t.Fatal(err)
	}
	return hash
}

func TestTokenIsGoodForOneKey(t *testing.T) {
	l, path := fresh(t)
	token := mustToken(t, l, order(t, l, "a", "b"), "")
	first, second := newDevice(t), newDevice(t)
	with := func(d device) Reservation { return Reservation{Serial: "0a", KeyHash: d.hash, Token: token} }
	r := mustReserve(t, l, with(first))
	if r.ID != "a" || r.State != Reserved {
		t.Fatalf("%+v", r)
	}
	if _, err := l.Reserve(noon, plenty, with(second)); !errors.Is(err, ErrBusy) {
		t.Errorf("a second key while the first is under way: %v", err)
	}
	// After a crash, and before anything was signed, the board may come with a new key.
	l.Close()
	l = open(t, path)
	if r := mustReserve(t, l, with(second)); r.ID != "a" || r.Serial != "0a" || r.KeyHash != second.hash {
		t.Fatalf("%+v", r)
	}
	if err := l.Issue(noon, first.cert("a", "0a")); err == nil {
		t.Fatal("the first key got the certificate all the same")
	}
	if err := l.Issue(noon, second.cert("a", "0a")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := mustReserve(t, l, with(second)); r.ID != "a" || r.State != Issued {
			t.Errorf("the same again: %+v", r)
		}
	}
	if _, err := l.Reserve(noon, plenty, with(first)); !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), "used for a") {
		t.Errorf("a used token with another key: %v", err)
	}
	// Not even when it has expired or was revoked does the owner lose what is theirs.
	if _, err := l.RevokeToken(noon, token); err != nil {
		t.Fatal(err)
	}
	if records, err := l.Reserve(noon.Add(2*later), plenty, with(second)); err != nil || records[0].State != Issued {
		t.Errorf("%v %v", records, err)
	}
}

func TestTokenOfAnotherTimeOrStationIsRefused(t *testing.T) {
	l, _ := fresh(t)
	n := order(t, l, "a", "b")
	expired, revoked := mustToken(t, l, n, ""), mustToken(t, l, n, "b")
	if _, err := l.RevokeToken(noon, revoked); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		token, want string
		at          time.Time
	}{
		"unknown": {HashToken("guess"), "no such token", noon},
		"expired": {expired, "good until", noon.Add(later)},
		"revoked": {revoked, "revoked", noon},
	} {
		if _, err := l.Reserve(test.at, plenty, Reservation{Serial: "0a", KeyHash: "k", Token: test.token}); !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := l.Device("a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an ID was spent: %v", err)
	}
	if _, err := l.RevokeToken(noon, "unknown"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestTokensAreMadeForOpenOrdersAndTheirIDsOnly(t *testing.T) {
	l, _ := fresh(t)
	mustIssue(t, l, "made")
	n := order(t, l, "a")
	run := mustOpen(t, l, Order{Kind: Run, Prefix: "r-"}, Line{Pattern: Pattern{"r-", 5}, Count: 1})
	closed := order(t, l, "c")
	if _, err := l.CloseOrder(noon, closed); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		order uint64
		id    string
	}{
		"no order": {99, ""}, "closed": {closed, ""}, "batch with folders": {run.Number, ""},
		"ID of none": {n, "x"}, "ID of another": {n, "r-00001"}, "ID that is made": {n, "made"},
	} {
		if err := l.AddTokens(noon, noon.Add(later), test.order, test.id, "hash"); err == nil {
			t.Errorf("%s: made", name)
		}
		if test.id == "" {
			if err := l.AddClaim(noon, Claim{Fingerprint: "f", Order: test.order, Max: 1, ExpiresAt: noon.Add(later)}); err == nil {
				t.Errorf("%s: claim made", name)
			}
		}
	}
}

// An ID that a token was made for isn't given to whoever comes first, while that token
// is good.
func TestIDOfATokenIsKeptForIt(t *testing.T) {
	l, _ := fresh(t)
	n := order(t, l, "a", "b")
	own := mustToken(t, l, n, "a")
	any1, any2 := mustToken(t, l, n, ""), mustToken(t, l, n, "")
	if r := mustReserve(t, l, Reservation{Serial: "0b", KeyHash: "kb", Token: any1}); r.ID != "b" {
		t.Errorf("the first comer got %s", r.ID)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0c", KeyHash: "kc", Token: any2}); !errors.Is(err, ErrRefused) {
		t.Errorf("the second comer: %v", err)
	}
	if r := mustReserve(t, l, Reservation{Serial: "0a", KeyHash: "ka", Token: own}); r.ID != "a" {
		t.Errorf("the token for a gave %s", r.ID)
	}
}

func TestTokenUsedAHundredTimesAtOnceGivesOneCertificate(t *testing.T) {
	l, _ := fresh(t)
	token := mustToken(t, l, order(t, l, "a", "b", "c"), "")
	var issued atomic.Int32
	var wait sync.WaitGroup
	for i := range 100 {
		d := newDevice(t)
		wait.Go(func() {
			records, err := l.Reserve(noon, plenty, Reservation{Serial: fmt.Sprintf("01%02x", i), KeyHash: d.hash, Token: token})
			if err != nil {
				if !errors.Is(err, ErrBusy) && !errors.Is(err, ErrCredential) {
					t.Error(err)
				}
				return
			}
			if err := l.Issue(noon, d.cert(records[0].ID, records[0].Serial)); err != nil {
				t.Error(err)
				return
			}
			issued.Add(1)
		})
	}
	wait.Wait()
	n, err := l.Unexported()
	if issued.Load() != 1 || n != 1 || err != nil {
		t.Errorf("%d were told they got it, %d were issued %v", issued.Load(), n, err)
	}
}

func TestClaimGivesEachBoardOneDeviceUpToItsLimit(t *testing.T) {
	l, path := fresh(t)
	n := order(t, l, "a", "b", "c")
	if err := l.AddClaim(noon, Claim{Fingerprint: "f", Name: "batch", Order: n, Max: 2, ExpiresAt: noon.Add(later)}); err != nil {
		t.Fatal(err)
	}
	with := func(key, ek string) Reservation {
		return Reservation{Serial: "0" + key, KeyHash: key, EK: ek, Protection: TPM, Claim: "f"}
	}
	for range 2 { // the same board again is the same board
		if r := mustReserve(t, l, with("1", "")); r.ID != "a" || r.Serial != "01" {
			t.Fatalf("%+v", r)
		}
	}
	mustReserve(t, l, with("2", "ek"))
	l.Close()
	l = open(t, path)
	if r := mustReserve(t, l, with("3", "ek")); r.ID != "b" || r.Serial != "02" {
		t.Errorf("the same TPM with a new key is another board: %+v", r)
	}
	if _, err := l.Reserve(noon, plenty, with("4", "")); !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), "for 2 boards") {
		t.Errorf("the third board of two: %v", err)
	}
	if c, err := l.Claims(); err != nil || len(c) != 1 || c[0].Used != 2 {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := l.RevokeClaim(noon, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Reserve(noon, plenty, with("1", "")); !errors.Is(err, ErrCredential) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a board of a revoked claim that has nothing yet: %v", err)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0f", KeyHash: "5", Claim: "unknown"}); !errors.Is(err, ErrCredential) {
		t.Errorf("an unknown claim: %v", err)
	}
}

func TestTPMStaysWithItsDevice(t *testing.T) {
	l, _ := fresh(t)
	n := order(t, l, "a", "b")
	if err := l.AddClaim(noon, Claim{Fingerprint: "f", Order: n, Max: 2, ExpiresAt: noon.Add(later)}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t)
	r := mustReserve(t, l, Reservation{Serial: "0a", KeyHash: d.hash, EK: "ek", Claim: "f"})
	if err := l.Issue(noon, d.cert(r.ID, r.Serial)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0b", KeyHash: "other", EK: "ek", Claim: "f"}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "provisioning replace") {
		t.Errorf("the TPM became a second device: %v", err)
	}
	token := mustToken(t, l, n, "b")
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0b", KeyHash: "other", EK: "ek", Token: token}); !errors.Is(err, ErrRefused) {
		t.Errorf("the TPM became a second device by token: %v", err)
	}
	replace := mustOpen(t, l, Order{Kind: Replacement, Reason: "x"}, Line{IDs: []string{r.ID}})
	if _, err := l.Reserve(noon, plenty, Reservation{Order: replace.Number, ID: r.ID, Serial: "0c", KeyHash: "new", EK: "another"}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "has another TPM") {
		t.Errorf("the device got another TPM: %v", err)
	}
	next := mustReserve(t, l, Reservation{Order: replace.Number, ID: r.ID, Serial: "0c", KeyHash: "new", EK: "ek"})
	if next.Supersedes != "0a" || next.EK != "ek" {
		t.Errorf("%+v", next)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Order: replace.Number, ID: r.ID, Serial: "0c", KeyHash: "newer", EK: "another"}); !errors.Is(err, ErrRefused) {
		t.Errorf("the device got another TPM while its replacement was under way: %v", err)
	}
}

// A board that reserved an ID and got nothing leaves no TPM with it.
func TestTPMOfAReservationThatCameToNothingIsFree(t *testing.T) {
	l, path := fresh(t)
	n := order(t, l, "a", "b")
	mustReserve(t, l, Reservation{Serial: "0a", KeyHash: "k1", EK: "first", Protection: TPM, Token: mustToken(t, l, n, "a")})
	l.Close()
	l = open(t, path)
	if r := mustReserve(t, l, Reservation{Serial: "0b", KeyHash: "k2", Protection: Software, Token: mustToken(t, l, n, "a")}); r.ID != "a" || r.EK != "" || r.Protection != Software {
		t.Errorf("%+v", r)
	}
	if r := mustReserve(t, l, Reservation{Serial: "0c", KeyHash: "k3", EK: "first", Protection: TPM, Token: mustToken(t, l, n, "b")}); r.ID != "b" || r.EK != "first" {
		t.Errorf("%+v", r)
	}
}

// A board that reserved and was never heard of again leaves its ID to another, once the
// order has no fresh one.
func TestReservationThatCameToNothingIsGivenToAnother(t *testing.T) {
	l, path := fresh(t)
	n := order(t, l, "a")
	first, second := mustToken(t, l, n, ""), mustToken(t, l, n, "")
	mustReserve(t, l, Reservation{Serial: "0a", KeyHash: "k1", Token: first})
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0b", KeyHash: "k2", Token: second}); !errors.Is(err, ErrRefused) {
		t.Errorf("while the first is under way: %v", err)
	}
	l.Close()
	l = open(t, path)
	if r := mustReserve(t, l, Reservation{Serial: "0b", KeyHash: "k2", Token: second}); r.ID != "a" || r.Serial != "0a" {
		t.Fatalf("%+v", r)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Serial: "0c", KeyHash: "k1", Token: first}); err == nil {
		t.Error("the first comes back and takes it from the second")
	}
}
