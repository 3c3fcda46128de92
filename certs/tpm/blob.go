package tpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// A sealed blob, version 1, big-endian:
//
//	"FHTPM" 1
//	2+n  name of the storage primary (Library Part 1, 16)
//	2+n  TPMT_PUBLIC of the sealed key
//	2+n  TPM2B_PRIVATE's buffer of the sealed key
//	     AES-256-GCM of the data under that key: nonce (12), ciphertext, tag (16);
//	     everything before it is its additional data
const blobMagic = "FHTPM\x01"

const (
	// maxData bounds what Seal takes, maxBlob what Unseal looks at.
	maxData = 1 << 20
	maxBlob = maxData + len(blobMagic) + 3*(2+maxPart) + 12 + 16

	// maxPart bounds each part: those of a P-256 primary and a 32-byte secret have
	// 34, 46 and about 140 bytes.
	maxPart = 512
)

// blob is a sealed blob, taken apart. Its slices alias the bytes it was parsed from.
type blob struct {
	parent  []byte // name of the primary
	public  []byte
	private []byte
	sealed  []byte // nonce, ciphertext, tag
}

// header encodes everything but sealed.
func (b *blob) header() []byte {
	out := []byte(blobMagic)
	for _, part := range [][]byte{b.parent, b.public, b.private} {
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

// parseBlob takes a blob apart, or returns an error that is ErrDamaged.
func parseBlob(data []byte) (blob, error) {
	var b blob
	if len(data) > maxBlob {
		return b, fmt.Errorf("%w: %d bytes, the most is %d", ErrDamaged, len(data), maxBlob)
	}
	rest, ok := bytes.CutPrefix(data, []byte(blobMagic))
	if !ok {
		return b, fmt.Errorf("%w: it doesn't begin as version 1 of the format does", ErrDamaged)
	}
	for _, part := range []*[]byte{&b.parent, &b.public, &b.private} {
		if len(rest) < 2 {
			return b, fmt.Errorf("%w: it is cut short", ErrDamaged)
		}
		size := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; size == 0 || size > maxPart || size > len(rest) {
			return b, fmt.Errorf("%w: a part of it is said to have %d bytes", ErrDamaged, size)
		}
		*part, rest = rest[:size], rest[size:]
	}
	if len(rest) < 12+16 {
		return b, fmt.Errorf("%w: it is cut short", ErrDamaged)
	}
	b.sealed = rest
	return b, nil
}
