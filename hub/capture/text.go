package capture

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// width is where lists are wrapped.
const width = 110

// WriteText prints the capture for a person: a table of the connections if there are
// several, then each of them step by step.
func (c *Capture) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	c.writeHead(b)
	if len(c.Connections) > 1 {
		fmt.Fprintln(b)
		c.writeTable(b)
	}
	for _, conn := range c.Connections {
		fmt.Fprintln(b)
		conn.write(b)
	}
	return b.Flush()
}

func (c *Capture) writeHead(w io.Writer) {
	fmt.Fprintf(w, "%s: %s", c.File, plural(c.Packets, "packet"))
	if c.Packets > 0 {
		fmt.Fprintf(w, " in %s from %s", c.End.Sub(c.Begin).Round(time.Millisecond), c.Begin.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	if len(c.Connections) == 0 {
		fmt.Fprintf(w, ", no TLS in it (%s without)\n", plural(c.OtherTCP, "TCP connection"))
	} else {
		fmt.Fprintf(w, ", %s", plural(len(c.Connections), "TLS connection"))
		if c.OtherTCP > 0 {
			fmt.Fprintf(w, " (and %s without)", plural(c.OtherTCP, "TCP connection"))
		}
		fmt.Fprintln(w)
	}
	for _, note := range c.Notes {
		fmt.Fprintf(w, "note: %s\n", note)
	}
}

func (c *Capture) writeTable(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NO\tCLIENT\tSERVER\tTLS\tOUTCOME\tUP\tDOWN\tTOOK\tALERT")
	for _, conn := range c.Connections {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", conn.Number, conn.Client, conn.Server, dash(strings.TrimPrefix(conn.Version, "TLS ")),
			conn.Outcome, conn.HandshakeData.Up, conn.HandshakeData.Down, milliseconds(conn.Duration), dash(conn.Alert))
	}
	t.Flush() // to a bufio.Writer, which keeps its error
}

func (conn *Connection) write(w io.Writer) {
	fmt.Fprintf(w, "connection %d: %s → %s at %s\n", conn.Number, conn.Client, conn.Server, conn.Begin.UTC().Format("2006-01-02 15:04:05.000000 MST"))
	writeWrapped(w, "  ", "  ", conn.Verdict, " ")
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	if conn.Version != "" {
		chosen := []string{conn.Version, conn.CipherSuite}
		for _, more := range []string{conn.Group, conn.Protocol} {
			if more != "" {
				chosen = append(chosen, more)
			}
		}
		line("chosen", "%s", strings.Join(chosen, ", "))
	}
	if conn.Device != "" {
		line("client", "%s", conn.Device)
	}
	if conn.HandshakeData != (Traffic{}) {
		line("handshake", "%d bytes up + %d down, %s, %s", conn.HandshakeData.Up, conn.HandshakeData.Down, plural(conn.RoundTrips, "round trip"), milliseconds(conn.Duration))
	}
	total := fmt.Sprintf("%d bytes up + %d down (on the wire %d + %d)", conn.TCPData.Up, conn.TCPData.Down, conn.WireData.Up, conn.WireData.Down)
	if conn.TCPRoundTrip > 0 {
		total += ", TCP round trip " + milliseconds(conn.TCPRoundTrip)
	}
	line("connection", "%s", total)
	if conn.ClosedBy != "" {
		line("closed by", "the %s (%s)", conn.ClosedBy, conn.ClosedAs)
	}
	if conn.Problem != "" {
		line("problem", "%s", conn.Problem)
	}
	fmt.Fprintf(w, "\n  %12s     %6s  WHAT (≈: encrypted, told from order and size)\n", "TIME", "BYTES")
	for _, step := range conn.Steps {
		step.write(w)
	}
}

func (s *Step) write(w io.Writer) {
	arrow, size := "→", "-"
	if s.From == Server {
		arrow = "←"
	}
	if s.Bytes > 0 {
		size = fmt.Sprint(s.Bytes)
	}
	what := s.Name
	if s.Inferred {
		what = "≈ " + what
	}
	if s.Note != "" {
		what += ": " + s.Note
	}
	const indent = "                           " // as wide as what comes before WHAT
	writeWrapped(w, fmt.Sprintf("  %12s  %s  %6s  ", milliseconds(s.Offset), arrow, size), indent+"  ", what, " ")
	longest := 0
	for _, f := range s.Fields {
		longest = max(longest, utf8.RuneCountInString(f.Name))
	}
	for _, f := range s.Fields {
		head := fmt.Sprintf("%s  %-*s  ", indent, longest, f.Name)
		writeWrapped(w, head, strings.Repeat(" ", utf8.RuneCountInString(head)), strings.Join(f.Values, ", "), ", ")
	}
}

// writeWrapped prints text after first, broken at separators and continued after next.
func writeWrapped(w io.Writer, first, next, text, separator string) {
	line, used := first, utf8.RuneCountInString(first)
	empty := true
	for part := range strings.SplitAfterSeq(text, separator) {
		n := utf8.RuneCountInString(part)
		if !empty && used+n > width {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line, used = next, utf8.RuneCountInString(next)
		}
		line += part
		used += n
		empty = false
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d.Microseconds())/1000)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
