package capture

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

func TestEveryLinkTypeGivesTheSameExplanation(t *testing.T) {
	four := newWire().open().talk(goodDialogue(t, tls.VersionTLS12), 500).close()
	six := newWire()
	six.addresses = [2]netip.AddrPort{netip.MustParseAddrPort("[2001:db8::7]:40000"), netip.MustParseAddrPort("[2001:db8::1]:8883")}
	six.open().talk(goodDialogue(t, tls.VersionTLS12), 500).close()
	for name, w := range map[string]*wire{"IPv4": four, "IPv6": six} {
		want := one(t, w.explain(t))
		if want.Outcome != Full || want.Device != "spiffe://fleet.example/device/pi-1" {
			t.Fatalf("%s: %+v", name, want)
		}
		for _, link := range []layers.LinkType{layers.LinkTypeNull, layers.LinkTypeLoop, layers.LinkTypeRaw, 12, 14, layers.LinkTypeIPv4, layers.LinkTypeIPv6,
			layers.LinkTypeLinuxSLL, layers.LinkTypeLinuxSLL2} {
			if got := one(t, explainFile(t, w.pcap(t, link, false))); explanation(got) != explanation(want) {
				t.Errorf("%s over %s: %s", name, link, explanation(got))
			}
		}
		if got := one(t, explainFile(t, w.pcap(t, layers.LinkTypeEthernet, true))); explanation(got) != explanation(want) {
			t.Errorf("%s over a VLAN: %s", name, explanation(got))
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Write(w.pcap(t, layers.LinkTypeRaw, false))
		z.Close()
		if got := one(t, explainFile(t, packed.Bytes())); explanation(got) != explanation(want) {
			t.Errorf("%s packed with gzip: %s", name, explanation(got))
		}
	}
	c := explainFile(t, four.pcap(t, layers.LinkTypeIEEE802_11, false))
	if len(c.Connections) != 0 || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "link type") {
		t.Errorf("a link type that isn't known: %+v", c)
	}
}

func TestAPcapngFileMayMixLinkTypes(t *testing.T) {
	w := newWire().open().talk(goodDialogue(t, tls.VersionTLS13), 500).close()
	var file bytes.Buffer
	out, err := pcapgo.NewNgWriter(&file, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := out.AddInterface(pcapgo.NgInterface{LinkType: layers.LinkTypeRaw})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range w.packets {
		link, index := layers.LinkTypeEthernet, 0
		if i%2 == 1 {
			link, index = layers.LinkTypeRaw, raw
		}
		data := w.bytes(t, s, link, false)
		if err := out.WritePacket(gopacket.CaptureInfo{Timestamp: w.at, CaptureLength: len(data), Length: len(data), InterfaceIndex: index}, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	if conn := one(t, explainFile(t, file.Bytes())); conn.Outcome != Full {
		t.Errorf("%s", explanation(conn))
	}
}

func TestHowSegmentsArriveChangesNothing(t *testing.T) {
	flights := goodDialogue(t, tls.VersionTLS12)
	want := stepNames(one(t, newWire().open().talk(flights, 1400).close().explain(t)))
	for name, change := range map[string]func(*wire){
		"byte by byte": func(w *wire) { w.open().talk(flights, 1).close() },
		"swapped": func(w *wire) {
			w.open().talk(flights, 100)
			for i := 4; i+1 < len(w.packets); i += 2 {
				if w.packets[i].end == w.packets[i+1].end {
					w.packets[i], w.packets[i+1] = w.packets[i+1], w.packets[i]
				}
			}
			w.close()
		},
		"all twice": func(w *wire) {
			w.open().talk(flights, 100).close()
			var twice []segmentOf
			for _, s := range w.packets {
				twice = append(twice, s, s)
			}
			w.packets = twice
		},
		"without SYN": func(w *wire) { w.talk(flights, 300).close() },
	} {
		w := newWire()
		change(w)
		conn := one(t, w.explain(t))
		if got := stepNames(conn); !slices.Equal(got, want) || conn.Client != "192.0.2.7:40000" {
			t.Errorf("%s: client %s, steps %q; want %q", name, conn.Client, got, want)
		}
	}
}

func TestAMissingPacketIsSaidAndStaysWithItsConnection(t *testing.T) {
	flights := goodDialogue(t, tls.VersionTLS12)
	w := newWire().open().talk(flights, 400).close()
	lost := slices.IndexFunc(w.packets, func(s segmentOf) bool { return s.end == 1 && len(s.data) > 0 }) + 1
	w.packets = slices.Delete(w.packets, lost, lost+1)
	conn := one(t, w.explain(t))
	if conn.Outcome != Unreadable || !strings.Contains(conn.Problem, "truncated capture: 400 bytes from the server are missing") {
		t.Errorf("%s: %s", conn.Outcome, conn.Problem)
	}

	cut := newWire().open().talk(flights, 400).close()
	for i := range cut.packets {
		cut.packets[i].capture = 96
	}
	c := cut.explain(t)
	if conn := one(t, c); conn.Outcome != Unreadable || !strings.Contains(strings.Join(c.Notes, " "), "record whole packets") {
		t.Errorf("%s, notes %q", conn.Verdict, c.Notes)
	}
}

func TestAFileThatEndsAnywhereIsReadUpToThere(t *testing.T) {
	file := newWire().open().talk(goodDialogue(t, tls.VersionTLS13), 700).close().pcap(t, layers.LinkTypeRaw, false)
	const header = 24
	for n := header; n < len(file); n += 7 {
		c, err := Read(t.Context(), bytes.NewReader(file[:n]), "x.pcap")
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if c.Packets > 0 && len(c.Connections) != 1 {
			t.Fatalf("%d bytes: %d connections", n, len(c.Connections))
		}
	}
}

func TestWhatIsNoHandshakeIsExplainedToo(t *testing.T) {
	flights := goodDialogue(t, tls.VersionTLS13)
	alert := []byte{21, 3, 1, 0, 2, 2, 70}
	for _, test := range []struct {
		name    string
		wire    *wire
		outcome Outcome
		says    string
	}{
		{"plain MQTT", newWire().open().talk([]flight{{0, connect}, {1, alert}}, 100).close(), NotTLS, "plain MQTT: switch TLS on"},
		{"plain HTTP", newWire().open().talk([]flight{{0, []byte("GET / HTTP/1.1\r\n\r\n")}}, 100).close(), NotTLS, "plain HTTP: dial https://"},
		{"load balancer", newWire().open().talk([]flight{{0, []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")}}, 100).close(), NotTLS, "PROXY protocol"},
		{"a server without TLS", newWire().open().talk([]flight{flights[0], {1, []byte("HTTP/1.1 400 Bad Request\r\n")}}, 1400).close(), NotTLS, "The server doesn't answer in TLS, but with plain HTTP"},
		{"nobody listens", newWire().send(0, "S", nil).send(1, "RA", nil), Unreachable, "Nothing listens on this port"},
		{"nobody answers", newWire().send(0, "S", nil), Unreachable, "Nobody answered the SYN"},
		{"nobody speaks", newWire().open().close(), Closed, "Nobody said anything"},
		{"begun too late", newWire().talk(flights[3:], 1400).close(), Midstream, "The capture began after the handshake"},
		{"an overloaded hub", newWire().open().talk(flights[:1], 1400).send(1, "R", nil), Closed, "a hub does so when too many connect at once"},
		{"a slow client", newWire().open().talk(flights[:2], 1400).send(1, "FA", nil), Closed, "too slow for the handshake's deadline"},
		{"an impatient client", newWire().open().talk(flights[:1], 1400).send(0, "FA", nil), Closed, "its own timeout, or was stopped; the server was to answer"},
		{"a black hole", newWire().open().talk(flights[:2], 1400).send(0, "FA", nil), Closed, "look at the MTU of the link"},
		{"stopped too early", newWire().open().talk(flights[:1], 1400), Unfinished, "The capture ends before the handshake does; the server was to answer"},
		{"a nonsense record", newWire().open().talk([]flight{flights[0], {1, []byte{22, 3, 3, 0xff, 0xff, 1}}}, 1400).close(), Unreadable, "which is no TLS"},
		{"a nonsense message", newWire().open().talk([]flight{{0, []byte{22, 3, 1, 0, 4, 1, 0xff, 0, 0}}}, 1400).close(), Unreadable, "claims to be of 16711680 bytes"},
		{"a nonsense hello", newWire().open().talk([]flight{{0, []byte{22, 3, 1, 0, 6, 1, 0, 0, 2, 3, 3}}}, 1400).close(), Unreadable, "it is cut off before its extensions"},
	} {
		conn := one(t, test.wire.explain(t))
		if conn.Outcome != test.outcome || !strings.Contains(conn.Verdict, test.says) {
			t.Errorf("%s: %s, %s; want %s, %q", test.name, conn.Outcome, conn.Verdict, test.outcome, test.says)
		}
	}
	quiet := newWire().open().talk([]flight{{0, []byte("SSH-2.0-x\r\n")}}, 100).close()
	quiet.addresses[1] = netip.MustParseAddrPort("198.51.100.1:22")
	c := quiet.explain(t)
	var text bytes.Buffer
	if err := c.WriteText(&text); err != nil || len(c.Connections) != 0 || c.OtherTCP != 1 || !strings.Contains(text.String(), "no TLS in it (1 TCP connection without)") {
		t.Errorf("a connection of no interest: %v, %+v, %s", err, c, &text)
	}
}

func TestAPortUsedAgainIsAnotherConnection(t *testing.T) {
	w := newWire().open().talk(goodDialogue(t, tls.VersionTLS12), 1400).send(1, "R", nil)
	w.next = [2]uint32{77, 88}
	w.open().talk(goodDialogue(t, tls.VersionTLS13), 1400).close()
	c := w.explain(t)
	if len(c.Connections) != 2 || c.Connections[0].Version != "TLS 1.2" || c.Connections[1].Version != "TLS 1.3" || c.Connections[1].Outcome != Full {
		t.Errorf("%d connections", len(c.Connections))
	}
}

func TestALongConnectionKeepsItsBeginningAndItsEnd(t *testing.T) {
	flights := goodDialogue(t, tls.VersionTLS13)
	goodbye := flights[len(flights)-1]
	const records = 3000
	for i := range records {
		flights = append(flights[:len(flights)-1], flight{i % 2, append([]byte{23, 3, 3, 0, 100}, make([]byte, 100)...)}, goodbye)
	}
	conn := one(t, newWire().open().talk(flights, 1400).close().explain(t))
	var sum Traffic
	for _, s := range conn.Steps {
		sum.add(s.From, s.Bytes)
	}
	if conn.Outcome != Full || len(conn.Steps) > maxEvents+2 || sum != conn.TCPData || sum.Up < records*50 {
		t.Errorf("%s, %d steps of %+v bytes; TCP has %+v", conn.Outcome, len(conn.Steps), sum, conn.TCPData)
	}
	if said := explanation(conn); !strings.Contains(said, "further records, not shown one by one") || !strings.Contains(said, "close_notify") {
		t.Errorf("the middle isn't left out, or the end is: %s", said)
	}
}

func TestTooManyConnectionsAreSaid(t *testing.T) {
	w := newWire()
	var file bytes.Buffer
	out := pcapgo.NewWriter(&file)
	if err := out.WriteFileHeader(65535, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	for i := range maxConnections + 5 {
		w.addresses[0] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1000)
		w.packets = []segmentOf{{end: 0, flags: "S", seq: 1}}
		data := w.bytes(t, w.packets[0], layers.LinkTypeRaw, false)
		if err := out.WritePacket(gopacket.CaptureInfo{Timestamp: w.at, CaptureLength: len(data), Length: len(data)}, data); err != nil {
			t.Fatal(err)
		}
	}
	c := explainFile(t, file.Bytes())
	if len(c.Connections) != maxConnections || len(c.Notes) != 1 || !strings.HasPrefix(c.Notes[0], "5 packets were left out") {
		t.Errorf("%d connections, notes %q", len(c.Connections), c.Notes)
	}
}

func TestAFileThatIsNoCaptureIsNamed(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	huge := write("huge.pcap", nil)
	if err := os.Truncate(huge, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		write("notes.txt", []byte("These are notes.\n")):      "notes.txt is not a capture (pcap or pcapng): it begins with the bytes 54 68 65 73",
		write("empty.pcap", nil):                              "empty.pcap is not a capture (pcap or pcapng): it has not even four bytes",
		write("packed.gz", []byte{0x1f, 0x8b, 1}):             "it begins like a gzip file and isn't one",
		write("head.pcap", []byte{0xd4, 0xc3, 0xb2, 0xa1, 2}): "its header can't be read",
		dir:  "is a folder",
		huge: "is larger than 512 MiB: cut the hub's connections out of it first",
	} {
		if _, err := ReadFile(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
	}
	if _, err := ReadFile(t.Context(), filepath.Join(dir, "gone.pcap")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that isn't there: %v", err)
	}
}

func TestAPacketThatClaimsToBeHugeIsNotBelieved(t *testing.T) {
	good := newWire().open().talk(goodDialogue(t, tls.VersionTLS13), 1400).close().pcap(t, layers.LinkTypeRaw, false)
	file := append(good, make([]byte, 16)...)
	binary.LittleEndian.PutUint32(file[16:], 0xffffffff) // the snap length, which gopacket believes
	binary.LittleEndian.PutUint32(file[len(file)-8:], 0x7fffffff)
	binary.LittleEndian.PutUint32(file[len(file)-4:], 0x7fffffff)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.Copy(z, io.MultiReader(bytes.NewReader(file), io.LimitReader(zeros{}, 3*maxPacket)))
	z.Close()
	c := explainFile(t, packed.Bytes())
	if one(t, c).Outcome != Full || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "a packet of more than 16 MiB") {
		t.Errorf("notes %q", c.Notes)
	}
	b := &budget{r: zeros{}, total: 10, packet: 100}
	if n, err := io.Copy(io.Discard, b); n != 10 || !errors.Is(err, errTooLarge) {
		t.Errorf("a budget of 10 bytes: %d, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestNamesFromTheWireCannotSteerATerminal(t *testing.T) {
	hello := clientHelloWith(t, "\x1b]0;owned\x07\u202e.example")
	conn := one(t, newWire().open().talk([]flight{{0, hello}}, 1400).close().explain(t))
	if conn.ServerName != "\ufffd]0;owned\ufffd\ufffd.example" {
		t.Errorf("server name %q", conn.ServerName)
	}
}

// clientHelloWith returns a record with the least of a ClientHello, for that name.
func clientHelloWith(t *testing.T, name string) []byte {
	t.Helper()
	sni := binary.BigEndian.AppendUint16(nil, uint16(len(name)+3))
	sni = append(sni, 0)
	sni = append(binary.BigEndian.AppendUint16(sni, uint16(len(name))), name...)
	extension := append(binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(sni))), sni...)
	body := append([]byte{3, 3}, make([]byte, 33)...)
	body = append(body, 0, 2, 0xc0, 0x2b, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(extension))), extension...)
	message := append([]byte{1, 0, 0, byte(len(body))}, body...)
	return append([]byte{22, 3, 1, 0, byte(len(message))}, message...)
}

func TestEveryAlertHasANameAndAMeaning(t *testing.T) {
	hello := clientHelloWith(t, "hub.example")
	for code := range 256 {
		for _, from := range []int{0, 1} {
			conn := one(t, newWire().open().talk([]flight{{0, hello}, {from, []byte{21, 3, 3, 0, 2, 2, byte(code)}}}, 1400).close().explain(t))
			if conn.Outcome != Refused || !strings.Contains(conn.Alert, fmt.Sprint(code)) || strings.HasSuffix(conn.Verdict, ": .") {
				t.Errorf("alert %d from %d: %s, %q, %s", code, from, conn.Outcome, conn.Alert, conn.Verdict)
			}
		}
	}
}

func TestATimeBeyondTheCalendarIsNotBelieved(t *testing.T) {
	w := newWire().open()
	tracker := newTracker("x.pcapng")
	for i, s := range w.packets {
		at := w.at
		if i == 1 {
			at = time.Unix(1<<50, 0)
		}
		data := w.bytes(t, s, layers.LinkTypeRaw, false)
		tracker.packet(layers.LinkTypeRaw, data, gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(data), Length: len(data)})
	}
	c := tracker.finish()
	if _, err := json.Marshal(c); err != nil || !c.End.Equal(w.at) {
		t.Errorf("%v; it ends %v", err, c.End)
	}
}

func TestTimesAreThoseOfTheRecordsLastPacket(t *testing.T) {
	flights := goodDialogue(t, tls.VersionTLS13)
	conn := one(t, newWire().open().talk(flights, 100).close().explain(t))
	hello := slices.IndexFunc(conn.Steps, func(s Step) bool { return s.Name == "ClientHello" })
	segments := (len(flights[0].data) + 99) / 100
	if want := time.Duration(2+segments) * time.Millisecond; conn.Steps[hello].Offset != want {
		t.Errorf("the ClientHello is at %v; want %v", conn.Steps[hello].Offset, want)
	}
	if conn.TCPRoundTrip != time.Millisecond || conn.RoundTrips != 1 {
		t.Errorf("TCP round trip %v, round trips %d", conn.TCPRoundTrip, conn.RoundTrips)
	}
}
