package screen

import (
	"context"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// terminalQueue is how many lines wait for a terminal that is held with Ctrl-S.
const terminalQueue = 256

// Terminal shows a line a board, and below them one that says how far the order is. Run
// it once.
type Terminal struct {
	out    io.Writer
	width  func() int
	status func() string
	zone   *time.Location
	lines  chan string
}

// NewTerminal returns a view on a terminal. width returns its columns at the moment, and
// status the last line's text.
func NewTerminal(out io.Writer, width func() int, status func() string) *Terminal {
	return &Terminal{out: out, width: width, status: status, zone: time.Local, lines: make(chan string, terminalQueue)}
}

// Show adds a line. It doesn't block: while the terminal is held, lines beyond those that
// wait are lost, and a board that is refused again and again gets its line at 1, 10, 100 … times.
func (t *Terminal) Show(l Line) {
	for n := l.Count; n > 1; n /= 10 {
		if n%10 != 0 {
			return
		}
	}
	t.add(t.line(l))
}

// Write adds each line of a log, for slog's handlers.
func (t *Terminal) Write(p []byte) (int, error) {
	t.add(printable(string(p[:max(0, len(p)-1)])))
	return len(p), nil
}

func (t *Terminal) add(line string) {
	select {
	case t.lines <- line:
	default:
	}
}

// The colours are told apart by their words, too: OK, wait, STOP.
func (t *Terminal) line(l Line) string {
	mark := map[Tone]string{Good: "\x1b[1;32m OK \x1b[0m", Wait: "\x1b[1;33mwait\x1b[0m", Bad: "\x1b[1;31mSTOP\x1b[0m"}[l.Tone]
	who := l.ID
	if who == "" {
		who = host(l.Address)
	}
	text := fmt.Sprintf("%s %s  %-16s ", l.At.In(t.zone).Format(time.TimeOnly), mark, printable(who))
	if l.Tone == Good {
		text += "serial " + printable(l.Serial)
		if l.Protection != "" {
			text += ", key in " + printable(l.Protection)
		}
		if l.Label != "" && l.Label != printing {
			text += ", " + l.Label
		}
		return text
	}
	text += l.Headline + ". " + l.Next
	if l.Detail != "" {
		text += " (" + l.Detail + ")"
	}
	if l.Count > 1 {
		text += fmt.Sprintf(" %d times", l.Count)
	}
	return text
}

// Run writes until ctx ends, and then what waits.
func (t *Terminal) Run(ctx context.Context) error {
	refresh := time.NewTicker(time.Second) // for orders that others import and close
	defer refresh.Stop()
	for {
		if err := t.footer(); err != nil {
			return fmt.Errorf("write to the terminal: %w", err)
		}
		select {
		case line := <-t.lines:
			if _, err := io.WriteString(t.out, "\r\x1b[K"+line+"\n"); err != nil {
				return fmt.Errorf("write to the terminal: %w", err)
			}
		case <-refresh.C:
		case <-ctx.Done():
			for {
				select {
				case line := <-t.lines:
					if _, err := io.WriteString(t.out, "\r\x1b[K"+line+"\n"); err != nil {
						return fmt.Errorf("write to the terminal: %w", err)
					}
				default:
					_, err := io.WriteString(t.out, "\r\x1b[K")
					return err
				}
			}
		}
	}
}

// footer writes the last line anew, cut so that it is one.
func (t *Terminal) footer() error {
	text := printable(t.status())
	if room := t.width() - 1; room > 0 && utf8.RuneCountInString(text) > room {
		text = string([]rune(text)[:room])
	}
	_, err := fmt.Fprintf(t.out, "\r\x1b[K\x1b[7m%s\x1b[0m", text)
	return err
}
