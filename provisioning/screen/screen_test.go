package screen

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/server"
	"github.com/fleethub/fleethub/provisioning/station"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a station with a screen that a browser reaches on loopback.
type bench struct {
	t       testing.TB
	station *station.Station
	screen  *Screen
	url     string
	client  *http.Client
}

func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	fleet := certtest.New(t)
	dir := t.TempDir()
	if _, err := station.Init(dir, certtest.StationName); err != nil {
		t.Fatal(err)
	}
	der, err := pemfile.ReadCSR(filepath.Join(dir, "station.csr"))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := fleet.Root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: csr.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	authority := filepath.Join(t.TempDir(), "authority.crt")
	if err := pemfile.WriteCertificates(authority, append([]*x509.Certificate{ca}, fleet.Bundle()...)...); err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t}
	if b.station, err = station.Open(dir, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.station.Close() })
	if _, err := b.station.Accept(authority); err != nil {
		t.Fatal(err)
	}
	config := Config{Ledger: b.station.Ledger(), Pin: "sha256:the-pin", Zone: time.UTC}
	if change != nil {
		change(&config)
	}
	b.screen = New(config)
	handler, err := b.screen.Handler()
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(handler)
	// As package server has them: a page must stay open for longer than a request may take.
	web.Config.ReadTimeout, web.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	web.Start()
	b.url, b.client = web.URL, web.Client()
	t.Cleanup(func() { b.screen.Close(); web.Close() })
	return b
}

// order opens an order that lists the IDs, and issues the first n of them.
func (b *bench) order(n int, name, model string, ids ...string) {
	b.t.Helper()
	l := b.station.Ledger()
	o, err := l.OpenOrder(time.Now(), ledger.Order{Kind: ledger.Imported, Name: name}, ledger.Line{IDs: ids, Attributes: ledger.Attributes{Model: model}})
	if err != nil {
		b.t.Fatal(err)
	}
	made, err := b.station.MakeTokens(station.TokenOrder{Order: o.Name, Count: max(n, 1), Valid: time.Hour})
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range n {
		key, err := issuance.NewKey()
		if err != nil {
			b.t.Fatal(err)
		}
		der, err := issuance.NewCSR(key, "board")
		if err != nil {
			b.t.Fatal(err)
		}
		csr, err := issuance.ParseCSR(der)
		if err != nil {
			b.t.Fatal(err)
		}
		token := strings.Split(made.Tokens[i], ".")[1]
		e, err := b.station.Enrol(station.Applicant{CSR: csr, Token: token})
		if err != nil {
			b.t.Fatal(err)
		}
		if err := b.station.Delivered(e.ID); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) get(path string, status int) (string, http.Header) {
	b.t.Helper()
	response, err := b.client.Get(b.url + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if response.StatusCode != status {
		b.t.Fatalf("%s: %s: %s", path, response.Status, body)
	}
	return string(body), response.Header
}

func contains(t testing.TB, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing from\n%s", want, text)
		}
	}
}

func success(id string) server.Event {
	return server.Event{At: time.Now(), Address: "192.0.2.7:4000", ID: id, Serial: "0a1b", Protection: "tpm"}
}

func refusal(reason, detail string) server.Event {
	return server.Event{At: time.Now(), Address: "192.0.2.8:4000", Reason: reason, Detail: detail}
}

func TestPageSaysWhatToDoNext(t *testing.T) {
	b := newBench(t, nil)
	page, _ := b.get("/", http.StatusOK)
	contains(t, page, `class="now idle"`, "No order is open", "provisioning order import", "sha256:the-pin", certtest.StationName)

	b.order(2, "po-1", "m1", "a", "b", "c")
	page, _ = b.get("/", http.StatusOK)
	contains(t, page, `class="now idle"`, "Plug in a board", `<progress value="2" max="3">`, "2 of 3", "po-1", "2 certificates are in no manifest")

	b.screen.Observe(success("b"))
	page, _ = b.get("/", http.StatusOK)
	contains(t, page, `class="now good"`, "b is ready", "Unplug b, put its label on and plug in the next board.", `src="/label/b.svg"`)

	b.screen.Observe(refusal("credential", "the enrolment token is not accepted: it was used for a"))
	page, _ = b.get("/", http.StatusOK)
	contains(t, page, `class="now bad"`, "Give the board a new token", "it was used for a", "192.0.2.8")

	b.screen.Observe(refusal("busy", "is being enrolled"))
	page, _ = b.get("/", http.StatusOK)
	contains(t, page, `class="now wait"`, "the board tries again by itself")

	b.order(1, "po-2", "m1", "z")
	if _, err := b.station.CloseOrder("po-1"); err != nil {
		t.Fatal(err)
	}
	b.screen.Observe(success("z"))
	page, _ = b.get("/", http.StatusOK)
	contains(t, page, `class="now good"`, "the order is complete", "1 of 1, closed")
}

func TestHourCountsOutliveTheProgram(t *testing.T) {
	b := newBench(t, nil)
	b.order(3, "po-1", "", "a", "b", "c", "d")
	other := New(Config{Ledger: b.station.Ledger(), Zone: time.UTC})
	defer other.Close()
	other.Observe(refusal("order", "x"))
	want := "order po-1: 3 of 4 | this hour: 3 made, 1 refused"
	if got := other.Status(); got != want {
		t.Errorf("%q", got)
	}
	b.order(2, "po-2", "", "x", "y")
	if got := other.Status(); got != "order po-2: 2 of 2, closed | this hour: 5 made, 1 refused" {
		t.Errorf("%q", got)
	}
}

func TestHoursAreTheNewestFirstAndOnlyThoseWithBoards(t *testing.T) {
	now := time.Date(2026, 10, 25, 3, 30, 0, 0, time.UTC)
	b := newBench(t, func(c *Config) { c.Now = func() time.Time { return now } })
	for _, ago := range []time.Duration{0, 2 * time.Hour, 2*time.Hour + time.Minute, 30 * time.Hour} {
		e := refusal("order", "x")
		e.At = now.Add(-ago)
		b.screen.Observe(e)
	}
	b.screen.drawing.Lock()
	v, err := b.screen.look()
	b.screen.drawing.Unlock()
	if err != nil || len(v.Hours) != 2 || v.Hours[0].Refused != 1 || v.Hours[1].Refused != 2 || v.Hours[1].Begin.Hour() != 1 {
		t.Errorf("%+v %v", v.Hours, err)
	}
}

func TestBoardThatKnocksAgainAndAgainTakesOneLine(t *testing.T) {
	b := newBench(t, nil)
	b.screen.Observe(success("a"))
	for range 5000 {
		b.screen.Observe(refusal("credential", "no"))
	}
	page, _ := b.get("/", http.StatusOK)
	contains(t, page, "(5000 times)", "a is ready")
	refusals, since := b.screen.Refusals()
	if len(refusals) != 1 || refusals[0].Count != 5000 || since.IsZero() {
		t.Errorf("%+v", refusals)
	}
	for i := range 2 * maxRefusals {
		b.screen.Observe(refusal("credential", fmt.Sprint(i)))
	}
	refusals, _ = b.screen.Refusals()
	if len(refusals) != maxRefusals || len(b.screen.lines) != shownLines {
		t.Errorf("%d refusals, %d lines", len(refusals), len(b.screen.lines))
	}
}

const hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\x1b]0;x\a\r\n\u202e"

// Whatever comes in an event: no markup, no terminal's commands, no line of its own in
// the stream.
func TestHostileTextStaysText(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Print = func(string) error { return errors.New(hostile) } })
	b.order(0, "po-1", hostile, "a")
	for _, e := range []server.Event{
		{At: time.Now(), ID: hostile, Serial: hostile, Protection: hostile, Address: hostile},
		{At: time.Now(), Reason: hostile, Detail: hostile + strings.Repeat("x", 5000), Address: hostile},
	} {
		line := b.screen.Observe(e)
		page, _ := b.get("/", http.StatusOK)
		for _, bad := range []string{"<script>alert", "<img src=x", "onerror=alert(1)>"} {
			if strings.Contains(page, bad) {
				t.Errorf("%q is in the page", bad)
			}
		}
		contains(t, page, "&lt;script&gt;")
		terminal := NewTerminal(io.Discard, func() int { return 80 }, func() string { return "" })
		text := strings.NewReplacer("\x1b[1;32m", "", "\x1b[1;31m", "", "\x1b[0m", "").Replace(terminal.line(line))
		if strings.ContainsAny(text, "\x1b\a\r\n\u202e") {
			t.Errorf("%q", text)
		}
	}
	csv, _ := b.get("/report.csv?hours=1", http.StatusOK)
	report, _ := b.get("/report.html?hours=1", http.StatusOK)
	if strings.Contains(report, "<script") || !strings.Contains(csv, "refused") {
		t.Error(report, csv)
	}
}

func TestPageRunsNothingFromElsewhereAndTellsNoSecret(t *testing.T) {
	b := newBench(t, nil)
	made, err := b.station.MakeTokens(station.TokenOrder{ID: "a", Count: 1, Valid: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Split(made.Tokens[0], ".")[1]
	for _, path := range []string{"/", "/screen.css", "/screen.js", "/report.html?hours=8", "/report.csv?hours=8"} {
		body, header := b.get(path, http.StatusOK)
		csp := header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; ") || strings.Contains(csp, "unsafe-eval") || strings.Contains(csp, "script-src 'unsafe") || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, header)
		}
		for _, bad := range []string{"http://", "https://", " style=", "onclick", secret} {
			if strings.Contains(body, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
	}
}

func TestNothingCanBeChangedOverThePage(t *testing.T) {
	b := newBench(t, nil)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		for _, path := range []string{"/", "/events", "/report.csv?hours=1", "/label/a.png"} {
			request, err := http.NewRequest(method, b.url+path, strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			response, err := b.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if response.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %s", method, path, response.Status)
			}
		}
	}
}

func TestLabelsAreOfIssuedDevicesOnly(t *testing.T) {
	b := newBench(t, nil)
	b.order(1, "po-1", "", "pi-1", "pi-2")
	for path, status := range map[string]int{
		"/label/pi-1.svg": 200, "/label/pi-1.png": 200, "/label/pi-1.zpl": 200,
		"/label/pi-2.svg": 404, "/label/none.svg": 404, "/label/pi-1": 404, "/label/pi-1.pdf": 404, "/label/..%2Fstation.key": 404, "/label/%3Cscript%3E.svg": 404, "/label/.svg": 404,
	} {
		b.get(path, status)
	}
	svg, header := b.get("/label/pi-1.svg", 200)
	if header.Get("Content-Type") != "image/svg+xml" || !strings.HasPrefix(svg, "<svg") {
		t.Error(header)
	}
}

func TestShiftReportHasDevicesAndRefusals(t *testing.T) {
	b := newBench(t, nil)
	b.order(2, "po-1", "=cmd()", "a", "b")
	b.screen.Observe(refusal("credential", "it was used for a"))
	csv, header := b.get("/report.csv?hours=8", http.StatusOK)
	contains(t, csv, "time,result,id,", ",issued,a,", ",issued,b,", "'=cmd()", "po-1", ",refused,", "192.0.2.8,credential,it was used for a,1")
	contains(t, header.Get("Content-Disposition"), "attachment; filename=\"shift-")
	page, _ := b.get("/report.html?hours=8", http.StatusOK)
	contains(t, page, "2 certificates issued", "it was used for a", "192.0.2.8", "=cmd()")
	for _, bad := range []string{"", "?hours=0", "?hours=x", "?hours=100000"} {
		b.get("/report.csv"+bad, http.StatusBadRequest)
	}
}

// stream reads the events of a page until one contains want.
type stream struct {
	response *http.Response
	lines    *bufio.Scanner
}

func (b *bench) open(ctx context.Context) (stream, int) {
	b.t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/events", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	response, err := b.client.Do(request)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { response.Body.Close() })
	return stream{response, bufio.NewScanner(response.Body)}, response.StatusCode
}

// until returns the event that contains want; "" if the stream ends before.
func (s stream) until(want string) string {
	var event strings.Builder
	for s.lines.Scan() {
		if line := s.lines.Text(); line != "" {
			event.WriteString(line + "\n")
			continue
		}
		if strings.Contains(event.String(), want) {
			return event.String()
		}
		event.Reset()
	}
	return ""
}

func TestOpenPageIsKeptUpToDate(t *testing.T) {
	b := newBench(t, nil)
	s, status := b.open(t.Context())
	if status != http.StatusOK || s.response.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(status, s.response.Header)
	}
	if s.until("No order is open") == "" {
		t.Fatal("the stream ended")
	}
	b.order(1, "po-1", "", "a", "b")
	b.screen.Observe(success("a"))
	event := s.until("a is ready")
	contains(t, event, "event: live\n", "1 of 2")
	for line := range strings.SplitSeq(strings.TrimSpace(event), "\n") {
		if !strings.HasPrefix(line, "data: ") && line != "event: live" {
			t.Errorf("%q is no line of an event", line)
		}
	}
	// No event tells of an order that is closed; the page shows it all the same.
	if _, err := b.station.CloseOrder("po-1"); err != nil {
		t.Fatal(err)
	}
	if s.until("1 of 2, closed") == "" {
		t.Error("the stream ended")
	}
	b.screen.Close()
	if s.until("never") != "" || s.lines.Err() != nil {
		t.Errorf("Close doesn't end the stream in order: %v", s.lines.Err())
	}
}

func TestPagesThatStayOpenAreCounted(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	for range maxViewers {
		if _, status := b.open(ctx); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	if _, status := b.open(ctx); status != http.StatusServiceUnavailable {
		t.Error(status)
	}
	b.get("/", http.StatusOK) // without live updates, but there
	cancel()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if s, status := b.open(t.Context()); status == http.StatusOK {
			s.response.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("pages that were closed still count")
		}
	}
}

func TestEveryReasonHasItsOwnAdvice(t *testing.T) {
	for _, r := range refusals {
		if a := adviceOn(server.Event{Reason: r.reason}); a.next == "" || a.headline == "" || !strings.HasSuffix(a.next, ".") || strings.Count(a.next, ". ") > 0 {
			t.Errorf("%s: %+v", r.reason, a)
		}
	}
	if a := adviceOn(server.Event{Reason: "new"}); a.tone != Bad || a.next == "" {
		t.Errorf("%+v", a)
	}
	if a := adviceOn(server.Event{ID: "a", Repeated: true}); a.tone != Good || !strings.Contains(a.next, "keeps its label") {
		t.Errorf("%+v", a)
	}
}

func TestLabelThatWasNotPrintedIsSeen(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Print = func(string) error { return nil } })
	b.order(1, "po-1", "", "a", "b")
	b.screen.Observe(success("a"))
	page, _ := b.get("/", 200)
	contains(t, page, "its label is being printed")
	b.screen.Labelled("a", &net.OpError{Op: "dial", Err: errors.New("no paper")})
	page, _ = b.get("/", 200)
	contains(t, page, "no paper")
	b.screen.Labelled("a", nil)
	b.screen.Labelled("gone", nil)
	page, _ = b.get("/", 200)
	contains(t, page, "its label is printed")
}
