package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/registry"
)

// see gets a path and returns its entity tag and body.
func (h *hub) see(client *http.Client, path string, headers ...string) answered {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.url+path, nil)
	h.must(err)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := client.Do(r)
	h.must(err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	h.must(err)
	return answered{response.StatusCode, response.Header, string(content)}
}

func (h *hub) tag(client *http.Client, path string) string {
	h.t.Helper()
	tag := h.see(client, path).header.Get("ETag")
	if len(tag) < 3 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		h.t.Fatalf("%s has the entity tag %q", path, tag)
	}
	return tag
}

func TestEntityTagChangesWithTheRecordAndSurvivesARestart(t *testing.T) {
	var live Session
	h := newHub(t, operatorsOnly, func(c *Config) {
		c.Live = func(string) (Session, bool) { return live, live.ClientID != "" }
	})
	ann := h.admin("ann")
	if _, err := ann.Import(t.Context(), h.manifest("pi-1")); err != nil {
		t.Fatal(err)
	}
	client := h.operatorClient("ann")
	const path = "/v1/devices/pi-1"
	seen := map[string]string{}
	step := func(what string, do func() error) string {
		t.Helper()
		h.must(do())
		tag := h.tag(client, path)
		if before, known := seen[tag]; known {
			t.Errorf("%s: the tag %s is the one after %s", what, tag, before)
		}
		seen[tag] = what
		if again := h.tag(client, path); again != tag {
			t.Errorf("%s: nothing has changed, and the tag from %s to %s", what, tag, again)
		}
		if same := h.see(client, path, "If-None-Match", `"x", W/`+tag); same.status != http.StatusNotModified || same.body != "" || same.header.Get("ETag") != tag {
			t.Errorf("%s: asked again: %+v", what, same)
		}
		return tag
	}
	step("the import", func() error { return nil })
	step("a label", func() error {
		_, err := ann.Label(t.Context(), "pi-1", LabelRequest{Labels: map[string]string{"site": "north"}})
		return err
	})
	step("metadata", func() error {
		_, err := ann.Label(t.Context(), "pi-1", LabelRequest{Metadata: map[string]string{"shelf": "4"}})
		return err
	})
	step("a suspension", func() error { _, err := ann.Suspend(t.Context(), "pi-1", ""); return err })
	resumed := step("a resumption", func() error { _, err := ann.Resume(t.Context(), "pi-1", ""); return err })
	online := step("a connect", func() error { live = Session{ClientID: "pi-1", ConnectedAt: time.Now()}; return nil })
	// What is live changes what is seen, and is nobody's change of the record.
	if record := func(tag string) string { before, _, _ := strings.Cut(tag, "."); return before }; record(online) != record(resumed) {
		t.Errorf("a connect changes the record's part of the tag: %s, %s", resumed, online)
	}
	if answer := h.post(client, path+"/suspend", `{}`, "", "If-Match", resumed); answer.status != http.StatusOK {
		t.Errorf("an order by what was seen before the connect: %+v", answer)
	}
	tag := h.tag(client, path)
	h.restarted()
	if again := h.tag(h.operatorClient("ann"), path); again != tag {
		t.Errorf("the tag is %s after a restart, %s before", again, tag)
	}
}

func TestOrderByAnOldEntityTagDoesNothing(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	ann := h.admin("ann")
	if _, err := ann.Import(t.Context(), h.manifest("pi-1", "pi-2")); err != nil {
		t.Fatal(err)
	}
	client := h.operatorClient("ben")
	const path = "/v1/devices/pi-1"
	old := h.tag(client, path)
	if _, err := ann.Suspend(t.Context(), "pi-1", "lost"); err != nil {
		t.Fatal(err)
	}
	before := h.tag(client, path)
	for verb, body := range map[string]string{
		"suspend": `{}`, "resume": `{}`, "revoke": `{"reason":"keyCompromise","confirm":true}`, "retire": `{"confirm":true}`, "replace": `{"by":"pi-2","confirm":true}`,
		"reinstate": `{"confirm":true}`, "label": `{"labels":{"site":"south"}}`,
	} {
		answer := h.post(client, path+"/"+verb, body, "", "If-Match", old)
		var p Problem
		h.must(json.Unmarshal([]byte(answer.body), &p))
		if answer.status != http.StatusPreconditionFailed || p.Type != problemType+codeChanged || !strings.Contains(p.Detail, "suspended since") || !strings.Contains(p.Detail, "operator/ann") {
			t.Errorf("%s: %+v", verb, answer)
		}
		for _, wrong := range []string{"x", `W/` + old, old + ", " + old, `"`, `""`, `".abc"`, `"."`, ""} {
			if answer := h.post(client, path+"/"+verb, body, "", "If-Match", wrong); answer.status != http.StatusBadRequest {
				t.Errorf("%s with If-Match %s: %+v", verb, wrong, answer)
			}
		}
	}
	if after := h.tag(client, path); after != before {
		t.Error("an order by an old entity tag has changed the record")
	}
	// Sent twice: neither of the two is chosen.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+path+"/resume", strings.NewReader(`{}`))
	h.must(err)
	r.Header = http.Header{"Content-Type": {"application/json"}, "If-Match": {before, old}}
	response, err := client.Do(r)
	h.must(err)
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("two If-Match: %d", response.StatusCode)
	}
	// A rehearsal says so, too.
	if answer := h.post(client, path+"/revoke", `{"reason":"keyCompromise"}`, "", "If-Match", old); answer.status != http.StatusPreconditionFailed {
		t.Errorf("rehearsed: %+v", answer)
	}
	for _, match := range []string{before, "*"} {
		if answer := h.post(client, path+"/resume", `{}`, "", "If-Match", match); answer.status != http.StatusOK {
			t.Errorf("by %s: %+v", match, answer)
		}
		h.post(client, path+"/suspend", `{}`, "")
	}
	if answer := h.post(client, "/v1/devices/nobody/resume", `{}`, "", "If-Match", "*"); answer.status != http.StatusNotFound {
		t.Errorf("of nobody: %+v", answer)
	}
}

// TestOfTwoOperatorsAtOnceOneIsFirst has two operators who have seen the same record give
// different orders at the same time, often: exactly one is carried out, and the other operator
// is told by whom the record was changed.
func TestOfTwoOperatorsAtOnceOneIsFirst(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	const rounds = 12
	var ids []string
	for i := range rounds {
		ids = append(ids, fmt.Sprint("pi-", i))
	}
	if _, err := h.admin("ann").Import(t.Context(), h.manifest(ids...)); err != nil {
		t.Fatal(err)
	}
	ann, ben := h.operatorClient("ann"), h.operatorClient("ben")
	orders := []struct{ verb, body string }{
		{"suspend", `{}`}, {"revoke", `{"reason":"keyCompromise","confirm":true}`}, {"retire", `{"confirm":true}`}, {"label", `{"labels":{"site":"north"}}`},
	}
	resume := struct{ verb, body string }{"resume", `{}`}
	for round, id := range ids {
		path := "/v1/devices/" + id
		pair := [2]struct{ verb, body string }{orders[round%len(orders)], orders[(round/len(orders)+round+1)%len(orders)]}
		if round%3 == 2 { // from a suspension, whose lifting competes
			h.post(ann, path+"/suspend", `{}`, "")
			pair[0] = resume
			if pair[1].verb == "suspend" {
				pair[1] = orders[1]
			}
		}
		tag := h.tag(ann, path)
		var answers [2]answered
		var both sync.WaitGroup
		for i, client := range []*http.Client{ann, ben} {
			both.Go(func() { answers[i] = h.post(client, path+"/"+pair[i].verb, pair[i].body, "", "If-Match", tag) })
		}
		both.Wait()
		won := 0
		for i, answer := range answers {
			switch answer.status {
			case http.StatusOK:
				won++
			case http.StatusPreconditionFailed:
				if !strings.Contains(answer.body, codeChanged) || !strings.Contains(answer.body, id+" is ") {
					t.Errorf("%s of %s: %+v", pair[i].verb, id, answer)
				}
			default:
				t.Errorf("%s of %s: %+v", pair[i].verb, id, answer)
			}
		}
		if won != 1 {
			t.Errorf("%s and %s of %s: %d were carried out", pair[0].verb, pair[1].verb, id, won)
		}
	}
	// Without an expectation, the state machine decides: of two who revoke, both are told that it
	// is done; who comes to lift what is final is told why not.
	h.must(h.fleetRevoke("pi-0"))
	if answer := h.post(ben, "/v1/devices/pi-0/resume", `{}`, ""); answer.status != http.StatusConflict || !strings.Contains(answer.body, "final") {
		t.Errorf("resume of what was revoked: %+v", answer)
	}
	if h.state("pi-0") == registry.StateActive {
		t.Error("a revoked device is active")
	}
}

func (h *hub) fleetRevoke(id string) error {
	credential := h.pki.Operator("cat", certtest.WithOU("admin"))
	answer := h.post(h.httpClient(&credential), "/v1/devices/"+id+"/revoke", `{"reason":"keyCompromise","confirm":true}`, "")
	if answer.status != http.StatusOK && !strings.Contains(answer.body, "final") {
		return fmt.Errorf("revoke %s: %+v", id, answer)
	}
	return nil
}

func FuzzEntityTagsAreReadAsTheyAreWritten(f *testing.F) {
	for _, seed := range []string{`"a"`, `W/"a"`, `"a", "b"`, `*`, `"`, `"a`, `"a"b"c"`, `"a",`, ` , "a"`, "\x00"} {
		f.Add(seed, "a")
	}
	f.Fuzz(func(t *testing.T, list, opaque string) {
		if strings.ContainsAny(opaque, "\"\r\n") {
			return // no entity tag has them
		}
		tag := `"` + opaque + `"`
		for _, how := range []comparison{strongly, weakly} {
			if matches(list, "", how) {
				t.Errorf("%q names what isn't there", list)
			}
			if !matches(tag, tag, how) || !matches(`"other", `+tag, tag, how) || !matches("*", tag, how) {
				t.Errorf("%s doesn't name itself", tag)
			}
		}
		if matches("W/"+tag, tag, strongly) || !matches("W/"+tag, tag, weakly) {
			t.Errorf("W/%s is taken for the wrong kind", tag)
		}
		if matches(list, tag, weakly) && strings.TrimSpace(list) != "*" && !strings.Contains(list, tag) {
			t.Errorf("%q is said to name %s", list, tag)
		}
	})
}
