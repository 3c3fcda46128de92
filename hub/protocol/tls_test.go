package protocol

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTLSNoticeIsReadStrictly(t *testing.T) {
	tests := map[string]bool{
		`{"chain":"leaf"}`:                 true,
		" {\"chain\" : \"leaf\"}\n":        true,
		``:                                 false,
		`{}`:                               false,
		`null`:                             false,
		`"leaf"`:                           false,
		`{"chain":"full"}`:                 false,
		`{"chain":7}`:                      false,
		`{"chain":"leaf","more":1}`:        false,
		`{"chain":"leaf"}{"chain":"leaf"}`: false,
		`{"chain":"leaf"} x`:               false,
		`{"chain":"leaf"`:                  false,
		`{"chain":"leaf"}` + strings.Repeat(" ", 240):    true,
		`{"chain":"leaf"}` + strings.Repeat(" ", 241):    false,
		`{"chain":"` + strings.Repeat("x", 1<<20) + `"}`: false,
	}
	for payload, good := range tests {
		n, err := ParseTLSNotice([]byte(payload))
		if (err == nil) != good || good && n.Chain != ChainLeaf {
			t.Errorf("ParseTLSNotice(%.40q) = %+v, %v", payload, n, err)
		}
		if err != nil && (n != TLSNotice{} || len(err.Error()) > 200) {
			t.Errorf("ParseTLSNotice(%.40q) returns %+v with an error of %d bytes", payload, n, len(err.Error()))
		}
	}
}

func TestTLSNoticeIsWrittenAsItIsRead(t *testing.T) {
	data, err := json.Marshal(TLSNotice{Chain: ChainLeaf})
	if err != nil || string(data) != `{"chain":"leaf"}` {
		t.Fatalf("%s, %v", data, err)
	}
	if topic := System("pi-1", NoticeTLS); topic != "d/pi-1/sys/tls" {
		t.Errorf("the topic is %s", topic)
	}
}

func FuzzTLSNotice(f *testing.F) {
	f.Add([]byte(`{"chain":"leaf"}`))
	f.Add([]byte(`{"chain":"leaf","chain":"x"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		n, err := ParseTLSNotice(payload)
		if err == nil && n.Chain != ChainLeaf {
			t.Errorf("%q is read as %+v", payload, n)
		}
	})
}
