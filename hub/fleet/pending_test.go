package fleet

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/registry"
	"go.uber.org/goleak"
)

// TestOrderCutOffAtEveryCommit: whatever commit is the last that the hub survives, an
// order for many is done as a whole after the restart, or not at all; and whoever was
// out before the restart and didn't learn that it was not durable stays out.
func TestOrderCutOffAtEveryCommit(t *testing.T) {
	n := 2*orderChunk + 100
	for commits := 0; ; commits++ {
		r := newRig(t)
		r.populate(n)
		s := selecting(t, "state=active")
		active := r.inState(registry.StateActive)
		r.store.after.Store(int64(commits))
		result, err := r.Execute(t.Context(), Order{ID: "order-1", Verb: VerbRevoke, Select: s, Count: len(active), Reason: revocation.KeyCompromise}, ann)
		switch {
		case err == nil && result.Receipt.Problem == "":
		case err == nil: // all but the receipt
		case errors.Is(err, ErrNotDurable) != (commits == 0), !errors.Is(err, ErrNotDurable) && !errors.Is(err, ErrUnfinished):
			t.Fatalf("after %d commits: error = %v", commits, err)
		}
		for _, id := range active {
			if status, _ := r.Status(id); status.State != registry.StateRevoked {
				t.Fatalf("after %d commits: %s is %s now", commits, id, status.State)
			}
			if d, err := r.Device(t.Context(), id); err != nil || d.State != registry.StateRevoked {
				t.Fatalf("after %d commits: %s is shown as %s, %v", commits, id, d.State, err)
			}
		}
		r.restart() // as after a kill: what the fleet had in memory is gone
		want := n
		if commits == 0 {
			want -= len(active)
		}
		if got := r.inState(registry.StateRevoked); len(got) != want {
			t.Fatalf("after %d commits and a restart %d are revoked, want %d", commits, len(got), want)
		}
		if orders, err := r.bolt.Documents(t.Context(), registry.KindOrder, "", 1); err != nil || len(orders) > 0 {
			t.Fatalf("after %d commits and a restart an order is left: %v, %v", commits, orders, err)
		}
		if v, err := r.VerifyAudit(t.Context()); err != nil {
			t.Fatalf("after %d commits: %+v, %v", commits, v, err)
		}
		kept, keptErr := r.Receipt(t.Context(), "order-1")
		if commits > 0 && errors.Is(err, ErrUnfinished) && (keptErr != nil || !kept.Interrupted || kept.Count != len(active) || kept.Digest != digest(active)) {
			kept.Devices = nil
			t.Fatalf("after %d commits: receipt = %+v, %v", commits, kept, keptErr)
		}
		// Each device was revoked once, however often it was begun.
		if page, err := r.Audit(t.Context(), registry.AuditQuery{Device: active[len(active)-1], Action: "device.revoke"}); commits > 0 && (err != nil || len(page.Records) != 1) {
			t.Fatalf("after %d commits: audit = %+v, %v", commits, page, err)
		}
		if err == nil && result.Receipt.Problem == "" {
			if commits < 4 {
				t.Fatalf("it took %d commits only", commits)
			}
			return
		}
	}
}

func TestUnfinishedOrderGoesOnByItselfOnceTheDiskTakesWrites(t *testing.T) {
	r := newRig(t)
	r.populate(orderChunk + 200)
	active := r.inState(registry.StateActive)
	r.sessions.live[active[0]] = 1
	r.store.after.Store(int64(2)) // the order, and one chunk
	_, err := r.Execute(t.Context(), Order{ID: "order-1", Verb: VerbRevoke, Select: selecting(t, "state=active"), Count: len(active)}, ann)
	if !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "it holds") {
		t.Fatalf("error = %v", err)
	}
	// Nothing lifts it meanwhile.
	r.Seen(active[len(active)-1], time.Now())
	r.turn <- struct{}{}
	r.store.after.Store(int64(-1))
	<-r.turn
	eventually(t, func() bool { _, err := r.Receipt(t.Context(), "order-1"); return err == nil })
	if kept, err := r.Receipt(t.Context(), "order-1"); err != nil || kept.SessionsClosed != 1 || kept.Count != len(active) || kept.Interrupted {
		t.Errorf("%d sessions closed of %d devices, %v", kept.SessionsClosed, kept.Count, err)
	}
	if got := r.inState(registry.StateRevoked); len(got) != orderChunk+200 {
		t.Fatalf("%d are revoked", len(got))
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRecordsOfManyWaitForTheirSessionsEnd, unless somebody else has an order: that waits
// for no socket.
func TestRecordsOfManyWaitForTheirSessionsEnd(t *testing.T) {
	r := newRig(t)
	r.populate(orderChunk + 200)
	active := r.inState(registry.StateActive)
	r.register("other-1")
	held := make(chan struct{})
	r.sessions.many.Store(&held)
	answer := make(chan error, 1)
	go func() {
		result, err := r.Execute(t.Context(), Order{ID: "order-1", Verb: VerbRevoke, Select: selecting(t, "state=active"), Count: len(active)}, ann)
		if err == nil && (result.Receipt.Count != len(active) || result.Receipt.PurgedAt.IsZero()) {
			err = fmt.Errorf("receipt of %d, purged at %v", result.Receipt.Count, result.Receipt.PurgedAt)
		}
		answer <- err
	}()
	stored := func() registry.State {
		d, err := r.bolt.Device(t.Context(), active[0])
		if err != nil {
			t.Fatal(err)
		}
		return d.State
	}
	eventually(t, func() bool { status, _ := r.Status(active[0]); return status.State == registry.StateRevoked })
	r.Seen(active[0], time.Now()) // a sighting is no order
	if state := stored(); state != registry.StateActive {
		t.Errorf("the record says %s though sessions are open", state)
	}
	if _, err := r.Suspend(t.Context(), "other-1", "", ann); err != nil {
		t.Fatal(err)
	}
	if state := stored(); state != registry.StateRevoked {
		t.Errorf("the record says %s behind the next order", state)
	}
	close(held)
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// eventually waits until cond holds, or the test's patience ends.
func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't come to hold")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestOrderThatCannotBeReadKeepsTheHubFromStarting(t *testing.T) {
	for name, data := range map[string]string{"cut short": `{"order":`, "of nobody": `{"order":{"verb":"revoke","select":"id=*"},"ids":[]}`, "that cuts nobody off": `{"order":{"verb":"resume","select":"id=*"},"ids":["a"]}`} {
		r := newRig(t)
		if err := r.bolt.Commit(t.Context(), registry.Change{Documents: []registry.Document{{Kind: registry.KindOrder, ID: "order-1", Data: []byte(data)}}}); err != nil {
			t.Fatal(err)
		}
		if f, err := Open(r.config); err == nil || !strings.Contains(err.Error(), "order-1") {
			t.Errorf("%s: error = %v", name, err)
			f.Close()
		}
	}
}

// revokerEnv makes the test binary a process that revokes and says so, until it is
// killed.
const revokerEnv = "FLEET_TEST_REVOKER"

func TestMain(m *testing.M) {
	if path := os.Getenv(revokerEnv); path != "" {
		revokeForever(path)
	}
	goleak.VerifyTestMain(m)
}

// revokeForever revokes devices in order: one, then a batch of more than one transaction,
// and so on, and prints each as soon as it has the receipt.
func revokeForever(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	bolt, err := boltstore.Open(path)
	fail(err)
	var t fataler
	pki := certtest.New(t)
	f, err := Open(Config{Store: bolt, Sessions: &crowdSessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }})
	fail(err)
	for round := 0; ; round++ {
		page, err := f.Devices(context.Background(), mustSelect("state=active"), "", 1)
		fail(err)
		if len(page.Devices) == 0 {
			os.Exit(0)
		}
		id := page.Devices[0].ID
		if round%2 == 0 {
			_, err = f.Revoke(context.Background(), id, revocation.KeyCompromise, ann)
			fail(err)
			fmt.Println("revoked", id)
			continue
		}
		// The batches are of 5,000, of which every tenth was revoked before.
		s := registry.Equals("batch", page.Devices[0].Batch).And(mustSelect("state=active"))
		radius, err := f.Rehearse(context.Background(), Order{Verb: VerbRevoke, Select: s})
		fail(err)
		_, err = f.Execute(context.Background(), Order{Verb: VerbRevoke, Select: s, Count: radius.Count}, ann)
		fail(err)
		for _, id := range radius.IDs {
			fmt.Println("revoked", id)
		}
	}
}

func mustSelect(text string) registry.Selector {
	s, err := registry.ParseSelector(text)
	if err != nil {
		panic(err)
	}
	return s
}

// fataler is what certtest needs of a test, in a process that isn't one.
type fataler struct{ testing.TB }

func (fataler) Helper()           {}
func (fataler) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestKilledRightAfterTheReplyIsStillRevoked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	bolt, err := boltstore.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	const devices = 20_000
	for i := 0; i < devices; {
		var change registry.Change
		for range 5000 {
			change.Devices = append(change.Devices, plain(i, []byte{1}))
			i++
		}
		if err := bolt.Commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	var reported []string
	for round := range 6 {
		revoker := exec.Command(os.Args[0], "-test.run=^$")
		revoker.Env = append(os.Environ(), revokerEnv+"="+path)
		out, err := revoker.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		revoker.Stderr = os.Stderr // of panics
		if err := revoker.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed after one reply, in the middle of a batch, after it, and so on.
		lines := bufio.NewScanner(out)
		for i := 0; i < 1+round*round*200 && lines.Scan(); i++ {
			id, ok := strings.CutPrefix(lines.Text(), "revoked ")
			if !ok {
				t.Fatalf("the revoker said %q", lines.Text())
			}
			reported = append(reported, id)
		}
		if err := revoker.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it reported before the kill reached it counts, too
			if id, ok := strings.CutPrefix(lines.Text(), "revoked "); ok && len(id) == len(plain(0, nil).ID) {
				reported = append(reported, id)
			}
		}
		revoker.Wait() // killed: its error says no more

		bolt, err := boltstore.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		pki := certtest.New(t)
		f, err := Open(Config{Store: bolt, Sessions: &sessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range reported {
			if status, _ := f.Status(id); status.State != registry.StateRevoked {
				t.Fatalf("round %d: %s was reported as revoked and is %s", round, id, status.State)
			}
		}
		if _, err := f.VerifyAudit(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		// A batch is revoked as a whole or not at all, once the hub is up again.
		left := make(map[string]int)
		if err := bolt.Facts(t.Context(), "", func(facts *registry.Facts) bool {
			if facts.State == registry.StateActive {
				left[facts.Attributes.Batch]++
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for batch, n := range left {
			if n < 4400 { // 4,500 but for those revoked one by one
				t.Fatalf("round %d: %d of batch %s are left", round, n, batch)
			}
		}
		if err := errors.Join(f.Close(), bolt.Close()); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(reported)
	if len(slices.Compact(reported)) < 1000 {
		t.Fatalf("only %d revocations were reported: the test shows nothing", len(reported))
	}
}
