package soak

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestFramesSurviveTheirOwnReader reads back, as a hub's, those of our frames that a hub may send, too.
func TestFramesSurviveTheirOwnReader(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.SampledFrom([]byte{v311, v5}).Draw(t, "version")
		want := packet{
			kind: typePublish, topic: rapid.StringN(1, 40, 200).Draw(t, "topic"),
			payload: rapid.SliceOfN(rapid.Byte(), 0, 400).Draw(t, "payload"), qos: byte(rapid.IntRange(0, 2).Draw(t, "qos")),
			retain: rapid.Bool().Draw(t, "retain"),
		}
		if want.qos > 0 {
			want.id, want.dup = rapid.Uint16Min(1).Draw(t, "id"), rapid.Bool().Draw(t, "dup")
		}
		got, err := readPacket(bufio.NewReader(bytes.NewReader(publishFrame(version, want))), version)
		if err != nil || got.topic != want.topic || !bytes.Equal(got.payload, want.payload) || got.id != want.id ||
			got.qos != want.qos || got.dup != want.dup || got.retain != want.retain {
			t.Fatalf("read %+v, %v; wrote %+v", got, err, want)
		}
	})
	for _, kind := range []byte{typePuback, typePubrec, typePubrel, typePubcomp} {
		got, err := readPacket(bufio.NewReader(bytes.NewReader(ackFrame(kind, 515))), v5)
		if err != nil || got.kind != kind || got.id != 515 || got.code != 0 {
			t.Errorf("read %+v, %v", got, err)
		}
	}
}

// TestTheReaderFindsWhatNoHubMaySend holds readPacket to its strictness, and to telling it from a broken connection.
func TestTheReaderFindsWhatNoHubMaySend(t *testing.T) {
	for name, frame := range map[string][]byte{
		"type 0":                   {0x00, 0},
		"a CONNECT":                {0x10, 0},
		"PUBREL without its flags": {0x60, 2, 0, 1},
		"PUBACK cut short":         {0x40, 1, 0},
		"3.1.1 PUBACK with code":   {0x40, 3, 0, 1, 0},
		"DISCONNECT in 3.1.1":      {0xE0, 0},
		"length of five bytes":     {0x30, 0x80, 0x80, 0x80, 0x80, 1},
		"topic cut short":          {0x30, 4, 0, 3, 'a', 'b'},
	} {
		if _, err := readPacket(bufio.NewReader(bytes.NewReader(frame)), v311); !isMalformed(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readPacket(bufio.NewReader(bytes.NewReader([]byte{0x30, 4, 0})), v311); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a broken connection: %v", err)
	}
}

func isMalformed(err error) bool {
	_, ok := errors.AsType[*malformed](err)
	return ok
}

// told is a session's surroundings: what it delivered and complained of.
type told struct {
	delivered []string
	faults    []string
	accepted  []string
	finished  []string
}

func (w *told) session() *session {
	s := newSession("s", v311)
	s.deliver = func(p packet) { w.delivered = append(w.delivered, string(p.payload)) }
	s.accuse = func(fault, _ string, _ ...any) { w.faults = append(w.faults, fault) }
	return s
}

func (w *told) message(text string, qos byte) *outgoing {
	return &outgoing{
		topic: "t", qos: qos, payload: []byte(text),
		accepted: func() { w.accepted = append(w.accepted, text) },
		finished: func() { w.finished = append(w.finished, text) },
	}
}

// describe puts frames that a session wrote into words, such as "PUBLISH 1 dup a".
func describe(t *testing.T, frames []byte) []string {
	t.Helper()
	names := map[byte]string{typePublish: "PUBLISH", typePuback: "PUBACK", typePubrec: "PUBREC", typePubrel: "PUBREL", typePubcomp: "PUBCOMP"}
	var list []string
	for r := bufio.NewReader(bytes.NewReader(frames)); ; {
		p, err := readPacket(r, v311)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%s %d", names[p.kind], p.id)
		if p.dup {
			text += " dup"
		}
		if p.kind == typePublish {
			text += " " + string(p.payload)
		}
		list = append(list, text)
	}
}

func wantList(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestASessionSendsAgainWhatIsNotAcknowledged follows messages over broken connections.
func TestASessionSendsAgainWhatIsNotAcknowledged(t *testing.T) {
	w := &told{}
	s := w.session()
	s.connected(false)
	for i, text := range []string{"a", "b", "c", "d"} {
		s.publish(w.message(text, byte(1+i%2)), true)
	}
	s.publish(w.message("e", 1), false) // offline
	wantList(t, "PUBREL", describe(t, s.handle(packet{kind: typePubrec, id: 2})), "PUBREL 2")
	s.handle(packet{kind: typePuback, id: 3})
	wantList(t, "accepted", w.accepted, "b", "c")
	wantList(t, "finished", w.finished, "c")

	wantList(t, "again", describe(t, s.connected(true)), "PUBREL 2", "PUBLISH 1 dup a", "PUBLISH 4 dup d", "PUBLISH 5 e")
	wantList(t, "a PUBREC that came twice", describe(t, s.handle(packet{kind: typePubrec, id: 2})), "PUBREL 2")
	s.handle(packet{kind: typePubcomp, id: 2})
	s.handle(packet{kind: typePubcomp, id: 2})
	s.handle(packet{kind: typePuback, id: 4}) // no answer to QoS 2
	wantList(t, "finished", w.finished, "c", "b")
	if n := s.unfinished(); n != 3 {
		t.Errorf("%d unfinished, want a, d and e", n)
	}
	wantList(t, "faults", w.faults)
}

// TestASessionDeliversQoS2Once follows a QoS 2 message that the hub sends again and again.
func TestASessionDeliversQoS2Once(t *testing.T) {
	w := &told{}
	s := w.session()
	s.connected(false)
	first := packet{kind: typePublish, id: 7, qos: 2, topic: "t", payload: []byte("a")}
	again := first
	again.dup = true
	wantList(t, "first", describe(t, s.handle(first)), "PUBREC 7")
	s.connected(true)
	wantList(t, "again", describe(t, s.handle(again)), "PUBREC 7")
	wantList(t, "delivered", w.delivered, "a")
	wantList(t, "released", describe(t, s.handle(packet{kind: typePubrel, id: 7})), "PUBCOMP 7")
	wantList(t, "released again", describe(t, s.handle(packet{kind: typePubrel, id: 7})), "PUBCOMP 7")
	s.handle(first) // the identifier is free: another message
	wantList(t, "delivered", w.delivered, "a", "a")
	wantList(t, "faults", w.faults)

	other := first
	other.payload = []byte("b")
	s.handle(other)
	s.handle(first)
	wantList(t, "faults", w.faults, faultReuse, faultDUP)
	wantList(t, "delivered", w.delivered, "a", "a")
}

// TestASessionMissesItsSession expects the hub to know whom it has acknowledged anything, and nobody else.
func TestASessionMissesItsSession(t *testing.T) {
	w := &told{}
	s := w.session()
	s.connected(false)
	s.publish(w.message("a", 2), true)
	s.publish(w.message("b", 1), true)
	s.connected(false) // the CONNACK of the first may be all that it ever had
	wantList(t, "faults", w.faults)
	s.handle(packet{kind: typePubrec, id: 1})
	wantList(t, "after the loss", describe(t, s.connected(false)), "PUBLISH 2 b")
	wantList(t, "faults", w.faults, faultSession)
	if n := s.unfinished(); n != 1 {
		t.Errorf("%d unfinished, want b", n)
	}
}
