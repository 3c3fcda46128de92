package wire

import (
	"bytes"
	"reflect"
	"sync"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"
)

// TestEveryPacketComesBackAsItWasSent is the codec's main property: what is
// appended in one direction is read in the other, and appended again is the
// same bytes.
func TestEveryPacketComesBackAsItWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.SampledFrom([]byte{V311, V5}).Draw(t, "version")
		want, sender := drawPacket(t, version)
		prefix := []byte("before")
		b, err := Append(prefix, want, version)
		if err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		b, ok := bytes.CutPrefix(b, prefix)
		if !ok {
			t.Fatal("what was there before is gone")
		}
		agreed := version
		if want.Type() == TypeConnect {
			agreed = 0
		}
		r := reading(b, agreed, sender)
		got, err := r.Next()
		if err != nil {
			t.Fatalf("%+v as % x: %v", want, b, err)
		}
		if r.Buffered() {
			t.Fatal("bytes are left")
		}
		if !sameSaid(got, want) {
			t.Fatalf("read %+v, want %+v", got, want)
		}
		again, err := Append(nil, got, version)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("appended again: % x, %v; want % x", again, err, b)
		}
	})
}

// sameSaid compares packets, taking nil and empty for the same where the
// packet can't tell them apart.
func sameSaid(a, b Packet) bool {
	return reflect.DeepEqual(plain(a), plain(b))
}

func plain(p Packet) Packet {
	empty := func(b []byte) []byte {
		if b == nil {
			return []byte{}
		}
		return b
	}
	switch p := p.(type) {
	case *Publish:
		q := *p
		q.Payload = empty(p.Payload)
		return &q
	case *Connect:
		q := *p
		q.Password = empty(p.Password)
		if p.Will != nil {
			w := *p.Will
			w.Message.Payload = empty(w.Message.Payload)
			q.Will = &w
		}
		return &q
	}
	return p
}

// TestPublishIsWrittenAsTheCodecWritesIt compares our one-pass encoder with
// the codec's for everything that the codec can say.
func TestPublishIsWrittenAsTheCodecWritesIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.SampledFrom([]byte{V311, V5}).Draw(t, "version")
		p := drawPublish(t, version, rapid.SampledFrom([]direction{fromClient, fromServer}).Draw(t, "sender"))
		if p.Expiry != nil && *p.Expiry == 0 {
			p.Expiry = nil
		}
		m := p.Props
		if m != nil && len(m.Correlation) == 0 {
			m.Correlation = nil
		}
		pk := &packets.Packet{
			FixedHeader:     packets.FixedHeader{Type: packets.Publish, Qos: p.QoS, Dup: p.Dup, Retain: p.Retain},
			ProtocolVersion: version,
			PacketID:        p.ID,
			TopicName:       p.Topic,
			Payload:         p.Payload,
			Mods:            packets.Mods{AllowResponseInfo: true},
			Properties:      packets.Properties{SubscriptionIdentifier: p.SubIDs, TopicAlias: p.Alias, TopicAliasFlag: p.Alias != 0},
		}
		if p.Expiry != nil {
			pk.Properties.MessageExpiryInterval = *p.Expiry
		}
		if m != nil {
			pk.Properties.PayloadFormat, pk.Properties.PayloadFormatFlag = m.Format, m.Format != 0
			pk.Properties.ContentType, pk.Properties.ResponseTopic = m.ContentType, m.ResponseTopic
			pk.Properties.CorrelationData, pk.Properties.User = m.Correlation, codecUsers(m.User)
		}
		var want bytes.Buffer
		if err := pk.PublishEncode(&want); err != nil {
			t.Fatal(err)
		}
		got, err := Append(nil, p, version)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("% x, %v; the codec writes % x", got, err, want.Bytes())
		}
	})
}

func TestShortAcknowledgementIsWrittenAsTheCodecWritesIt(t *testing.T) {
	for _, kind := range []Type{TypePuback, TypePubrec, TypePubrel, TypePubcomp} {
		for _, version := range []byte{V311, V5} {
			for code := range 256 {
				p := &Ack{Kind: kind, ID: 0x1234, Code: Code(code)}
				if version == V311 && code != 0 || !ackCode(kind, fromServer, p.Code) {
					continue
				}
				var pk packets.Packet
				fill(&pk, p, version)
				var want bytes.Buffer
				if err := pack(&pk, &want); err != nil {
					t.Fatal(err)
				}
				if p.Code == NoMatchingSubscribers { // the codec leaves this code out
					want.Reset()
					want.Write([]byte{byte(kind) << 4, 3, 0x12, 0x34, 0x10})
				}
				if got := mustAppend(t, p, version); !bytes.Equal(got, want.Bytes()) {
					t.Errorf("type %d version %d code %#x: % x, the codec writes % x", kind, version, code, got, want.Bytes())
				}
			}
		}
	}
}

func TestEncodedDiffersOnlyInIdentifierAndDup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		version := rapid.SampledFrom([]byte{V311, V5}).Draw(t, "version")
		p := drawPublish(t, version, fromServer)
		e, err := EncodePublish(p, version)
		if err != nil {
			t.Fatal(err)
		}
		before := []byte("before")
		for range 2 { // the second shows that the first has changed nothing in e
			got := e.AppendTo(before, p.ID, p.Dup)
			want, err := Append(before, p, version)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("% x, want % x (%v)", got, want, err)
			}
			if e.Len() != len(got)-len(before) {
				t.Fatalf("Len is %d of %d bytes", e.Len(), len(got)-len(before))
			}
			if p.QoS > 0 {
				p.ID, p.Dup = identifier(t), !p.Dup
			}
		}
	})
}

func TestEncodedOfQoS0HasNoIdentifier(t *testing.T) {
	e, err := EncodePublish(&Publish{Topic: "t", Payload: []byte("p"), ID: 9, Dup: true}, V311)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.AppendTo(nil, 7, true), packet(t, "30: 0001 't' 'p'"); !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
}

func TestEncodedOutlivesItsPublish(t *testing.T) {
	payload := []byte("payload")
	e, err := EncodePublish(&Publish{Topic: "t", Payload: payload}, V311)
	if err != nil {
		t.Fatal(err)
	}
	copy(payload, "XXXXXXX") // the reader's buffer is used for another packet
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := e.AppendTo(nil, 1, false); !bytes.HasSuffix(got, []byte("payload")) {
				t.Errorf("% x has changed with the publish", got)
			}
		})
	}
	wg.Wait()
}

// TestConnackOf311SaysTheNearestReturnCode covers every reason code; where none
// comes near, no CONNACK is sent [MQTT-3.2.2-6].
func TestConnackOf311SaysTheNearestReturnCode(t *testing.T) {
	want := map[Code]byte{
		Success: 0, UnsupportedProtocolVersion: 1, ClientIdentifierNotValid: 2,
		ServerUnavailable: 3, ServerBusy: 3, ServerShuttingDown: 3, UseAnotherServer: 3, serverMoved: 3, QuotaExceeded: 3, ConnectionRateExceeded: 3,
		BadUserNameOrPassword: 4, NotAuthorized: 5, Banned: 5, BadAuthenticationMethod: 5,
	}
	for c := range 256 {
		var expected []byte
		if code, ok := want[Code(c)]; ok {
			expected = []byte{0x20, 2, 0, code}
		}
		if got := mustAppend(t, &Connack{Code: Code(c)}, V311); !bytes.Equal(got, expected) {
			t.Errorf("code %#x: % x, want % x", c, got, expected)
		}
	}
}

func TestWhat311SaysInOtherWords(t *testing.T) {
	for name, c := range map[string]struct {
		packet Packet
		want   string
	}{
		"a server's DISCONNECT is nothing":      {&Disconnect{Code: SessionTakenOver}, ""},
		"a client's DISCONNECT is two bytes":    {&Disconnect{}, "e000"},
		"every refused filter is 0x80":          {&Suback{Kind: TypeSuback, ID: 1, Codes: []Code{1, NotAuthorized, TopicFilterInvalid}}, "90 05 0001 01 80 80"},
		"an UNSUBACK has no codes":              {&Suback{Kind: TypeUnsuback, ID: 1, Codes: []Code{NoSubscriptionExisted}}, "b0 02 0001"},
		"a PUBCOMP has no code":                 {&Ack{Kind: TypePubcomp, ID: 1, Code: PacketIdentifierNotFound}, "70 02 0001"},
		"a PUBREL has no code":                  {&Ack{Kind: TypePubrel, ID: 1, Code: PacketIdentifierNotFound}, "62 02 0001"},
		"no subscriber is still an acceptance":  {&Ack{Kind: TypePuback, ID: 1, Code: NoMatchingSubscribers}, "40 02 0001"},
		"no reason string":                      {&Ack{Kind: TypePuback, ID: 1, Reason: "because"}, "40 02 0001"},
		"properties of a message are not there": {&Publish{Topic: "t", Expiry: pointer[uint32](1), Alias: 3, Props: &MessageProperties{Format: 1}}, "30 03 0001 't'"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, want := mustAppend(t, c.packet, V311), unhex(t, c.want); !bytes.Equal(got, want) {
				t.Errorf("% x, want % x", got, want)
			}
		})
	}
}

// TestWhatTheCodecWouldLose has properties and codes that mochi drops on the
// way in or out.
func TestWhatTheCodecWouldLose(t *testing.T) {
	for name, c := range map[string]struct {
		bytes  string
		sender direction
		want   Packet
	}{
		"an expiry of 0":                   {"30: 0001 't' 05 02 00000000", fromClient, &Publish{Topic: "t", Payload: []byte{}, Expiry: pointer[uint32](0)}},
		"empty correlation data":           {"30: 0001 't' 03 09 0000", fromClient, &Publish{Topic: "t", Payload: []byte{}, Props: &MessageProperties{Correlation: []byte{}}}},
		"empty authentication data":        {"f0: 18 07 15 0001 'm' 16 0000", fromClient, &Auth{Code: continueAuthentication, Method: "m"}},
		"a DISCONNECT of one byte":         {"e0: 04", fromClient, &Disconnect{Code: DisconnectWithWill}},
		"PUBACK 0x10":                      {"40: 0001 10", fromServer, &Ack{Kind: TypePuback, ID: 1, Code: NoMatchingSubscribers}},
		"an empty AUTH":                    {"f0 00", fromServer, &Auth{}},
		"U+FEFF in a topic [MQTT-1.5.4-3]": {"30: 0006 efbbbf 'abc' 00", fromClient, &Publish{Topic: "\ufeffabc", Payload: []byte{}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustRead(t, packet(t, c.bytes), V5, c.sender); !reflect.DeepEqual(got, c.want) {
				t.Errorf("read %+v, want %+v", got, c.want)
			}
		})
	}
	for p, sender := range map[Packet]direction{
		&Publish{Topic: "t", Expiry: pointer[uint32](0), Payload: []byte{}}: fromServer,
		&Ack{Kind: TypePuback, ID: 1, Code: NoMatchingSubscribers}:          fromServer,
		&Disconnect{Code: DisconnectWithWill}:                               fromClient,
	} {
		if got := mustRead(t, mustAppend(t, p, V5), V5, sender); !reflect.DeepEqual(got, p) {
			t.Errorf("%+v came back as %+v", p, got)
		}
	}
}

// TestUserPropertiesKeepOrderAndRepetition [MQTT-3.1.3-10, MQTT-3.3.2-17, -18].
func TestUserPropertiesKeepOrderAndRepetition(t *testing.T) {
	users := []User{{"b", "1"}, {"a", "2"}, {"b", "1"}, {"", ""}}
	p := &Publish{Topic: "t", Payload: []byte{}, Props: &MessageProperties{User: users}}
	if got := mustRead(t, mustAppend(t, p, V5), V5, fromClient).(*Publish); !reflect.DeepEqual(got.Props.User, users) {
		t.Errorf("message: %v, want %v", got.Props.User, users)
	}
	c := &Connect{Version: V5, Will: &Will{Message: *p}}
	if got := mustRead(t, mustAppend(t, c, V5), 0, fromClient).(*Connect); !reflect.DeepEqual(got.Will.Message.Props.User, users) {
		t.Errorf("will: %v, want %v", got.Will.Message.Props.User, users)
	}
}

// TestPropertiesOfOneMessageDoNotReachTheNext reads messages from one buffer,
// where the reader uses the same memory for each.
func TestPropertiesOfOneMessageDoNotReachTheNext(t *testing.T) {
	rich := withProperties(&Publish{Topic: "rich", QoS: 1, ID: 1, Alias: 3, Retain: true, Dup: true})
	bare := &Publish{Topic: "bare", Payload: []byte("p")}
	var stream []byte
	for _, p := range []Packet{rich, bare, &Ack{Kind: TypePuback, ID: 1, Code: QuotaExceeded, Reason: "r", User: []User{{"k", "v"}}}, &Ack{Kind: TypePubrec, ID: 2}, rich, bare} {
		stream = append(stream, mustAppend(t, p, V5)...)
	}
	r := reading(stream, V5, fromClient)
	for i, want := range []Packet{nil, bare, nil, &Ack{Kind: TypePubrec, ID: 2}, nil, bare} {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if want != nil && !reflect.DeepEqual(got, want) {
			t.Errorf("packet %d is %+v, want %+v", i, got, want)
		}
	}
}
