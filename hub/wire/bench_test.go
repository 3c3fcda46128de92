package wire

import (
	"testing"
)

var benchTopic = "d/pi-000007/telemetry/temperature"

func benchPublish(qos byte) *Publish {
	p := &Publish{Topic: benchTopic, Payload: make([]byte, 128), QoS: qos}
	if qos > 0 {
		p.ID = 7
	}
	return p
}

// BenchmarkDecode reads the same packet again and again, each in a Read of its own.
func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct {
		name    string
		packet  Packet
		version byte
		sender  direction
	}{
		{"PublishQoS0/v4", benchPublish(0), V311, fromClient},
		{"PublishQoS0/v5", benchPublish(0), V5, fromClient},
		{"PublishQoS1/v4", benchPublish(1), V311, fromClient},
		{"PublishQoS1/v5", benchPublish(1), V5, fromClient},
		{"PublishProperties/v5", withProperties(benchPublish(1)), V5, fromClient},
		{"Puback/v4", &Ack{Kind: TypePuback, ID: 7}, V311, fromClient},
		{"Puback/v5", &Ack{Kind: TypePuback, ID: 7}, V5, fromClient},
		{"Pingreq", &Ping{Kind: TypePingreq}, V311, fromClient},
		{"Subscribe/v5", &Subscribe{ID: 1, Filters: []Subscription{{Filter: "d/pi-7/cmd/#", QoS: 1}}}, V5, fromClient},
		{"Connect/v5", &Connect{ClientID: "pi-000007", KeepAlive: 60, SessionExpiry: 3600}, V5, fromClient},
	} {
		b.Run(c.name, func(b *testing.B) {
			src := &loop{b: mustAppend(b, c.packet, c.version)}
			r := NewReader(src, 1<<20)
			version := c.version
			if c.packet.Type() == TypeConnect {
				version = 0
			}
			r.SetVersion(version)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecodeBatch reads packets that come many in one Read, as a busy
// publisher's do. The time is that of one packet.
func BenchmarkDecodeBatch(b *testing.B) {
	for _, version := range []byte{V311, V5} {
		b.Run([]string{V311: "v4", V5: "v5"}[version], func(b *testing.B) {
			var many []byte
			for range 24 {
				many = append(many, mustAppend(b, benchPublish(0), version)...)
			}
			r := NewReader(&loop{b: many}, 1<<20)
			r.SetVersion(version)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name    string
		packet  Packet
		version byte
	}{
		{"Publish/v4", benchPublish(1), V311},
		{"Publish/v5", benchPublish(1), V5},
		{"PublishProperties/v5", withProperties(benchPublish(1)), V5},
		{"Puback/v4", &Ack{Kind: TypePuback, ID: 7}, V311},
		{"Puback/v5", &Ack{Kind: TypePuback, ID: 7}, V5},
		{"PubackReason/v5", &Ack{Kind: TypePuback, ID: 7, Code: QuotaExceeded, Reason: "too many"}, V5},
		{"Connack/v5", &Connack{ReceiveMaximum: 64, MaximumPacketSize: 1 << 20}, V5},
		{"Suback/v5", &Suback{Kind: TypeSuback, ID: 1, Codes: []Code{1}}, V5},
	} {
		b.Run(c.name, func(b *testing.B) {
			dst := make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Append(dst, c.packet, c.version); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncodePublish(b *testing.B) {
	for _, version := range []byte{V311, V5} {
		b.Run([]string{V311: "v4", V5: "v5"}[version], func(b *testing.B) {
			p := benchPublish(1)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := EncodePublish(p, version); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendTo(b *testing.B) {
	e, err := EncodePublish(benchPublish(1), V5)
	if err != nil {
		b.Fatal(err)
	}
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = e.AppendTo(dst[:0], 7, false)
	}
}

// withProperties adds what a well-equipped 5.0 client sends.
func withProperties(p *Publish) *Publish {
	p.Expiry = pointer[uint32](60)
	p.Props = &MessageProperties{
		Format: 1, ContentType: "application/json", ResponseTopic: "s/answers", Correlation: []byte("42"),
		User: []User{{"unit", "K"}},
	}
	return p
}
