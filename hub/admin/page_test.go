package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleethub/fleethub/hub/fleet"
)

// manyIssuers trusts so many.
type manyIssuers struct {
	fakeIssuers
	n int
}

func (m *manyIssuers) Issuers(context.Context) ([]Issuer, error) {
	list := []Issuer{}
	for i := range m.n {
		list = append(list, Issuer{Name: fmt.Sprintf("bench %d/ü", i%7), Serial: fmt.Sprintf("%04x", i)}) // of one name, several
	}
	return list, nil
}

// manyLists are so many lists.
type manyLists struct {
	noLists
	n int
}

func (m manyLists) Lists(context.Context) ([]CRL, error) {
	var list []CRL
	for i := range m.n {
		list = append(list, CRL{Issuer: fmt.Sprint("ca ", i%3), KeyID: fmt.Sprintf("%04x", i)})
	}
	return list, nil
}

// TestEveryListComesInPages follows the Link header of each list from its first page to its last,
// two at a time: each entry is there once, and next of the body says the same.
func TestEveryListComesInPages(t *testing.T) {
	start := time.Now()
	h := newPagedHub(t, func(c *Config) {
		c.Issuers, c.Lists = &manyIssuers{n: 7}, manyLists{n: 7}
		c.Anomalies = func(string) (all Anomalies) {
			for i := range 7 {
				all.Anomalies = append(all.Anomalies, Anomaly{At: start.Add(-time.Duration(i) * time.Millisecond), Device: fmt.Sprint("pi-", i), Signal: "flapping"})
			}
			return all
		}
	})
	ann := h.admin("ann")
	if _, err := ann.Import(t.Context(), h.manifest("pi-0", "pi-1", "pi-2", "pi-3", "pi-4", "pi-5", "pi-6")); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		if _, err := ann.CreateConsumer(t.Context(), fmt.Sprint("c", i), ConsumerPlace{From: "start"}); err != nil {
			t.Fatal(err)
		}
		answer, err := ann.Order(t.Context(), fleet.VerbRetire, SelectionRequest{Select: "id=pi-0|pi-1", Confirm: true, Count: 2})
		if err != nil || answer.Proposal == nil {
			t.Fatalf("%+v, %v", answer, err)
		}
		if _, err := ann.Suspend(t.Context(), fmt.Sprint("pi-", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	client := h.operatorClient("ann")
	for path, member := range map[string]string{
		"/v1/devices": "devices", "/v1/receipts": "receipts", "/v1/proposals": "proposals", "/v1/anomalies": "anomalies",
		"/v1/consumers": "consumers", "/v1/issuers": "issuers", "/v1/crls": "lists", "/v1/audit?action=device.suspend": "records",
	} {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		entries := map[string]bool{}
		pages := 0
		for next := path + separator + "limit=2"; next != ""; pages++ {
			answer := h.see(client, next)
			var body map[string]json.RawMessage
			var list []json.RawMessage
			if answer.status != http.StatusOK || json.Unmarshal([]byte(answer.body), &body) != nil || json.Unmarshal(body[member], &list) != nil || len(list) > 2 {
				t.Fatalf("%s: %+v", next, answer)
			}
			for _, one := range list {
				if entries[string(one)] {
					t.Errorf("%s: twice: %s", path, one)
				}
				entries[string(one)] = true
			}
			link := answer.header.Get("Link")
			target, relation, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">; ")
			if (link == "") != (body["next"] == nil) || link != "" && relation != `rel="next"` {
				t.Errorf("%s: Link %q, next %s", next, link, body["next"])
			}
			if next = target; pages > 20 {
				t.Fatalf("%s: there is no end", path)
			}
		}
		if len(entries) != 7 || pages < 4 {
			t.Errorf("%s: %d entries in %d pages", path, len(entries), pages)
		}
		for _, limit := range []string{"-1", "x", "1e3"} {
			if answer := h.see(client, path+separator+"limit="+limit); answer.status != http.StatusBadRequest {
				t.Errorf("%s with limit %s: %+v", path, limit, answer)
			}
		}
		if answer := h.see(client, path+separator+"limit=18446744073709551615"); answer.status != http.StatusOK {
			t.Errorf("%s with the largest limit: %+v", path, answer)
		}
	}
	// The client reads lists to their end, whatever the size of a page.
	if issuers, err := ann.Issuers(t.Context()); err != nil || len(issuers) != 7 {
		t.Errorf("%d issuers, %v", len(issuers), err)
	}
	if list, err := ann.Consumers(t.Context()); err != nil || len(list.Consumers) != 7 || list.End == 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// newPagedHub is a hub with a journal and the rule of four eyes.
func newPagedHub(t *testing.T, change func(*Config)) *hub {
	consumers := newMessages(t).config.Consumers
	return newHubOver(t, operatorsOnly, func(c *Config) {
		c.Consumers = consumers
		change(c)
	}, func(c *fleet.Config) { c.FourEyesOver = 1 })
}

// TestPagesTogetherAreTheList: whatever comes or goes between two pages, what stays is seen
// once, and a page is no longer than it may be.
func TestPagesTogetherAreTheList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c/]{1,4}`), 0, 30, rapid.ID[string]).Draw(t, "keys")
		backwards := rapid.Bool().Draw(t, "newest first")
		gone := make(map[string]bool)
		var seen []string
		after, size := "", rapid.IntRange(1, 7).Draw(t, "limit")
		for {
			request := httptest.NewRequest(http.MethodGet, "/x?"+url.Values{"after": {after}, "limit": {fmt.Sprint(size)}}.Encode(), nil)
			left := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return gone[k] })
			read := pageOf[string]
			if backwards {
				read = newestFirst[string]
			}
			page, next, err := read(request, left, func(k string) string { return k })
			if err != nil || len(page) > size || page == nil {
				t.Fatalf("%q, %v", page, err)
			}
			seen = append(seen, page...)
			if next == "" {
				break
			}
			if after = next; rapid.Bool().Draw(t, "one goes") {
				gone[rapid.SampledFrom(keys).Draw(t, "gone")] = true
			}
		}
		for _, k := range keys {
			n := 0
			for _, s := range seen {
				if s == k {
					n++
				}
			}
			if n > 1 || n == 0 && !gone[k] {
				t.Fatalf("%q is seen %d times in %q", k, n, seen)
			}
		}
	})
}

func TestPageOfNothingIsAnEmptyList(t *testing.T) {
	page, next, err := pageOf(httptest.NewRequest(http.MethodGet, "/x", nil), nil, func(i Issuer) string { return i.Name })
	if text, _ := json.Marshal(page); err != nil || next != "" || string(text) != "[]" {
		t.Errorf("%s, %q, %v", text, next, err)
	}
	if _, _, err := pageOf(httptest.NewRequest(http.MethodGet, "/x?after="+strings.Repeat("x", maxAfter+1), nil), []Issuer{}, func(i Issuer) string { return i.Name }); err == nil {
		t.Error("a place of any length is taken")
	}
}
