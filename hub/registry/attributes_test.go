package registry

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestAttributesReadBackAsWritten(t *testing.T) {
	text := rapid.StringN(0, 20, 80)
	rapid.Check(t, func(t *rapid.T) {
		a := Attributes{
			Model: text.Draw(t, "model"), Batch: text.Draw(t, "batch"), Station: text.Draw(t, "station"), Protection: text.Draw(t, "protection"),
			OU: rapid.SliceOfN(text, 0, 3).Draw(t, "ou"), Issuers: rapid.SliceOfN(text, 0, 2).Draw(t, "issuers"),
			Labels: rapid.MapOfN(text, text, 0, 4).Draw(t, "labels"),
		}
		encoded := a.Append([]byte("before"))[len("before"):]
		b, err := ParseAttributes(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Append(nil), encoded) {
			t.Fatalf("%+v reads back as %+v", a, b)
		}
		for _, m := range []*Attributes{&a, &b} { // empty and none are the same
			if len(m.OU) == 0 {
				m.OU = nil
			}
			if len(m.Issuers) == 0 {
				m.Issuers = nil
			}
			if len(m.Labels) == 0 {
				m.Labels = nil
			}
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v reads back as %+v", a, b)
		}
		if len(encoded) > 0 {
			if _, err := ParseAttributes(encoded[:len(encoded)-1]); err == nil {
				t.Fatal("attributes cut short were read")
			}
			if _, err := ParseAttributes(append(encoded, 0)); err == nil {
				t.Fatal("attributes with something behind them were read")
			}
		}
	})
}

// FuzzParseAttributes: no octets crash it or make it reserve more than they are.
func FuzzParseAttributes(f *testing.F) {
	f.Add((&Attributes{Model: "pi4", OU: []string{"a"}, Labels: map[string]string{"x": "y"}}).Append(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0, 0, 0, 0, 0x7f, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseAttributes(data)
		if err != nil {
			return
		}
		if b, err := ParseAttributes(a.Append(nil)); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v reads back as %+v, %v", a, b, err)
		}
	})
}

func TestBatchIsTheLabelOrTheManifest(t *testing.T) {
	for _, tt := range []struct {
		labels  map[string]string
		station string
		want    string
	}{
		{map[string]string{"batch": "lot-1"}, "bench-1", "lot-1"},
		{map[string]string{"line": "a"}, "bench-1", "bench-1.7"},
		{nil, "", ""},
	} {
		if got := BatchOf(tt.labels, tt.station, 7); got != tt.want {
			t.Errorf("batch of %v, %s is %q, want %q", tt.labels, tt.station, got, tt.want)
		}
	}
}
