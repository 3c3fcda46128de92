package wire

import (
	"bytes"
	"errors"
	"testing"
)

// TestReasonsAreLeftOutWhereTheyWouldNotFit names the clauses of each packet;
// every one of them is the same rule.
func TestReasonsAreLeftOutWhereTheyWouldNotFit(t *testing.T) {
	users := []User{{"key", "value"}}
	for name, c := range map[string]struct{ long, short Packet }{
		"MQTT-3.2.2-19 MQTT-3.2.2-20 CONNACK":    {&Connack{Reason: "r", User: users, ReceiveMaximum: 9}, &Connack{ReceiveMaximum: 9}},
		"MQTT-3.4.2-2 MQTT-3.4.2-3 PUBACK":       {&Ack{Kind: TypePuback, ID: 1, Code: QuotaExceeded, Reason: "r", User: users}, &Ack{Kind: TypePuback, ID: 1, Code: QuotaExceeded}},
		"MQTT-3.5.2-2 MQTT-3.5.2-3 PUBREC":       {&Ack{Kind: TypePubrec, ID: 1, Reason: "r"}, &Ack{Kind: TypePubrec, ID: 1}},
		"MQTT-3.6.2-2 MQTT-3.6.2-3 PUBREL":       {&Ack{Kind: TypePubrel, ID: 1, User: users}, &Ack{Kind: TypePubrel, ID: 1}},
		"MQTT-3.7.2-2 MQTT-3.7.2-3 PUBCOMP":      {&Ack{Kind: TypePubcomp, ID: 1, Reason: "r"}, &Ack{Kind: TypePubcomp, ID: 1}},
		"MQTT-3.9.2-1 MQTT-3.9.2-2 SUBACK":       {&Suback{Kind: TypeSuback, ID: 1, Codes: []Code{0}, Reason: "r"}, &Suback{Kind: TypeSuback, ID: 1, Codes: []Code{0}}},
		"MQTT-3.11.2-1 MQTT-3.11.2-2 UNSUBACK":   {&Suback{Kind: TypeUnsuback, ID: 1, Codes: []Code{0}, User: users}, &Suback{Kind: TypeUnsuback, ID: 1, Codes: []Code{0}}},
		"MQTT-3.14.2-3 MQTT-3.14.2-4 DISCONNECT": {&Disconnect{Code: ServerBusy, Reason: "r", User: users}, &Disconnect{Code: ServerBusy}},
		"MQTT-3.15.2-2 MQTT-3.15.2-3 AUTH":       {&Auth{Code: continueAuthentication, Method: "m", Reason: "r"}, &Auth{Code: continueAuthentication, Method: "m"}},
	} {
		t.Run(name, func(t *testing.T) {
			long, short := mustAppend(t, c.long, V5), mustAppend(t, c.short, V5)
			before := []byte("before")
			for limit := uint32(1); int(limit) <= len(long)+1; limit++ {
				got, err := AppendWithin(before, c.long, V5, limit)
				got = bytes.TrimPrefix(got, before)
				switch {
				case int(limit) < len(short):
					if !errors.Is(err, ErrTooLarge) || len(got) > 0 {
						t.Errorf("limit %d: % x, %v; want nothing and %v", limit, got, err, ErrTooLarge)
					}
				case int(limit) < len(long):
					if err != nil || !bytes.Equal(got, short) {
						t.Errorf("limit %d: % x, %v; want % x", limit, got, err, short)
					}
				default:
					if err != nil || !bytes.Equal(got, long) {
						t.Errorf("limit %d: % x, %v; want % x", limit, got, err, long)
					}
				}
			}
			if got, err := AppendWithin(nil, c.long, V5, 0); err != nil || !bytes.Equal(got, long) {
				t.Errorf("no limit: % x, %v; want % x", got, err, long)
			}
		})
	}
}

// TestTooLargePublishIsNotWritten [MQTT-3.1.2-24].
func TestTooLargePublishIsNotWritten(t *testing.T) {
	p := withProperties(benchPublish(1))
	size := uint32(len(mustAppend(t, p, V5)))
	if got, err := AppendWithin(nil, p, V5, size-1); !errors.Is(err, ErrTooLarge) || len(got) > 0 {
		t.Errorf("% x, %v; want nothing and %v", got, err, ErrTooLarge)
	}
	if _, err := AppendWithin(nil, p, V5, size); err != nil {
		t.Error(err)
	}
}
