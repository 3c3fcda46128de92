package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/receipt"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

var ben = Actor{Name: "spiffe://fleet.example/operator/ben", Address: "192.0.2.2:4711"}

// populate fills the store with plain devices, without certificates that could connect,
// and restarts.
func (r *rig) populate(n int) {
	r.t.Helper()
	for i := 0; i < n; {
		var change registry.Change
		for ; i < n && len(change.Devices) < 5000; i++ {
			change.Devices = append(change.Devices, plain(i, []byte{1}))
		}
		if err := r.bolt.Commit(r.t.Context(), change); err != nil {
			r.t.Fatal(err)
		}
	}
	r.restart()
}

func selecting(t testing.TB, text string) registry.Selector {
	t.Helper()
	s, err := registry.ParseSelector(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// inState returns the IDs of devices in a state, as the index has them, and fails if the
// store differs.
func (r *rig) inState(state registry.State) (ids []string) {
	r.t.Helper()
	if err := r.store.Facts(r.t.Context(), "", func(f *registry.Facts) bool {
		if got, _ := r.index.state(f.ID); got != f.State {
			r.t.Errorf("%s is %s in the store and %s in the index", f.ID, f.State, got)
		}
		if f.State == state {
			ids = append(ids, f.ID)
		}
		return true
	}); err != nil {
		r.t.Fatal(err)
	}
	return ids
}

func TestOrderForASelectionRevokesThoseAndNoOthers(t *testing.T) {
	for _, n := range []int{300, 2*orderChunk + 300} { // in one transaction, and by way of the journal
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := newRig(t)
			r.populate(n)
			s := selecting(t, "protection=tpm")
			before := r.inState(registry.StateRevoked)
			var want []string
			for i := range n {
				if d := plain(i, nil); d.Protection == "tpm" && d.State == registry.StateActive {
					want = append(want, d.ID)
					r.sessions.live[d.ID] = 1 + i%2
				}
			}
			r.sessions.packet = time.Now().Add(-time.Second).UTC()
			radius, err := r.Rehearse(t.Context(), Order{Verb: VerbRevoke, Select: s, Reason: revocation.KeyCompromise})
			if err != nil || !radius.DryRun || radius.Count != len(want) || radius.Already != len(before) || !slices.Equal(radius.IDs, want) || !radius.MustCount ||
				radius.States[registry.StateActive] != len(want) || radius.Protections[0] != (Share{"tpm", len(want)}) || len(radius.Sample) != 10 || radius.Usable != len(want) {
				t.Fatalf("radius = %+v, %v", radius, err)
			}
			if got := r.inState(registry.StateRevoked); !slices.Equal(got, before) || len(r.log()) != 0 {
				t.Fatal("a rehearsal changed something")
			}

			o := Order{ID: "order-1", Verb: VerbRevoke, Select: s, Reason: revocation.KeyCompromise, Note: "stolen keys", Count: len(want)}
			result, err := r.Execute(t.Context(), o, ann)
			if err != nil {
				t.Fatal(err)
			}
			receipt := result.Receipt
			if receipt.ReceiptID != "order-1" || receipt.Count != len(want) || receipt.AlreadyCount != len(before) || receipt.Certificates != len(want) || receipt.Digest != digest(want) ||
				receipt.Reason != "keyCompromise" || receipt.Note != "stolen keys" || receipt.Actor != ann.Name || receipt.SessionsClosed < len(want) ||
				!receipt.LastPacketAt.Equal(r.sessions.packet) || receipt.TimeToRevoke.Of != len(want) || receipt.AuditHead.Number == 0 || len(receipt.Devices) != len(want) || receipt.Problem != "" {
				t.Fatalf("receipt = %+v", receipt)
			}
			if order := []time.Time{receipt.RequestedAt, receipt.DurableAt, receipt.EffectiveAt, receipt.LastSessionClosedAt, receipt.PurgedAt, receipt.SignedAt}; !slices.IsSortedFunc(order, time.Time.Compare) {
				t.Errorf("the receipt's times are out of order: %v", order)
			}
			for i, d := range receipt.Devices {
				if d.ID != want[i] || d.Before != registry.StateActive || len(d.Serials) != 1 || d.Sessions == 0 || d.ClosedAt.IsZero() {
					t.Fatalf("device in the receipt = %+v", d)
				}
			}
			check := func() {
				t.Helper()
				all := append(slices.Clone(before), want...)
				slices.Sort(all)
				if got := r.inState(registry.StateRevoked); !slices.Equal(got, all) {
					t.Fatalf("%d devices are revoked, want %d", len(got), len(all))
				}
				if orders, err := r.bolt.Documents(t.Context(), registry.KindOrder, "", 1); err != nil || len(orders) > 0 {
					t.Fatalf("an order is left: %v, %v", orders, err)
				}
			}
			check()
			page, err := r.Audit(t.Context(), registry.AuditQuery{Receipt: "order-1", Limit: 1000})
			if err != nil || page.Records[0].Device != "" || !strings.Contains(page.Records[0].Detail, fmt.Sprint(len(want), " devices")) || page.Records[0].Subject != "selector protection=tpm" {
				t.Fatalf("audit begins with %+v, %v", page.Records[0], err)
			}
			if one, err := r.Audit(t.Context(), registry.AuditQuery{Device: want[7]}); err != nil || len(one.Records) != 1 || one.Records[0].Receipt != "order-1" || one.Records[0].Before != registry.StateActive || one.Records[0].After != registry.StateRevoked {
				t.Fatalf("audit of %s = %+v, %v", want[7], one, err)
			}
			d, err := r.Device(t.Context(), want[7])
			if since := d.Since(); err != nil || since.Receipt != "order-1" || since.From != registry.StateActive || since.Actor != ann.Name || since.Reason != "keyCompromise" || since.Note != "stolen keys" {
				t.Fatalf("device = %+v, %v", d, err)
			}
			// The request repeated gets the receipt, and nothing is done again.
			calls, log := len(r.sessions.calls), len(r.log())
			again, err := r.Execute(t.Context(), o, ann)
			if err != nil || again.Receipt.Digest != receipt.Digest || !again.Receipt.DurableAt.Equal(receipt.DurableAt) || len(r.sessions.calls) != calls || len(r.log()) != log {
				t.Fatalf("repeated: %+v, %v", again.Receipt, err)
			}
			r.restart()
			check()
			if _, err := r.VerifyAudit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOrderIsHeldAgainstItsCount(t *testing.T) {
	r := newRig(t)
	r.populate(300)
	revoke := func(text string, count int) error {
		_, err := r.Execute(t.Context(), Order{Verb: VerbRevoke, Select: selecting(t, text), Count: count}, ann)
		return err
	}
	for _, tt := range []struct {
		text  string
		count int
		want  error
	}{
		{"id=*", 0, ErrCount},
		{"id=*", 271, ErrCount},
		{"id=*", -1, ErrOrder},
		{"id=board-0000001*", 8, ErrCount},
		{"id=nobody*", 0, ErrNobody},
		{"state=revoked", 0, ErrNobody},
		{"", 0, ErrOrder},
	} {
		before := len(r.inState(registry.StateRevoked))
		if err := revoke(tt.text, tt.count); !errors.Is(err, tt.want) {
			t.Errorf("%s, count %d: error = %v, want %v", tt.text, tt.count, err, tt.want)
		}
		if len(r.inState(registry.StateRevoked)) != before {
			t.Errorf("%s, count %d: somebody was revoked", tt.text, tt.count)
		}
		log := r.log()
		if !errors.Is(tt.want, ErrOrder) && (len(log) == 0 || log[len(log)-1].Outcome != registry.OutcomeRefused) {
			t.Errorf("%s, count %d: the refusal is not audited", tt.text, tt.count)
		}
	}
	for _, ok := range []struct {
		text  string
		count int
	}{{"id=board-0000001*", 0}, {"id=board-0000002*", 9}, {"id=*", 300 - 30 - 18}} {
		if err := revoke(ok.text, ok.count); err != nil {
			t.Errorf("%s, count %d: %v", ok.text, ok.count, err)
		}
	}
}

func TestOrdersThatMakeNoSenseAreRefused(t *testing.T) {
	r := newRig(t)
	r.register("pi-1", "pi-2", "gone")
	if _, err := r.Revoke(t.Context(), "gone", 0, ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Execute(t.Context(), Order{ID: "first", Verb: VerbSuspend, Device: "pi-2"}, ann); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Order{
		"no verb":                        {Device: "pi-1"},
		"another verb":                   {Verb: "destroy", Device: "pi-1"},
		"nobody":                         {Verb: VerbRevoke},
		"a device and a selector":        {Verb: VerbRevoke, Device: "pi-1", Select: selecting(t, "id=pi-2")},
		"an ID that is a path":           {ID: "../x", Verb: VerbRevoke, Device: "pi-1"},
		"the ID of another order":        {ID: "first", Verb: VerbRevoke, Device: "pi-1"},
		"replaced by nobody":             {Verb: VerbReplace, Device: "pi-1"},
		"replaced by itself":             {Verb: VerbReplace, Device: "pi-1", By: "pi-1"},
		"replaced by a stranger":         {Verb: VerbReplace, Device: "pi-1", By: "pi-9"},
		"replaced by a revoked device":   {Verb: VerbReplace, Device: "pi-1", By: "gone"},
		"replaced by a suspended device": {Verb: VerbReplace, Device: "pi-1", By: "pi-2"},
		"many replaced":                  {Verb: VerbReplace, Select: selecting(t, "id=*"), By: "pi-2"},
	} {
		if _, err := r.Execute(t.Context(), o, ann); !errors.Is(err, ErrOrder) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
	if r.state("pi-1") != registry.StateRegistered {
		t.Error("pi-1 has changed")
	}
}

func TestRetireAndReplaceEndADeviceAndSayWhy(t *testing.T) {
	r := newRig(t)
	credentials := r.register("old", "worn", "new")
	r.sessions.live["old"] = 1
	result, err := r.Execute(t.Context(), Order{Verb: VerbReplace, Device: "old", By: "new", Note: "flooded"}, ann)
	if err != nil || result.Receipt.State != registry.StateReplaced || result.Receipt.Reason != "superseded" || result.Receipt.SessionsClosed != 1 || result.Receipt.Before != registry.StateRegistered {
		t.Fatalf("receipt = %+v, %v", result.Receipt, err)
	}
	if result, err = r.Execute(t.Context(), Order{Verb: VerbRetire, Device: "worn"}, ann); err != nil || result.Receipt.State != registry.StateRetired || result.Receipt.Reason != "cessationOfOperation" {
		t.Fatalf("receipt = %+v, %v", result.Receipt, err)
	}
	if !slices.Contains(r.sessions.calls, "old replaced") || !slices.Contains(r.sessions.calls, "worn retired") {
		t.Errorf("disconnected %v", r.sessions.calls)
	}
	check := func() {
		t.Helper()
		for i, want := range map[int]registry.State{0: registry.StateReplaced, 1: registry.StateRetired} {
			id := credentials[i].Identity.ID
			d, err := r.Device(t.Context(), id)
			if err != nil || d.State != want || d.Certificates[0].Standing != registry.StandingRevoked || d.Certificates[0].Reason != d.Reason {
				t.Errorf("%s = %+v, %v", id, d, err)
			}
			if status, _ := r.Status(id); status.Admits(sha256.Sum256(credentials[i].Leaf.Raw)) {
				t.Errorf("%s is admitted", id)
			}
			r.mustResume(credentials[i], false)
		}
		old, err := r.Device(t.Context(), "old")
		next, err2 := r.Device(t.Context(), "new")
		if err := errors.Join(err, err2); err != nil || old.ReplacedBy != "new" || next.Replaces != "old" || next.State != registry.StateRegistered {
			t.Errorf("%+v and %+v, %v", old, next, err)
		}
	}
	check()
	r.restart()
	check()
	if plan, err := r.Plan(t.Context(), Order{Verb: VerbRetire, Device: "worn"}); err != nil || !plan.Already || !plan.DryRun {
		t.Errorf("plan = %+v, %v", plan, err)
	}
	if _, err := r.Plan(t.Context(), Order{Verb: VerbRevoke, Device: "worn"}); !errors.Is(err, registry.ErrTransition) {
		t.Errorf("plan to revoke a retired device: error = %v", err)
	}
}

func TestSelectionIsSuspendedAndResumed(t *testing.T) {
	r := newRig(t)
	n := orderChunk + 200
	r.populate(n)
	active := r.inState(registry.StateActive)
	s := selecting(t, "state=active")
	if _, err := r.Execute(t.Context(), Order{Verb: VerbSuspend, Select: s, Count: len(active), Note: "drill"}, ann); err != nil {
		t.Fatal(err)
	}
	if got := r.inState(registry.StateSuspended); !slices.Equal(got, active) {
		t.Fatalf("%d are suspended, want %d", len(got), len(active))
	}
	r.restart()
	result, err := r.Execute(t.Context(), Order{Verb: VerbResume, Select: selecting(t, "state=suspended"), Count: len(active)}, ann)
	if err != nil || result.Receipt.Count != len(active) {
		t.Fatalf("receipt = %+v, %v", result.Receipt, err)
	}
	if got := r.inState(registry.StateRegistered); !slices.Equal(got, active) { // none was ever seen
		t.Fatalf("%d are back, want %d", len(got), len(active))
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestReceiptsAreSignedAndKept(t *testing.T) {
	r := newRig(t)
	r.config.Sign = func(payload []byte) ([]byte, error) {
		return receipt.Sign(payload, []*x509.Certificate{r.pki.Operational.Certificate()}, r.pki.OperationalKey)
	}
	r.register("pi-1", "pi-2", "pi-3")
	for i, id := range []string{"pi-1", "pi-2", "pi-3"} {
		if _, err := r.Execute(t.Context(), Order{ID: fmt.Sprint("r-", i), Verb: VerbRevoke, Device: id, Reason: revocation.KeyCompromise}, ann); err != nil {
			t.Fatal(err)
		}
	}
	data, err := r.SignedReceipt(t.Context(), "r-1")
	if err != nil {
		t.Fatal(err)
	}
	payload, signer, err := receipt.Open(data, r.pki.Bundle())
	if err != nil || !signer.Equal(r.pki.Operational.Certificate()) {
		t.Fatalf("signed by %v, %v", signer, err)
	}
	var got Receipt
	if err := json.Unmarshal(payload, &got); err != nil || got.ID != "pi-2" || got.ReceiptID != "r-1" || got.TrustDomain != certtest.TrustDomain || got.SignedAt.IsZero() || len(got.Nodes) != 1 {
		t.Fatalf("receipt = %+v, %v", got, err)
	}
	if kept, err := r.Receipt(t.Context(), "r-1"); err != nil || kept.ID != "pi-2" {
		t.Fatalf("kept = %+v, %v", kept, err)
	}
	page, next, err := r.Receipts(t.Context(), "", 2)
	if err != nil || len(page) != 2 || next != "r-1" {
		t.Fatalf("page = %+v, %q, %v", page, next, err)
	}
	if page, next, err = r.Receipts(t.Context(), next, 2); err != nil || len(page) != 1 || next != "" || page[0].ID != "pi-3" {
		t.Fatalf("page = %+v, %q, %v", page, next, err)
	}
	if _, err := r.Receipt(t.Context(), "r-9"); !errors.Is(err, ErrNoOrder) {
		t.Errorf("error = %v", err)
	}
	// A second time: the answer names the first receipt.
	again, err := r.Revoke(t.Context(), "pi-2", revocation.Superseded, ben)
	if err != nil || !again.Already || again.FirstReceipt != "r-1" || again.Reason != "keyCompromise" {
		t.Fatalf("again = %+v, %v", again, err)
	}
}

func TestCutOffStandsThoughItsReceiptCannotBeSigned(t *testing.T) {
	r := newRig(t)
	r.config.Sign = func([]byte) ([]byte, error) { return nil, errors.New("the key is in a safe") }
	r.register("pi-1")
	result, err := r.Execute(t.Context(), Order{ID: "r-1", Verb: VerbRevoke, Device: "pi-1"}, ann)
	if err != nil || !strings.Contains(result.Receipt.Problem, "the key is in a safe") || r.state("pi-1") != registry.StateRevoked {
		t.Fatalf("receipt = %+v, %v", result.Receipt, err)
	}
	if data, err := r.SignedReceipt(t.Context(), "r-1"); err != nil || data[0] != '{' {
		t.Fatalf("kept %.40s, %v; want it unsigned", data, err)
	}
}

func TestReceiptForVeryManyNamesTheirDigest(t *testing.T) {
	var lines []ReceiptDevice
	var ids []string
	for i := range maxLines + 1 {
		ids = append(ids, fmt.Sprint("pi-", i))
		lines = append(lines, ReceiptDevice{ID: ids[i], Serials: []string{"01"}})
	}
	var r Receipt
	r.count(ids, lines)
	if r.Devices != nil || r.Count != len(ids) || r.Certificates != len(ids) || r.Digest != digest(ids) {
		t.Errorf("receipt = %+v", r)
	}
}

func TestQuantilesAreRanks(t *testing.T) {
	var took []time.Duration
	for i := 100; i > 0; i-- {
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	if q := quantiles(took); *q != (Quantiles{Of: 100, P50: 50, P99: 99, Max: 100}) {
		t.Errorf("quantiles = %+v", q)
	}
	if q := quantiles(took[:1]); q.P50 != q.Max {
		t.Errorf("quantiles of one = %+v", q)
	}
	if quantiles(nil) != nil {
		t.Error("quantiles of none")
	}
}

// TestTwoOperatorsAtOnce: overlapping orders, given at the same time, each count a device
// once, and no device is in two receipts.
func TestTwoOperatorsAtOnce(t *testing.T) {
	r := newRig(t)
	r.populate(600)
	var both sync.WaitGroup
	results := make([]Result, 8)
	for i := range results {
		both.Go(func() {
			actor, text := ann, "id=board-0000*,protection=tpm"
			if i%2 == 1 {
				actor, text = ben, "batch=lot-*,label.site=s7|s8|s9"
			}
			// The count is what is there at that moment, or the order is refused; then look again.
			for {
				radius, err := r.Rehearse(context.Background(), Order{Verb: VerbRevoke, Select: selecting(t, text)})
				if err != nil || radius.Count == 0 {
					return
				}
				results[i], err = r.Execute(context.Background(), Order{Verb: VerbRevoke, Select: selecting(t, text), Count: radius.Count}, actor)
				if err == nil {
					return
				}
				if !errors.Is(err, ErrCount) && !errors.Is(err, ErrNobody) {
					t.Error(err)
					return
				}
			}
		})
	}
	both.Wait()
	in := make(map[string]string)
	for _, result := range results {
		if result.Receipt == nil {
			continue
		}
		for _, d := range result.Receipt.Devices {
			if other := in[d.ID]; other != "" {
				t.Errorf("%s is in the receipts %s and %s", d.ID, other, result.Receipt.ReceiptID)
			}
			in[d.ID] = result.Receipt.ReceiptID
		}
	}
	revoked := 0
	for _, id := range r.inState(registry.StateRevoked) {
		if in[id] != "" {
			revoked++
		}
	}
	if revoked != len(in) || len(in) == 0 {
		t.Errorf("%d devices are in receipts, %d of them revoked", len(in), revoked)
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRequestRepeatedWhileItIsCarriedOutGetsTheSameReceipt(t *testing.T) {
	r := newRig(t)
	r.populate(400)
	o := Order{ID: "order-1", Verb: VerbRevoke, Select: selecting(t, "state=active"), Count: 360}
	var all sync.WaitGroup
	receipts := make([]*Receipt, 5)
	for i := range receipts {
		all.Go(func() {
			result, err := r.Execute(t.Context(), o, ann)
			if err != nil {
				t.Error(err)
			}
			receipts[i] = result.Receipt
		})
	}
	all.Wait()
	for _, got := range receipts {
		if got == nil || !got.DurableAt.Equal(receipts[0].DurableAt) || got.Count != 360 {
			t.Errorf("receipt = %+v", got)
		}
	}
	// One that waits gives up with its context.
	end, err := r.underWay.begin(t.Context(), "order-2")
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Execute(ctx, Order{ID: "order-2", Verb: VerbRevoke, Device: "x"}, ann); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}

func TestDeviceOfARemovedIssuerHasNoUsableCertificate(t *testing.T) {
	r := newRig(t)
	r.register("pi-1")
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.Certificates[0].Standing != registry.StandingUsable {
		t.Fatalf("%+v, %v", d.Certificates, err)
	}
	r.config.Issuers = func() []*x509.Certificate { return []*x509.Certificate{r.pki.Operational.Certificate()} }
	if d, err := r.Device(t.Context(), "pi-1"); err != nil || d.Certificates[0].Standing != registry.StandingUntrusted {
		t.Fatalf("%+v, %v", d.Certificates, err)
	}
	page, err := r.Devices(t.Context(), registry.Selector{}, "", 0)
	if err != nil || page.Devices[0].Certificates[0].Standing != registry.StandingUntrusted {
		t.Fatalf("%+v, %v", page, err)
	}
}

func TestPagesOfASelectorListEachOnce(t *testing.T) {
	r := newRig(t)
	r.populate(500)
	s := selecting(t, "label.site=s7,state=active")
	var got []string
	for after := ""; ; {
		page, err := r.Devices(t.Context(), s, after, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Devices {
			got = append(got, d.ID)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	var want []string
	for i := range 500 {
		if d := plain(i, nil); d.Labels["site"] == "s7" && d.State == registry.StateActive {
			want = append(want, d.ID)
		}
	}
	if !slices.Equal(got, want) || len(want) < 10 {
		t.Errorf("listed %v, want %v", got, want)
	}
	issued, err := r.Issued(t.Context())
	if err != nil || issued["40521400"] == 0 {
		t.Errorf("issued = %v, %v", issued, err)
	}
}
