package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The format on disk, version 1; all numbers are little-endian.
//
// A segment file is as long as its header says and holds a header page of 4,096 bytes and then batches one after the
// other. What follows the last batch is not looked at but to make sure that no batch is there.
//
//	segment header   8 magic · 4 version · 16 journal · 8 number · 8 nonce · 8 size · 8 first position ·
//	                 8 first sequence · 8 where the segment before validly ends · 8 created (Unix ns) · 4 CRC-32C
//	batch            8 nonce · 8 sequence · 8 first position · 4 kind · 4 count · 4 body length · 4 CRC-32C of the body ·
//	                 4 CRC-32C of this header · body
//	record           4 length · bytes
//
// Each batch begins with its segment's nonce, which is random: whatever bytes a record brings, they can't pass for a batch,
// so a search for batches after a damaged one finds only real ones.
const (
	version       = 1
	segmentHeader = 4096
	headerFields  = 8 + 4 + 16 + 8*7
	batchHeader   = 44
	recordHeader  = 4
	segmentSuffix = ".journal"
)

var (
	segmentMagic = [8]byte{'F', 'L', 'T', 'S', 'E', 'G', '\r', '\n'}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
	order        = binary.LittleEndian
)

// batchKind says what a batch holds.
type batchKind uint32

const (
	kindRecords batchKind = 1
	kindEnd     batchKind = 2 // a clean shutdown; no records
)

// header is what a segment file says of itself.
type header struct {
	journal       [16]byte // which journal it belongs to
	number        uint64   // of the segment, from 1
	nonce         uint64   // begins each of its batches
	size          int64    // of the file, in bytes
	firstPosition Position // that a record in it can have
	firstSequence uint64   // of its first batch
	previousEnd   int64    // where the segment before validly ends; 0 in the first one
	created       int64    // Unix time in ns
}

func (h *header) encode() []byte {
	page := make([]byte, 0, segmentHeader)
	page = append(page, segmentMagic[:]...)
	page = order.AppendUint32(page, version)
	page = append(page, h.journal[:]...)
	for _, v := range []uint64{h.number, h.nonce, uint64(h.size), uint64(h.firstPosition), h.firstSequence, uint64(h.previousEnd), uint64(h.created)} {
		page = order.AppendUint64(page, v)
	}
	page = order.AppendUint32(page, checksum(page))
	return page[:segmentHeader]
}

// decodeHeader reads a segment's header page; the errors say what is wrong with it.
func decodeHeader(page []byte) (header, error) {
	switch {
	case len(page) < segmentHeader:
		return header{}, fmt.Errorf("its header is cut off after %d bytes", len(page))
	case !bytes.Equal(page[:8], segmentMagic[:]):
		return header{}, errors.New("it is not a journal segment")
	case order.Uint32(page[8:]) != version && crcFits(page, headerFields):
		return header{}, fmt.Errorf("it has format version %d and this program reads version %d", order.Uint32(page[8:]), version)
	case !crcFits(page, headerFields):
		return header{}, errors.New("the checksum of its header doesn't fit")
	}
	for _, b := range page[headerFields+4 : segmentHeader] {
		if b != 0 {
			return header{}, errors.New("its header page holds something after the header")
		}
	}
	var h header
	copy(h.journal[:], page[12:28])
	field := func(i int) uint64 { return order.Uint64(page[28+8*i:]) }
	h.number, h.nonce, h.size = field(0), field(1), int64(field(2))
	h.firstPosition, h.firstSequence = Position(field(3)), field(4)
	h.previousEnd, h.created = int64(field(5)), int64(field(6))
	return h, nil
}

// checksum is the CRC-32C of b.
func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// crcFits reports whether the four bytes at n are the checksum of those before.
func crcFits(b []byte, n int) bool {
	return order.Uint32(b[n:]) == checksum(b[:n])
}

// frame is what the header of a batch says.
type frame struct {
	sequence uint64
	first    Position // of its first record
	kind     batchKind
	count    uint32 // of records
	length   uint32 // of the body, in bytes
	bodyCRC  uint32
}

// size is how many bytes the batch takes, header and all.
func (f *frame) size() int64 { return batchHeader + int64(f.length) }

// seal writes the header into the first bytes of a batch whose body is in place.
func (f *frame) seal(nonce uint64, batch []byte) {
	f.length = uint32(len(batch) - batchHeader)
	f.bodyCRC = checksum(batch[batchHeader:])
	order.PutUint64(batch[0:], nonce)
	order.PutUint64(batch[8:], f.sequence)
	order.PutUint64(batch[16:], uint64(f.first))
	order.PutUint32(batch[24:], uint32(f.kind))
	order.PutUint32(batch[28:], f.count)
	order.PutUint32(batch[32:], f.length)
	order.PutUint32(batch[36:], f.bodyCRC)
	order.PutUint32(batch[40:], checksum(batch[:40]))
}

// decodeFrame reads the header of a batch of the segment with this nonce; ok is false if none begins here.
func decodeFrame(b []byte, nonce uint64) (f frame, ok bool) {
	if len(b) < batchHeader || order.Uint64(b) != nonce || !crcFits(b, 40) {
		return frame{}, false
	}
	return frame{
		sequence: order.Uint64(b[8:]),
		first:    Position(order.Uint64(b[16:])),
		kind:     batchKind(order.Uint32(b[24:])),
		count:    order.Uint32(b[28:]),
		length:   order.Uint32(b[32:]),
		bodyCRC:  order.Uint32(b[36:]),
	}, true
}

// check says what is wrong with the body of a batch, if anything is: checksum, then that the records fill it exactly.
func (f *frame) check(body []byte) error {
	if checksum(body) != f.bodyCRC {
		return errors.New("the checksum of a batch doesn't fit")
	}
	var n uint32
	for ; len(body) > 0; n++ {
		record, rest, ok := cutRecord(body)
		if !ok {
			return errors.New("a record is longer than its batch")
		}
		_, body = record, rest
	}
	switch {
	case n != f.count:
		return fmt.Errorf("a batch holds %d records and says %d", n, f.count)
	case f.kind == kindRecords && n == 0, f.kind == kindEnd && n != 0, f.kind != kindRecords && f.kind != kindEnd:
		return fmt.Errorf("a batch of kind %d holds %d records", f.kind, n)
	}
	return nil
}

// cutRecord takes the first record off a batch's body.
func cutRecord(body []byte) (record, rest []byte, ok bool) {
	if len(body) < recordHeader {
		return nil, nil, false
	}
	n := order.Uint32(body)
	if uint64(n) > uint64(len(body)-recordHeader) {
		return nil, nil, false
	}
	end := recordHeader + int(n)
	return body[recordHeader:end:end], body[end:], true
}

// segmentName is the file name of a segment.
func segmentName(number uint64) string { return fmt.Sprintf("%010d%s", number, segmentSuffix) }

// segmentNumber is the inverse of segmentName.
func segmentNumber(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil && number > 0 && segmentName(number) == name
}
