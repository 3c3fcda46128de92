package capture

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/reassembly"
)

// tracker sorts packets into TCP connections and has gopacket's assembler put their bytes
// in order.
type tracker struct {
	capture   *Capture
	decoder   *decoder
	assembler *reassembly.Assembler
	current   map[ends]*stream // the latest connection between two endpoints
	streams   []*stream        // all, in order of time

	beyond    int // packets of connections beyond maxConnections
	short     int // packets that the capture cut
	fragments int
	unknown   map[layers.LinkType]int
}

// ends are the two endpoints of a connection, the lesser first.
type ends [2]netip.AddrPort

func newTracker(name string) *tracker {
	t := &tracker{
		capture: &Capture{File: name, Connections: []*Connection{}, Notes: []string{}},
		decoder: newDecoder(),
		current: map[ends]*stream{},
		unknown: map[layers.LinkType]int{},
	}
	t.assembler = reassembly.NewAssembler(reassembly.NewStreamPool(t))
	t.assembler.MaxBufferedPagesPerConnection = maxPages
	t.assembler.MaxBufferedPagesTotal = maxTotalPages
	return t
}

func (t *tracker) note(format string, args ...any) {
	t.capture.Notes = append(t.capture.Notes, fmt.Sprintf(format, args...))
}

// packet takes the next packet of the file.
func (t *tracker) packet(link layers.LinkType, data []byte, info gopacket.CaptureInfo) {
	c := t.capture
	if year := info.Timestamp.Year(); year < 1 || year > 9999 {
		info.Timestamp = c.End // pcapng can say any; JSON can't
	}
	if c.Packets++; c.Packets == 1 {
		c.Begin, c.End = info.Timestamp, info.Timestamp
	}
	if info.Timestamp.After(c.End) {
		c.End = info.Timestamp
	}
	segment, verdict := t.decoder.decode(link, data)
	switch verdict {
	case unknownLink:
		if len(t.unknown) < maxItems {
			t.unknown[link]++
		}
		return
	case fragment:
		t.fragments++
		return
	case notTCP:
		return
	}
	if info.CaptureLength < info.Length {
		t.short++
	}
	s, from := t.stream(segment)
	if s == nil {
		t.beyond++
		return
	}
	s.packet(segment, from, info.Timestamp, func() {
		t.assembler.AssembleWithContext(s.flow(from), segment.tcp, &moment{stream: s, from: from, info: info})
	})
}

// stream returns the connection a segment belongs to and which end sent it; nil if that
// would be one too many.
func (t *tracker) stream(g segment) (*stream, int) {
	key, from := ends{g.source, g.destination}, 0
	if g.destination.Compare(g.source) < 0 {
		key, from = ends{g.destination, g.source}, 1
	}
	s := t.current[key]
	if s == nil || g.tcp.SYN && !g.tcp.ACK && s.reusedBy(g.tcp.Seq) {
		if len(t.streams) >= maxConnections {
			return nil, 0
		}
		s = newStream(uint32(len(t.streams)), key, from, g.tcp)
		t.streams = append(t.streams, s)
		t.current[key] = s
	}
	return s, from
}

// moment is what a packet's bytes carry through the assembler.
type moment struct {
	stream *stream
	from   int
	info   gopacket.CaptureInfo
}

// GetCaptureInfo makes moment a reassembly.AssemblerContext.
func (m *moment) GetCaptureInfo() gopacket.CaptureInfo { return m.info }

// New makes tracker a reassembly.StreamFactory. The assembler knows a connection by the
// number that flow gives it, so that a port used again is another connection.
func (t *tracker) New(_, _ gopacket.Flow, _ *layers.TCP, ac reassembly.AssemblerContext) reassembly.Stream {
	m := ac.(*moment)
	m.stream.first = m.from
	return m.stream
}

func (t *tracker) finish() *Capture {
	t.assembler.FlushAll()
	c := t.capture
	slices.SortStableFunc(t.streams, func(a, b *stream) int { return a.begin.Compare(b.begin) })
	for _, s := range t.streams {
		if conn := s.finish(); conn != nil {
			conn.Number = len(c.Connections) + 1
			c.Connections = append(c.Connections, conn)
		} else {
			c.OtherTCP++
		}
	}
	if t.short > 0 {
		t.note("%d packets were cut by the capture: record whole packets, with -s 0", t.short)
	}
	if t.fragments > 0 {
		t.note("%d IP fragments were left out: they are not put together here", t.fragments)
	}
	if t.beyond > 0 {
		t.note("%d packets were left out that belong to more than %d TCP connections: cut the capture in pieces, with `editcap -c 100000`", t.beyond, maxConnections)
	}
	for _, link := range slices.SortedFunc(keys(t.unknown), cmp.Compare) {
		t.note("%d packets were left out: their link type %s (%d) is not Ethernet, loopback, raw IP or Linux cooked", t.unknown[link], text(link.String()), link)
	}
	return c
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// stream is one TCP connection: what TCP itself did, and what its bytes say.
type stream struct {
	number   uint32
	ends     ends
	begin    time.Time
	first    int // the end whose bytes the assembler calls client to server
	syn      [2]bool
	opened   bool   // a SYN, or the answer to it, was seen
	sequence uint32 // of the SYN
	complete bool   // the assembler is done with it
	talk     conversation
	wire     [2]int
}

func newStream(number uint32, e ends, from int, tcp *layers.TCP) *stream {
	s := &stream{number: number, ends: e}
	s.talk.client = from
	switch other := e[1-from].Port(); {
	case tcp.SYN && tcp.ACK:
		s.opened, s.sequence = true, tcp.Ack-1
		s.talk.client = 1 - from
	case tcp.SYN:
		s.opened, s.sequence = true, tcp.Seq
	case (isTLSPort(e[from].Port()) || !isTLSPort(other) && e[from].Port() < other):
		s.talk.client = 1 - from // until a ClientHello tells
	}
	return s
}

// reusedBy reports whether a SYN with that sequence number begins another connection
// between the same endpoints.
func (s *stream) reusedBy(sequence uint32) bool {
	return !s.opened || sequence != s.sequence
}

// flow names a direction of the connection to the assembler.
func (s *stream) flow(from int) gopacket.Flow {
	var name [2][5]byte
	for end := range name {
		binary.BigEndian.PutUint32(name[end][:], s.number)
		name[end][4] = byte(end)
	}
	return gopacket.NewFlow(gopacket.EndpointInvalid, name[from][:], name[1-from][:])
}

// packet takes a segment that the end from sent. assemble hands its bytes to the
// assembler, and comes between what TCP did before and what it did after them.
func (s *stream) packet(g segment, from int, at time.Time, assemble func()) {
	if s.begin.IsZero() {
		s.begin = at
		s.talk.begin = at
	}
	s.wire[from] += g.length
	tcp := g.tcp
	if tcp.SYN {
		s.talk.opened(from, tcp.ACK, s.syn[from], at)
		s.syn[from] = true
	}
	// A keep-alive probe repeats a byte; as the first packet seen it would begin the stream with it.
	probe := !s.syn[from] && len(tcp.Payload) == 1
	if !s.complete && !probe {
		assemble()
	}
	if tcp.RST || tcp.FIN {
		s.talk.closed(from, tcp.RST, at)
	}
}

// Accept makes stream a reassembly.Stream. A stream whose SYN the capture missed begins
// with the first bytes there are.
func (s *stream) Accept(tcp *layers.TCP, _ gopacket.CaptureInfo, _ reassembly.TCPFlowDirection, next reassembly.Sequence, start *bool, ac reassembly.AssemblerContext) bool {
	if next == -1 && !tcp.SYN && !s.syn[ac.(*moment).from] && len(tcp.Payload) > 0 {
		*start = true
	}
	return true
}

// ReassembledSG takes bytes that are in order.
func (s *stream) ReassembledSG(sg reassembly.ScatterGather, ac reassembly.AssemblerContext) {
	direction, _, _, skipped := sg.Info()
	end := s.first
	if direction == reassembly.TCPDirServerToClient {
		end = 1 - s.first
	}
	if skipped > 0 || skipped < -1 {
		s.talk.lost(end, skipped)
	}
	n, _ := sg.Lengths()
	if n == 0 {
		return
	}
	s.talk.feed(end, sg.Fetch(n), ac.GetCaptureInfo().Timestamp)
}

// ReassemblyComplete has the assembler forget the connection.
func (s *stream) ReassemblyComplete(reassembly.AssemblerContext) bool {
	s.complete = true
	return true
}

// finish returns what there is to say; nil if the connection has nothing to do with TLS.
func (s *stream) finish() *Connection {
	client := s.talk.client
	conn := s.talk.finish(isTLSPort(s.ends[1-client].Port()))
	if conn == nil {
		return nil
	}
	client = s.talk.client
	conn.Client, conn.Server = address(s.ends[client]), address(s.ends[1-client])
	conn.Begin = s.begin
	conn.WireData = Traffic{Up: s.wire[client], Down: s.wire[1-client]}
	return conn
}
