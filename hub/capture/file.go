package capture

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// ReadFile reads a capture file. Its error names the file and says what is wrong with it;
// errors.Is(err, fs.ErrNotExist) if there is none. A file that ends in the middle of a
// packet, as one does whose writer was killed, is read up to there and noted.
func ReadFile(ctx context.Context, path string) (*Capture, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a folder, not a capture file", path)
	}
	if info.Size() > maxFile {
		return nil, tooLarge(path)
	}
	return Read(ctx, f, path)
}

// Read reads a capture from r; name is what errors and the result call it.
func Read(ctx context.Context, r io.Reader, name string) (*Capture, error) {
	source, err := open(r)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, tooLarge(name)
	case err != nil:
		return nil, fmt.Errorf("%s is not a capture (pcap or pcapng): %w", name, err)
	}
	t := newTracker(name)
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		data, info, link, err := source.next()
		switch {
		case err == nil:
			t.packet(link, data, info)
			continue
		case errors.Is(err, errTooLarge):
			return nil, tooLarge(name)
		case errors.Is(err, io.EOF):
		case errors.Is(err, io.ErrUnexpectedEOF):
			t.note("the file ends in the middle of a packet: whoever wrote it was stopped or still writes")
		default:
			t.note("the file can't be read beyond its packet %d: %s", t.capture.Packets, text(err.Error()))
		}
		break
	}
	return t.finish(), nil
}

var errTooLarge = errors.New("too large")

func tooLarge(name string) error {
	return fmt.Errorf("%s is larger than %d MiB: cut the hub's connections out of it first, with `tshark -r %s -Y 'tcp.port == 8883' -w smaller.pcapng`", name, maxFile>>20, name)
}

// source is an open capture file of either format.
type source struct {
	budget *budget
	pcap   *pcapgo.Reader
	ng     *pcapgo.NgReader
}

// open finds out which format r has, and reads its header.
func open(r io.Reader) (*source, error) {
	head := bufio.NewReader(r)
	if magic, _ := head.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		unpacked, err := gzip.NewReader(head)
		if err != nil {
			return nil, errors.New("it begins like a gzip file and isn't one")
		}
		head = bufio.NewReader(unpacked)
	}
	magic, err := head.Peek(4)
	if err != nil {
		return nil, errors.New("it has not even four bytes")
	}
	s := &source{budget: &budget{r: head, total: maxFile, packet: maxPacket}}
	switch binary.BigEndian.Uint32(magic) {
	case 0x0a0d0d0a:
		// Captures of several interfaces may mix link types.
		s.ng, err = contain(func() (*pcapgo.NgReader, error) {
			return pcapgo.NewNgReader(s.budget, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
		})
	case 0xa1b2c3d4, 0xd4c3b2a1, 0xa1b23c4d, 0x4d3cb2a1:
		s.pcap, err = contain(func() (*pcapgo.Reader, error) { return pcapgo.NewReader(s.budget) })
	default:
		return nil, fmt.Errorf("it begins with the bytes % x", magic)
	}
	if err != nil {
		return nil, fmt.Errorf("its header can't be read: %w", err)
	}
	return s, nil
}

// packet is what contain returns of two values.
type packet struct {
	data []byte
	info gopacket.CaptureInfo
}

// next returns the next packet, valid until the next call, and its link type; io.EOF
// after the last.
func (s *source) next() ([]byte, gopacket.CaptureInfo, layers.LinkType, error) {
	s.budget.packet = maxPacket
	p, err := contain(func() (p packet, err error) {
		if s.pcap != nil {
			p.data, p.info, err = s.pcap.ZeroCopyReadPacketData()
		} else {
			p.data, p.info, err = s.ng.ZeroCopyReadPacketData()
		}
		return p, err
	})
	if err != nil {
		return nil, gopacket.CaptureInfo{}, 0, err
	}
	if s.pcap != nil {
		return p.data, p.info, s.pcap.LinkType(), nil
	}
	link, _ := p.info.AncillaryData[0].(layers.LinkType) // WantMixedLinkType puts it there
	return p.data, p.info, link, nil
}

// contain calls a decoder of somebody else's on bytes of somebody else's: should it panic,
// that is a malformed file and not the end of the program.
func contain[T any](decode func() (T, error)) (result T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed: %v", r)
		}
	}()
	return decode()
}

// budget bounds what is read from a file in total, so that a gzip bomb ends, and for one
// packet, so that a length of gigabytes doesn't become memory.
type budget struct {
	r             io.Reader
	total, packet int
}

// Read reads no more than the budget allows.
func (b *budget) Read(p []byte) (int, error) {
	if b.total <= 0 {
		return 0, errTooLarge
	}
	if b.packet <= 0 {
		return 0, fmt.Errorf("it has a packet of more than %d MiB", maxPacket>>20)
	}
	p = p[:min(len(p), b.total, b.packet)]
	n, err := b.r.Read(p)
	b.total -= n
	b.packet -= n
	return n, err
}
