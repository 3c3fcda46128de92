package capture

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/fleethub/fleethub/certs/certtest"
)

// flight is what one side said before the other did.
type flight struct {
	end  int // 0: the client
	data []byte
}

// dialogue has a client and a server talk TLS, as the live tests do, and returns what went between them.
func dialogue(t testing.TB, client, server *tls.Config) []flight {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // not net.Pipe: both sides write at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tape := &tape{}
	served := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		conn := tls.Server(&taped{raw, 1, tape}, server)
		defer raw.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err = io.ReadFull(conn, make([]byte, len(connect))); err == nil {
			_, err = conn.Write(connack)
		}
		io.Copy(io.Discard, raw)
		served <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(&taped{raw, 0, tape}, client)
	conn.SetDeadline(time.Now().Add(patience))
	_, err = conn.Write(connect)
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, len(connack)))
	}
	conn.Close()
	if err := errors.Join(err, <-served); err != nil {
		t.Fatal(err)
	}
	return tape.flights
}

type tape struct {
	mu      sync.Mutex // guards flights
	flights []flight
}

// taped is a net.Conn whose writes go on tape.
type taped struct {
	net.Conn
	end  int
	tape *tape
}

func (c *taped) Write(p []byte) (int, error) {
	c.tape.mu.Lock()
	if n := len(c.tape.flights); n > 0 && c.tape.flights[n-1].end == c.end {
		c.tape.flights[n-1].data = append(c.tape.flights[n-1].data, p...)
	} else {
		c.tape.flights = append(c.tape.flights, flight{c.end, bytes.Clone(p)})
	}
	c.tape.mu.Unlock()
	return c.Conn.Write(p)
}

// goodDialogue is a full TLS 1.2 or 1.3 connect of pi-1.
func goodDialogue(t testing.TB, version uint16) []flight {
	t.Helper()
	fleet := certtest.New(t)
	p := &pki{fleet: fleet, server: fleet.Server("hub.fleet.example")}
	return dialogue(t, p.device(version, sessions), p.hub(anybody))
}

// segmentOf is a packet to be: TCP between the two ends of a wire.
type segmentOf struct {
	end     int
	flags   string // of S A F R
	data    []byte
	seq     uint32 // filled in by wire
	capture int    // bytes of the packet that the capture keeps; 0 is all
}

// wire makes packets of TCP segments.
type wire struct {
	addresses [2]netip.AddrPort
	next      [2]uint32
	at        time.Time
	packets   []segmentOf
}

func newWire() *wire {
	return &wire{
		addresses: [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:40000"), netip.MustParseAddrPort("198.51.100.1:8883")},
		next:      [2]uint32{0xffffff00, 0x12345678}, // the client's wraps around
		at:        time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
	}
}

func (w *wire) send(end int, flags string, data []byte) *wire {
	s := segmentOf{end: end, flags: flags, data: data, seq: w.next[end]}
	w.next[end] += uint32(len(data))
	if bytes.ContainsAny([]byte(flags), "SF") {
		w.next[end]++
	}
	w.packets = append(w.packets, s)
	return w
}

func (w *wire) open() *wire { return w.send(0, "S", nil).send(1, "SA", nil).send(0, "A", nil) }

func (w *wire) close() *wire { return w.send(0, "FA", nil).send(1, "FA", nil).send(0, "A", nil) }

// talk sends flights, cut in segments of that size.
func (w *wire) talk(flights []flight, size int) *wire {
	for _, f := range flights {
		for data := f.data; len(data) > 0; {
			n := min(size, len(data))
			w.send(f.end, "A", data[:n])
			data = data[n:]
		}
	}
	return w
}

// bytes returns a segment as a packet of a link type.
func (w *wire) bytes(t testing.TB, s segmentOf, link layers.LinkType, vlan bool) []byte {
	t.Helper()
	from, to := w.addresses[s.end], w.addresses[1-s.end]
	tcp := &layers.TCP{SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: s.seq, Window: 65535}
	for _, f := range s.flags {
		switch f {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
			tcp.Ack = w.packets[0].seq + 1
		case 'F':
			tcp.FIN = true
		case 'R':
			tcp.RST = true
		}
	}
	var ip gopacket.SerializableLayer
	family, ether := uint32(2), layers.EthernetTypeIPv4
	if from.Addr().Is4() {
		ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		tcp.SetNetworkLayerForChecksum(ip4)
		ip = ip4
	} else {
		ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
		tcp.SetNetworkLayerForChecksum(ip6)
		ip, family, ether = ip6, 30, layers.EthernetTypeIPv6
	}
	stack := []gopacket.SerializableLayer{ip, tcp, gopacket.Payload(s.data)}
	if link == layers.LinkTypeEthernet {
		eth := &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: ether}
		if vlan {
			eth.EthernetType = layers.EthernetTypeDot1Q
			stack = append([]gopacket.SerializableLayer{&layers.Dot1Q{VLANIdentifier: 7, Type: ether}}, stack...)
		}
		stack = append([]gopacket.SerializableLayer{eth}, stack...)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	switch link {
	case layers.LinkTypeNull:
		return append(binary.LittleEndian.AppendUint32(nil, family), b.Bytes()...)
	case layers.LinkTypeLoop:
		return append(binary.BigEndian.AppendUint32(nil, family), b.Bytes()...)
	case layers.LinkTypeLinuxSLL:
		return append(binary.BigEndian.AppendUint16(make([]byte, 14), uint16(ether)), b.Bytes()...)
	case layers.LinkTypeLinuxSLL2:
		return append(append(binary.BigEndian.AppendUint16(nil, uint16(ether)), make([]byte, 18)...), b.Bytes()...)
	}
	return b.Bytes()
}

// pcap returns the packets as a file, a millisecond apart.
func (w *wire) pcap(t testing.TB, link layers.LinkType, vlan bool) []byte {
	t.Helper()
	var file bytes.Buffer
	out := pcapgo.NewWriter(&file)
	if err := out.WriteFileHeader(65535, link); err != nil {
		t.Fatal(err)
	}
	for i, s := range w.packets {
		data := w.bytes(t, s, link, vlan)
		kept := len(data)
		if s.capture > 0 {
			kept = min(kept, s.capture)
		}
		info := gopacket.CaptureInfo{Timestamp: w.at.Add(time.Duration(i) * time.Millisecond), CaptureLength: kept, Length: len(data)}
		if err := out.WritePacket(info, data[:kept]); err != nil {
			t.Fatal(err)
		}
	}
	return file.Bytes()
}

// explain reads the packets as an Ethernet capture.
func (w *wire) explain(t testing.TB) *Capture {
	t.Helper()
	return explainFile(t, w.pcap(t, layers.LinkTypeEthernet, false))
}

func explainFile(t testing.TB, file []byte) *Capture {
	t.Helper()
	c, err := Read(t.Context(), bytes.NewReader(file), "x.pcap")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// one returns the only connection of a capture.
func one(t testing.TB, c *Capture) *Connection {
	t.Helper()
	if len(c.Connections) != 1 {
		t.Fatalf("%d connections, notes %q; want one", len(c.Connections), c.Notes)
	}
	return c.Connections[0]
}
