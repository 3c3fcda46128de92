package ledger

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestPatternCountsOnFromEverythingWithItsPrefix(t *testing.T) {
	l, _ := fresh(t)
	for _, id := range []string{"sim-00007", "sim-9", "sim-x", "sim-0000000012345678901234567890", "sin-00050"} {
		mustIssue(t, l, id)
	}
	run := func(prefix string, width, count int) Order {
		return mustOpen(t, l, Order{Kind: Run, Prefix: prefix, Out: "/a"}, Line{Pattern: Pattern{prefix, width}, Count: count})
	}
	o := run("sim-", 5, 100)
	if o.First != "sim-00010" || o.Last != "sim-00109" {
		t.Fatalf("%+v", o)
	}
	// Its IDs are taken from now on, though no record has them.
	if o := run("sim-", 3, 1); o.First != "sim-110" {
		t.Fatalf("%+v", o)
	}
	for id, want := range map[string]bool{"sim-00010": true, "sim-00109": true, "sim-00009": false, "sim-00110": false, "sim-10": false, "sim-000010": false, "other": false} {
		owner, _, err := l.OrderOf(id)
		if has := err == nil && owner.Number == o.Number; has != want {
			t.Errorf("%s: %t %v", id, has, err)
		}
	}
	if _, err := l.OpenOrder(noon, Order{Kind: Run}, Line{Pattern: Pattern{"sim-", 5}, Count: MaxCounter}); err == nil {
		t.Error("a pattern runs over the end of the counter")
	}
	if o := run("new.", 5, 100_001); o.Last != "new.100001" {
		t.Errorf("%+v", o)
	}
	if _, err := l.OpenOrder(noon, Order{Kind: Imported}, Line{Pattern: Pattern{"sim-", 5}, Count: 1, First: 110}); err == nil {
		t.Error("a pattern began within what is taken")
	}
}

func TestRunIsFoundOpenBeforeCompleteAndNewestFirst(t *testing.T) {
	l, _ := fresh(t)
	if _, err := l.FindRun("a-", 2, "/o"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	var numbers []uint64
	for range 3 {
		numbers = append(numbers, mustOpen(t, l, Order{Kind: Run, Prefix: "a-", Out: "/o"}, Line{Pattern: Pattern{"a-", 5}, Count: 2}).Number)
	}
	for _, step := range []struct{ close, find int }{{-1, 0}, {0, 1}, {2, 1}, {1, 2}} {
		if step.close >= 0 {
			if o, err := l.AdvanceRun(noon, numbers[step.close], 2); err != nil || !o.Closed() {
				t.Fatal(o, err)
			}
		}
		if o, err := l.FindRun("a-", 2, "/o"); err != nil || o.Number != numbers[step.find] {
			t.Errorf("after closing %d: %v %v", step.close, o.Number, err)
		}
	}
	if _, err := l.AdvanceRun(noon, numbers[0], 2); err == nil {
		t.Error("a closed batch advanced")
	}
	if open, err := l.OpenOrders(); len(open) != 0 || err != nil {
		t.Error(open, err)
	}
}

func TestPatternsAreReadAsTheyAreWritten(t *testing.T) {
	for text, ok := range map[string]bool{
		"sim-#####": true, "a#": true, "b.#########": true,
		"": false, "sim-": false, "#####": false, "sim-1###": false, "sim-##########": false, "sim-###x": false,
	} {
		p, err := ParsePattern(text)
		if (err == nil) != ok || ok && p.String() != text {
			t.Errorf("%q: %v %v", text, p, err)
		}
	}
	if id := (Pattern{"a-", 3}).ID(7); id != "a-007" {
		t.Error(id)
	}
}

func TestOrderIsOpenedWholeOrNotAtAll(t *testing.T) {
	l, _ := fresh(t)
	mustIssue(t, l, "made")
	mustOpen(t, l, Order{Kind: Imported, Name: "po-1"}, Line{IDs: []string{"mine"}})
	for name, test := range map[string]struct {
		o     Order
		lines []Line
		want  string
	}{
		"nothing":           {Order{}, nil, "has no devices"},
		"an ID twice":       {Order{}, []Line{{IDs: []string{"good", "x", "x"}}}, "x is in the order twice"},
		"in two lines":      {Order{}, []Line{{IDs: []string{"good", "x"}}, {IDs: []string{"y", "x"}}}, "x is in the order twice"},
		"made already":      {Order{}, []Line{{IDs: []string{"good", "made"}}}, "made has a certificate already"},
		"another order's":   {Order{}, []Line{{IDs: []string{"good", "mine"}}}, "mine belongs to the open order"},
		"name taken":        {Order{Name: "po-1"}, []Line{{IDs: []string{"good", "x"}}}, "an order named"},
		"replaces nothing":  {Order{Kind: Replacement}, []Line{{IDs: []string{"x"}}}, "no certificate of this station"},
		"replaces patterns": {Order{Kind: Replacement}, []Line{{Pattern: Pattern{"a-", 5}, Count: 1}}, "lists their IDs"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := l.OpenOrder(noon, test.o, test.lines...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
			if _, _, err := l.OrderOf("good"); !errors.Is(err, ErrNotFound) {
				t.Errorf("something of it is left: %v", err)
			}
		})
	}
}

func TestClosedOrderGivesItsIDsBack(t *testing.T) {
	l, _ := fresh(t)
	o := mustOpen(t, l, Order{Kind: Imported}, Line{IDs: []string{"a", "b"}}, Line{Pattern: Pattern{"p-", 5}, Count: 2})
	d := newDevice(t)
	mustReserve(t, l, Reservation{Order: o.Number, ID: "a", Serial: "0a", KeyHash: d.hash})
	if err := l.Issue(noon, d.cert("a", "0a")); err != nil {
		t.Fatal(err)
	}
	mustReserve(t, l, Reservation{Order: o.Number, ID: "b", Serial: "0b", KeyHash: "kb"})
	for range 2 {
		if closed, err := l.CloseOrder(noon, o.Number); err != nil || !closed.Closed() {
			t.Fatal(closed, err)
		}
	}
	if _, err := l.OpenOrder(noon, Order{}, Line{IDs: []string{"a"}}); err == nil {
		t.Error("an ID that has a certificate was given back")
	}
	next := order(t, l, "b", "p-00001")
	if r := mustReserve(t, l, Reservation{Order: next, ID: "b", Serial: "0c", KeyHash: "kc"}); r.Serial != "0b" || r.Order != next {
		t.Errorf("the serial number reserved for b was forgotten: %+v", r)
	}
	// The counter goes on all the same: labels may have been printed.
	if o := mustOpen(t, l, Order{}, Line{Pattern: Pattern{"p-", 5}, Count: 1}); o.First != "p-00003" {
		t.Errorf("%+v", o)
	}
}

func TestReplacementSupersedesTheOldCertificate(t *testing.T) {
	l, path := fresh(t)
	old := mustIssue(t, l, "a")
	first, _, _ := l.Device("a")
	m, _, err := l.NextManifest(10)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = l.CommitManifest(noon, m); err != nil {
		t.Fatal(err)
	}
	if err := l.DeliverManifest(noon, m.Number); err != nil {
		t.Fatal(err)
	}
	o := mustOpen(t, l, Order{Kind: Replacement, Reason: "key lost"}, Line{IDs: []string{"a"}})
	if _, err := l.Reserve(noon, plenty, Reservation{Order: o.Number, ID: "a", Serial: "0b", KeyHash: old.hash}); err == nil {
		t.Error("the old key got another certificate")
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Order: o.Number, Serial: "0b", KeyHash: "x"}); err == nil {
		t.Error("a replacement was given to a device it doesn't name")
	}
	d := newDevice(t)
	reservation := Reservation{Order: o.Number, ID: "a", Serial: "0b", KeyHash: d.hash}
	mustReserve(t, l, reservation)
	l.Close() // and killed, the repetition goes on with the same serial number
	l = open(t, path)
	reservation.Serial = "0c"
	if r := mustReserve(t, l, reservation); r.Serial != "0b" || r.Supersedes != first.Serial || r.Reason != "key lost" {
		t.Fatalf("%+v", r)
	}
	if err := l.Issue(noon, d.cert("a", "0b")); err != nil {
		t.Fatal(err)
	}
	if err := l.Deliver(noon, "a"); err != nil {
		t.Fatal(err)
	}
	if o, err := l.Order(o.Number); err != nil || !o.Closed() {
		t.Errorf("%+v %v", o, err)
	}
	if n, err := l.Count(); n != 1 || err != nil {
		t.Errorf("the device counts as %d %v", n, err)
	}
	var seen []string
	for range 2 { // the first manifest again, and the next
		if err := l.Entries(m, func(r Record, der []byte) error {
			seen = append(seen, fmt.Sprintf("%s %s>%s %t", r.ID, r.Serial, r.Supersedes, len(der) > 0))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if m, _, err = l.NextManifest(10); err != nil {
			t.Fatal(err)
		}
	}
	if want := fmt.Sprintf("[a %s> true a 0b>%s true]", first.Serial, first.Serial); fmt.Sprint(seen) != want {
		t.Errorf("the manifests say %v, want %s", seen, want)
	}
	if _, err := l.Reserve(noon, plenty, Reservation{Order: o.Number, ID: "a", Serial: "0d", KeyHash: "y"}); err == nil {
		t.Error("a second replacement without an order")
	}
}

func TestRevisedOrderSaysWhatTheNewCommandSaid(t *testing.T) {
	l, _ := fresh(t)
	o := mustOpen(t, l, Order{Kind: Single}, Line{IDs: []string{"a"}, Attributes: Attributes{Model: "one"}})
	if err := l.ReviseOrder(o.Number, Attributes{Model: "two"}); err != nil {
		t.Fatal(err)
	}
	if r := mustReserve(t, l, Reservation{Order: o.Number, ID: "a", Serial: "0a", KeyHash: "k"}); r.Model != "two" {
		t.Errorf("%+v", r)
	}
	if err := l.ReviseOrder(order(t, l, "b"), Attributes{}); !errors.Is(err, ErrRefused) {
		t.Errorf("an imported order was changed: %v", err)
	}
}
