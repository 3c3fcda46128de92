package console_test

import (
	"bufio"
	"context"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// browser asks a hub for pages with a certificate, or without, and follows no redirect.
type browser struct {
	t    *testing.T
	hub  *hubtest.Hub
	http *http.Client
}

func open(t *testing.T, h *hubtest.Hub, credential certtest.Credential) *browser {
	t.Helper()
	credential.Roots = h.Fleet.Bundle()
	transport := &http.Transport{TLSClientConfig: credential.ClientConfig()}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{t, h, &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func openAs(t *testing.T, h *hubtest.Hub, role string) *browser {
	t.Helper()
	return open(t, h, h.Fleet.Operator("the-"+role, certtest.WithOU(role)))
}

// page is what came of a request.
type page struct {
	status int
	header http.Header
	text   string
}

// send reads the whole answer: a stream that should have been refused fails the test.
func (b *browser) send(r *http.Request) page {
	b.t.Helper()
	ctx, enough := context.WithTimeout(r.Context(), time.Minute)
	defer enough()
	response, err := b.http.Do(r.WithContext(ctx))
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return page{response.StatusCode, response.Header, string(text)}
}

func (b *browser) request(method, path string, form url.Values) *http.Request {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.hub.HTTPSAddr()+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	return r
}

func (b *browser) get(path string) page { b.t.Helper(); return b.send(b.request("GET", path, nil)) }

func (b *browser) post(path string, form url.Values) page {
	b.t.Helper()
	return b.send(b.request("POST", path, form))
}

var hidden = regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)">`)

// form is what a page's form sends by itself.
func (p page) form() url.Values {
	form := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(p.text, -1) {
		form.Set(m[1], html.UnescapeString(m[2]))
	}
	return form
}

func (b *browser) says(p page, status int, wants ...string) {
	b.t.Helper()
	if p.status != status {
		b.t.Errorf("status %d, want %d: %s", p.status, status, p.text)
	}
	for _, want := range wants {
		if !strings.Contains(p.text, want) {
			b.t.Errorf("the page doesn't say %q:\n%s", want, p.text)
		}
	}
}

func TestViewerSeesTheFleet(t *testing.T) {
	h := hubtest.Start(t, func(c *server.Config) { c.Operations.FourEyesOver = 1 })
	h.Device("pi-1")
	h.Device("pi-2")
	const script = `<script>alert("x")</script>`
	if _, err := h.Operator().Label(t.Context(), "pi-1", admin.LabelRequest{Metadata: map[string]string{"shelf": script}, Labels: map[string]string{"site": "north"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Operator().Order(t.Context(), fleet.VerbRevoke, admin.SelectionRequest{Select: "id=pi-*", Reason: "keyCompromise", Confirm: true, Count: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Operator().Suspend(t.Context(), "pi-2", script); err != nil {
		t.Fatal(err)
	}
	b := openAs(t, h, "viewer")
	b.says(b.get("/console/"), 200, `<b data-number="total">2</b>`, `<b data-number="suspended">1</b>`, "revoke id=pi-*", "hub proposal approve", "--count 2 --digest ", "Policy: built-in")
	b.says(b.get("/console/devices"), 200, `href="/console/devices/pi-1"`, `href="/console/devices/pi-2"`, `state suspended`)
	b.says(b.get("/console/devices?select=state%3Dsuspended"), 200, "pi-2", `value="state=suspended"`)
	if p := b.get("/console/devices?select=state%3Dsuspended"); strings.Contains(p.text, "devices/pi-1") {
		t.Error("the selector picks everything")
	}
	b.says(b.get("/console/devices?select=frobnicate"), 400, "frobnicate", `class="problem"`)
	b.says(b.get("/console/devices/pi-1"), 200, "site=north", "usable", "bench-1", "&lt;script&gt;alert(", "Nothing is done before you have confirmed it")
	b.says(b.get("/console/devices/pi-2?done=<b>you+have+won</b>"), 200, "suspended", "certificateHold")
	b.says(b.get("/console/devices/nobody"), 404, "nobody")
	b.says(b.get("/console/nothing"), 404)
	for _, path := range []string{"/console/", "/console/devices", "/console/devices/pi-1", "/console/devices/pi-2?done=%3Cb%3Ewon", "/console/devices?select=%3Cscript%3E", "/console/console.css", "/console/console.js"} {
		p := b.get(path)
		if strings.Contains(p.text, "<script>") || strings.Contains(p.text, "<b>won") || strings.Contains(p.text, "won") {
			t.Errorf("%s has what somebody else has written, as it is", path)
		}
		policy := p.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") || !strings.Contains(policy, "form-action 'self'") ||
			p.header.Get("X-Content-Type-Options") != "nosniff" || p.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, p.header)
		}
		for _, from := range regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(p.text, -1) {
			if !strings.HasPrefix(from[1], "/console/") {
				t.Errorf("%s refers to %s", path, from[1])
			}
		}
	}
	if p := b.get("/console"); p.status != http.StatusPermanentRedirect || p.header.Get("Location") != "/console/" {
		t.Errorf("without its slash: %+v", p)
	}
}

func TestOrderIsRehearsedThenCarriedOutOnce(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	b := openAs(t, h, "operator")
	state := func() registry.State {
		status, _ := h.Server().Fleet().Status("pi-1")
		return status.State
	}
	for _, step := range []struct {
		verb     string
		reason   string
		says     string
		before   registry.State
		after    registry.State
		receipts int
	}{
		{"suspend", "", "cut off until somebody resumes it", registry.StateRegistered, registry.StateSuspended, 1},
		{"resume", "", "may connect again", registry.StateSuspended, registry.StateRegistered, 2},
		{"revoke", "keyCompromise", "This is for good. It would revoke 1 certificates", registry.StateRegistered, registry.StateRevoked, 3},
	} {
		form := b.get("/console/devices/pi-1").form()
		form.Set("note", `lost & "found"`)
		path := "/console/devices/pi-1/" + step.verb
		rehearsal := b.post(path, form)
		b.says(rehearsal, 200, step.says, "pi-1 is", string(step.before))
		if state() != step.before {
			t.Fatalf("%s was done without being confirmed", step.verb)
		}
		confirmed := rehearsal.form()
		confirmed.Set("confirm", "yes")
		if step.reason != "" {
			confirmed.Set("reason", step.reason)
		}
		done := b.post(path, confirmed)
		if done.status != http.StatusSeeOther || !strings.HasPrefix(done.header.Get("Location"), "/console/devices/pi-1") || state() != step.after {
			t.Fatalf("%s: %+v, and it is %s", step.verb, done, state())
		}
		shown := b.get(done.header.Get("Location"))
		b.says(shown, 200, string(step.after), html.EscapeString(`lost & "found"`))
		if step.verb != "resume" {
			b.says(shown, 200, "Done. The receipt is")
		}
		// The form sent twice is one order; sent as another, it is none.
		if again := b.post(path, confirmed); again.status != http.StatusSeeOther || again.header.Get("Location") != done.header.Get("Location") {
			t.Errorf("%s sent twice: %+v", step.verb, again)
		}
		receipts, err := h.Operator().Receipts(t.Context(), "", 0)
		if err != nil || len(receipts.Receipts) != step.receipts || receipts.Receipts[step.receipts-1].Actor != "spiffe://fleet.example/operator/the-operator" {
			t.Errorf("%s: receipts %+v, %v", step.verb, receipts, err)
		}
		confirmed.Set("key", "another-"+step.verb)
		b.says(b.post(path, confirmed), 412, "not as you have seen it")
	}
	if p := b.get("/console/devices/pi-1"); strings.Contains(p.text, "<form") {
		t.Error("a revoked device has orders left")
	}
}

func TestOrderOfSomebodyElseIsRefused(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	operator, viewer := openAs(t, h, "operator"), openAs(t, h, "viewer")
	form := operator.post("/console/devices/pi-1/revoke", operator.get("/console/devices/pi-1").form()).form()
	form.Set("confirm", "yes")
	const path = "/console/devices/pi-1/revoke"
	viewer.says(viewer.post(path, form), 403, "this takes the role operator")
	viewer.says(viewer.post(path, viewer.get("/console/devices/pi-1").form()), 403, "this takes the role operator") // the rehearsal, too
	for name, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
		r := operator.request("POST", path, form)
		r.Header.Del("Sec-Fetch-Site")
		r.Header.Set(name, value)
		operator.says(operator.send(r), 403, "another web site")
	}
	operator.says(operator.post(path, url.Values{"confirm": {"yes"}}), 400, "not a form of the console")
	operator.says(operator.post("/console/devices/pi-1/replace", form), 404, "no such order")
	operator.says(operator.post(path, url.Values{"note": {strings.Repeat("x", 20<<10)}}), 400, "can&#39;t be read")
	stranger := open(t, h, h.Fleet.Device("pi-1"))
	nobody := open(t, h, certtest.Credential{})
	for _, b := range []*browser{stranger, nobody} {
		for _, path := range []string{"/console/", "/console/devices", "/console/devices/pi-1", "/console/console.js", "/console/events"} {
			b.says(b.get(path), 403, "operator&#39;s certificate is required")
		}
		b.says(b.post(path, form), 403, "operator&#39;s certificate is required")
	}
	if status, _ := h.Server().Fleet().Status("pi-1"); status.State != registry.StateRegistered {
		t.Errorf("it is %s", status.State)
	}
}

func TestNumbersAreKeptFreshUntilTheHubStops(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	b := openAs(t, h, "viewer")
	response, err := b.http.Do(b.request("GET", "/console/events", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("type %q", response.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(response.Body)
	until := func(want string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "data: ") && strings.Contains(lines.Text(), want) {
				return
			}
		}
		t.Fatalf("the stream ends without %s: %v", want, lines.Err())
	}
	until(`"registered":1`)
	if _, err := h.Operator().Suspend(t.Context(), "pi-1", ""); err != nil {
		t.Fatal(err)
	}
	until(`"suspended":1`)
	stopped := make(chan struct{})
	go func() {
		h.Server().Close()
		close(stopped)
	}()
	for lines.Scan() {
	}
	<-stopped
	if err := lines.Err(); err != nil {
		t.Errorf("the stream was cut off, not ended: %v", err)
	}
}

// TestOtherSitesMayOnlyLinkToPages: a browser sends an operator's certificate whoever asks for it.
func TestOtherSitesMayOnlyLinkToPages(t *testing.T) {
	h := hubtest.Start(t)
	h.Device("pi-1")
	b := openAs(t, h, "viewer")
	for _, tt := range []struct {
		site, mode, dest, path string
		status                 int
	}{
		{"cross-site", "navigate", "document", "/console/", 200},
		{"cross-site", "navigate", "document", "/console/devices", 200},
		{"same-site", "navigate", "document", "/console/devices/pi-1", 200},
		{"cross-site", "navigate", "iframe", "/console/", 403},
		{"cross-site", "no-cors", "image", "/console/", 403},
		{"same-site", "cors", "empty", "/console/devices", 403},
		{"cross-site", "navigate", "document", "/console/events", 403},
		{"cross-site", "no-cors", "script", "/console/console.js", 403},
		{"same-origin", "no-cors", "script", "/console/console.js", 200},
		{"none", "navigate", "document", "/console/", 200},
	} {
		r := b.request("GET", tt.path, nil)
		for name, value := range map[string]string{"Sec-Fetch-Site": tt.site, "Sec-Fetch-Mode": tt.mode, "Sec-Fetch-Dest": tt.dest} {
			r.Header.Set(name, value)
		}
		if got := b.send(r); got.status != tt.status || got.header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%+v: %d %v", tt, got.status, got.header)
		}
	}
}

// TestOneOperatorDoesNotTakeAllStreams: whoever opens many pages has some of them kept fresh.
func TestOneOperatorDoesNotTakeAllStreams(t *testing.T) {
	h := hubtest.Start(t)
	begin := func(b *browser) int {
		response, err := b.http.Do(b.request("GET", "/console/events", nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		return response.StatusCode
	}
	greedy := h.Fleet.Operator("greedy", certtest.WithOU("viewer"))
	again := h.Fleet.Operator("greedy", certtest.WithOU("viewer")) // another certificate is no other operator
	for i, want := range []int{200, 200, 200, 200, 200, 200, 200, 200, 503} {
		credential := greedy
		if i%2 == 1 {
			credential = again
		}
		if got := begin(open(t, h, credential)); got != want {
			t.Errorf("stream %d: %d", i, got)
		}
	}
	if got := begin(openAs(t, h, "viewer")); got != http.StatusOK {
		t.Errorf("somebody else: %d", got)
	}
}
