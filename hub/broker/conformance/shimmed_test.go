package conformance

import (
	"bufio"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/wire"
)

// TestShimChangesClientIdentifiersAndNothingElse plays a suite's part: plain bytes, names of its own.
func TestShimChangesClientIdentifiersAndNothingElse(t *testing.T) {
	h := start(t, open)
	s := startShim(t, h.MQTTAddr(), h.named("interop"))
	x := &exam{T: t, hub: h, version: wire.V5}
	dial := func() func([]byte, string) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(s.port()))
		x.must(err)
		t.Cleanup(func() { conn.Close() })
		x.must(conn.SetDeadline(time.Now().Add(patience)))
		in := bufio.NewReader(conn)
		return func(question []byte, want string) {
			t.Helper()
			_, err := conn.Write(question)
			x.must(err)
			head, body, err := readFrame(in)
			x.must(err)
			if got := string(head) + string(body); got[:min(len(got), len(want))] != want {
				t.Fatalf("% x was answered with % x, want % x", question, got, want)
			}
		}
	}
	expect := dial()
	expect(x.connectBytes(flagClean|flagWill, str("a suite's client"), x.props(), str("gone"), str("last words")), "\x20")
	expect(packet(0x82, u16(1), x.props(), str("#"), []byte{0}, str("$share/g/a/+"), []byte{0}, str(forbidden), []byte{0}), "\x90\x06\x00\x01\x00\x00\x00\x87")
	message := x.publishBytes(0, "/b", 0, prop(0x26, append(str("key"), str("value")...)), "payload")
	expect(message, string(message))
	aliased := x.publishBytes(0, "b", 0, prop(0x23, u16(1)), "sets")
	expect(aliased, string(x.publishBytes(0, "b", 0, nil, "sets")))
	expect(x.publishBytes(0, "", 0, prop(0x23, u16(1)), "uses"), string(x.publishBytes(0, "b", 0, nil, "uses")))
	expect(packet(0xA2, u16(2), x.props(), str("#"), str("b")), "\xB0\x05\x00\x02\x00\x00\x11")
	expect(packet(0x82, u16(3), x.props(), str("gone"), []byte{0}), "\x90\x04\x00\x03\x00\x00")
	namesake := x.dial(s.service)
	namesake.id = "interop:a suite's client"
	namesake.connect()
	expect(nil, "\xE0") // taken over

	expect = dial()
	expect(x.connectBytes(flagClean, str("another")), "\x20")
	expect(packet(0x32, u16(400), []byte("cut short")), "\xE0") // it can't be read, and the hub says so
}
