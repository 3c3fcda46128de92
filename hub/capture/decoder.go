package capture

import (
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// segment is a TCP segment and whom it is between.
type segment struct {
	source, destination netip.AddrPort
	length              int // of the IP packet
	tcp                 *layers.TCP
}

// verdict says what a packet turned out to be.
type verdict int

const (
	isTCP verdict = iota
	notTCP
	fragment
	unknownLink
)

// decoder finds the TCP segment in a packet. It reuses its memory from packet to packet.
type decoder struct {
	parsers map[gopacket.LayerType]*gopacket.DecodingLayerParser
	decoded []gopacket.LayerType
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
}

func newDecoder() *decoder {
	d := &decoder{parsers: map[gopacket.LayerType]*gopacket.DecodingLayerParser{}}
	for _, first := range []gopacket.LayerType{
		layers.LayerTypeLoopback, layers.LayerTypeEthernet, layers.LayerTypeLinuxSLL, layers.LayerTypeLinuxSLL2,
		layers.LayerTypeIPv4, layers.LayerTypeIPv6,
	} {
		p := gopacket.NewDecodingLayerParser(first, &layers.Loopback{}, &layers.Ethernet{}, &layers.Dot1Q{}, &layers.LinuxSLL{},
			&layers.LinuxSLL2{}, &d.ip4, &d.ip6, &layers.IPv6ExtensionSkipper{}, &d.tcp)
		p.IgnoreUnsupported = true // UDP, ARP and what TCP carries
		d.parsers[first] = p
	}
	return d
}

// firstLayer returns what a packet of that link type begins with; false if it isn't known
// here. Raw IP says its version in its first four bits.
func firstLayer(link layers.LinkType, data []byte) (gopacket.LayerType, bool) {
	const rawBSD, rawOpenBSD = 12, 14
	switch link {
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		return layers.LayerTypeLoopback, true
	case layers.LinkTypeEthernet:
		return layers.LayerTypeEthernet, true
	case layers.LinkTypeLinuxSLL:
		return layers.LayerTypeLinuxSLL, true
	case layers.LinkTypeLinuxSLL2:
		return layers.LayerTypeLinuxSLL2, true
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, rawBSD, rawOpenBSD:
		if len(data) > 0 && data[0]>>4 == 6 {
			return layers.LayerTypeIPv6, true
		}
		return layers.LayerTypeIPv4, true
	}
	return 0, false
}

// decode returns the segment in a packet, valid until the next call.
func (d *decoder) decode(link layers.LinkType, data []byte) (segment, verdict) {
	first, ok := firstLayer(link, data)
	if !ok {
		return segment{}, unknownLink
	}
	// Its error is about what came last; what was decoded before counts. It recovers from panics.
	d.decoded = d.decoded[:0]
	_ = d.parsers[first].DecodeLayers(data, &d.decoded)
	var g segment
	var source, destination net.IP
	for _, layer := range d.decoded {
		switch layer {
		case layers.LayerTypeIPv4:
			source, destination = d.ip4.SrcIP, d.ip4.DstIP
			g.length = max(int(d.ip4.Length), len(d.ip4.Contents)+len(d.ip4.Payload))
			if d.ip4.Protocol != layers.IPProtocolTCP {
				return segment{}, notTCP
			}
			if d.ip4.Flags&layers.IPv4MoreFragments != 0 || d.ip4.FragOffset != 0 {
				return segment{}, fragment
			}
		case layers.LayerTypeIPv6:
			source, destination = d.ip6.SrcIP, d.ip6.DstIP
			g.length = max(len(d.ip6.Contents)+int(d.ip6.Length), len(d.ip6.Contents)+len(d.ip6.Payload))
		case layers.LayerTypeIPv6Fragment:
			return segment{}, fragment
		case layers.LayerTypeTCP:
			g.tcp = &d.tcp
		}
	}
	if g.tcp == nil {
		return segment{}, notTCP
	}
	from, ok1 := netip.AddrFromSlice(source)
	to, ok2 := netip.AddrFromSlice(destination)
	if !ok1 || !ok2 {
		return segment{}, notTCP
	}
	g.source = netip.AddrPortFrom(from, uint16(g.tcp.SrcPort))
	g.destination = netip.AddrPortFrom(to, uint16(g.tcp.DstPort))
	return g, isTCP
}
