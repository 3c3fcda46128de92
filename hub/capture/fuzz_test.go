package capture

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"testing"
	"time"
	"unicode"

	"github.com/gopacket/gopacket/layers"
)

// FuzzTLS feeds a conversation what the two ends of a connection may say: each turn of at most 251 bytes.
func FuzzTLS(f *testing.F) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var client, server []byte
		for _, turn := range goodDialogue(f, version) {
			if turn.end == 0 {
				client = append(client, turn.data...)
			} else {
				server = append(server, turn.data...)
			}
		}
		f.Add(client, server, true)
		f.Add(client, []byte{21, 3, 3, 0, 2, 2, 40}, false)
	}
	f.Add([]byte("GET / HTTP/1.1\r\n"), []byte("HTTP/1.1 400 Bad Request\r\n"), true)
	f.Fuzz(func(t *testing.T, client, server []byte, closed bool) {
		var c conversation
		at := time.Unix(1_800_000_000, 0)
		c.begin = at
		both := [2][]byte{client, server}
		for turn := 0; len(both[0])+len(both[1]) > 0; turn++ {
			end := turn % 2
			n := min(len(both[end]), 251)
			if n > 0 {
				c.feed(end, both[end][:n], at)
				both[end] = both[end][n:]
			}
			at = at.Add(time.Millisecond)
		}
		if closed {
			c.closed(1, true, at)
		}
		conn := c.finish(true)
		hold(t, &Capture{Connections: []*Connection{conn}})
		if got := conn.TCPData; got.Up+got.Down != len(client)+len(server) {
			t.Errorf("%+v bytes of %d", got, len(client)+len(server))
		}
	})
}

// FuzzRead feeds the whole path a file.
func FuzzRead(f *testing.F) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		w := newWire().open().talk(goodDialogue(f, version), 900).close()
		f.Add(w.pcap(f, layers.LinkTypeEthernet, false))
		f.Add(w.pcap(f, layers.LinkTypeLinuxSLL2, false))
	}
	f.Add([]byte{0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 28, 0, 0, 0})
	f.Fuzz(func(t *testing.T, file []byte) {
		c, err := Read(t.Context(), bytes.NewReader(file), "x.pcap")
		if err == nil {
			hold(t, c)
		}
	})
}

// hold checks what is true of every explanation.
func hold(t *testing.T, c *Capture) {
	t.Helper()
	var text bytes.Buffer
	if err := c.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, r := range text.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("the text has the character %q", r)
		}
	}
	if _, err := json.Marshal(c); err != nil {
		t.Fatal(err)
	}
	for _, conn := range c.Connections {
		var sum Traffic
		for _, s := range conn.Steps {
			sum.add(s.From, s.Bytes)
		}
		if sum.Up > conn.TCPData.Up || sum.Down > conn.TCPData.Down || len(conn.Steps) > maxEvents+2 || conn.Verdict == "" || conn.Outcome == "" {
			t.Fatalf("%d steps with %+v bytes, TCP has %+v; %s: %q", len(conn.Steps), sum, conn.TCPData, conn.Outcome, conn.Verdict)
		}
	}
}
