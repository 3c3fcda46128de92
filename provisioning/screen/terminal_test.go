package screen

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// paper is a terminal that is held with Ctrl-S until it is released.
type paper struct {
	release chan struct{}

	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (p *paper) Write(b []byte) (int, error) {
	<-p.release
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func TestTerminalShowsALineABoardAndTheOrderBelow(t *testing.T) {
	out := &paper{release: make(chan struct{})}
	close(out.release)
	view := NewTerminal(out, func() int { return 21 }, func() string { return "order po-1: 3 of 4 and more that is cut" })
	view.Show(Line{Tone: Good, ID: "pi-1", Serial: "0a", Protection: "tpm", Count: 1})
	for n := range 1000 {
		view.Show(Line{Tone: Bad, Headline: "No", Next: "Stop.", Address: "192.0.2.8:4000", Detail: "why", Count: n + 1})
	}
	slog.New(slog.NewTextHandler(view, nil)).Error("disk \x1b[2J full")
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := view.Run(ctx); err != nil {
		t.Fatal(err)
	}
	text := out.text.String()
	contains(t, text, "pi-1 ", "serial 0a, key in tpm\n", "No. Stop. (why) 1000 times\n", "\x1b[7morder po-1: 3 of 4 a\x1b[0m", "disk", "full\"\n")
	if n := strings.Count(text, "No. Stop."); n != 4 { // 1, 10, 100, 1000
		t.Errorf("%d lines of one board", n)
	}
	if strings.Contains(text, "\x1b[2J") || strings.Contains(text, "and more") {
		t.Errorf("%q", text)
	}
}

func TestHeldTerminalHoldsNobodyUp(t *testing.T) {
	out := &paper{release: make(chan struct{})}
	view := NewTerminal(out, func() int { return 0 }, func() string { return "" })
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- view.Run(ctx) }()
	for i := range 10 * terminalQueue {
		view.Show(Line{Tone: Good, ID: fmt.Sprint(i), Count: 1})
	}
	close(out.release)
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.text.String(), "\n"); n < terminalQueue || n > terminalQueue+1 {
		t.Errorf("%d lines", n)
	}
}
