package broker

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/fleethub/fleethub/hub/admission"
)

// FuzzFirstHeader: whatever comes first, at most five bytes are read, and what
// passes is the header of a CONNECT that mochi reads as being within the limit.
func FuzzFirstHeader(f *testing.F) {
	for _, seed := range [][]byte{{}, {0x10}, {0x10, 0x00}, {0x10, 0xff, 0x7f}, {0x10, 0xff, 0xff, 0xff, 0x7f}, {0x10, 0x80, 0x80, 0x80, 0x80, 0x00}, {0x10, 0x80, 0x00}, {0x82, 0x06}} {
		f.Add(seed)
	}
	const limit = 4096
	f.Fuzz(func(t *testing.T, data []byte) {
		c := new(client)
		r := bytes.NewReader(data)
		err := c.readFirstHeader(r, limit)
		if n := len(data) - r.Len(); n > 6 || n != len(c.head) {
			t.Fatalf("%d bytes read, %d kept", n, len(c.head))
		}
		if err != nil {
			if _, ok := errors.AsType[*admission.Refusal](err); !ok {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		var header packets.FixedHeader
		if err := header.Decode(c.head[0]); err != nil || header.Type != packets.Connect {
			t.Fatalf("% x passed: type %d, %v", c.head, header.Type, err)
		}
		size, _, err := packets.DecodeLength(bytes.NewReader(c.head[1:]))
		if err != nil || size > limit {
			t.Fatalf("% x passed: mochi reads %d, %v", c.head, size, err)
		}
	})
}
