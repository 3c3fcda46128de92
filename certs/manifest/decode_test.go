package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// agree holds what parse reads in parts against what one pass of encoding/json reads.
func agree(t *testing.T, payload []byte) {
	t.Helper()
	var want Manifest
	wantErr := strict(bytes.NewReader(payload), &want)
	got, err := parse(payload)
	if errors.Is(err, errTwice) {
		return // stricter: one pass takes the last
	}
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%.300q: in parts: %v; in one pass: %v", payload, err, wantErr)
	}
	if err != nil {
		return
	}
	if len(got.Devices) == 0 && len(want.Devices) == 0 {
		got.Devices, want.Devices = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%.300q: in parts %+v, in one pass %+v", payload, got, want)
	}
}

// large is a manifest's contents of several parts, with every kind of character that could
// be taken for a bracket, a comma or a quote.
func large(t testing.TB) []byte {
	t.Helper()
	m := Manifest{Version: 1, TrustDomain: "fleet.example", Station: "a]}\",\\", Number: 3}
	for i := range 600 {
		m.Devices = append(m.Devices, Entry{
			Certificate: bytes.Repeat([]byte{byte(i)}, 450), Model: fmt.Sprintf("\"},{[%d\\", i), Labels: map[string]string{"a,]": `\`, "b": "\\\""},
		})
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestContentsReadInPartsAreWhatOnePassReads(t *testing.T) {
	t.Parallel()
	data := large(t)
	if _, cuts := findDevices(data); len(cuts) < 4 {
		t.Fatalf("the list was cut at %v only", cuts)
	}
	agree(t, data)
	var indented bytes.Buffer
	if err := json.Indent(&indented, data, "", "\t"); err != nil {
		t.Fatal(err)
	}
	agree(t, indented.Bytes())
	for _, broken := range []string{
		strings.Replace(string(data), `},{"certificate"`, `},,{"certificate"`, 1),
		strings.Replace(string(data), `}],`, `},],`, 1),
		strings.Replace(string(data), `"devices":[`, `"devices":[,`, 1),
		strings.Replace(string(data), `},{"certificate"`, `}],[{"certificate"`, 1),
		strings.Replace(string(data), `},{"certificate"`, `} {"certificate"`, 1),
		string(data[:len(data)-1]), string(data[:len(data)-2]), string(data[:len(data)/2]),
		string(data[:len(data)-2]) + "}}", string(data) + "]", string(data) + "{}",
	} {
		agree(t, []byte(broken))
	}
	// Each cut as a place for a comma too many.
	_, cuts := findDevices(data)
	for _, i := range cuts {
		agree(t, []byte(string(data[:i])+","+string(data[i:])))
	}
}

func TestDevicesListedTwiceAreRefused(t *testing.T) {
	t.Parallel()
	for _, second := range []string{`"devices":[]`, `"devices":null`, `"Devices":[{}]`, `"device\u0073":[]`, `"deviceſ":[]`} {
		for _, text := range []string{`{"version":1,"devices":[{"model":"a"}],` + second + `}`} {
			if m, err := parse([]byte(text)); !errors.Is(err, errTwice) {
				t.Errorf("%s: %+v, %v", text, m, err)
			}
		}
	}
}

// What a station signs is read alike in parts and in one pass, whatever it is.
func FuzzParseInParts(f *testing.F) {
	f.Add([]byte(`{"version":1,"devices":[{"model":"a"},{"model":"]"}],"number":2}`))
	f.Add([]byte(`{"devices":[],"station":"\\\""}`))
	f.Add([]byte(`{"devices":[{}]}`))
	f.Add([]byte(`{"devices":[}`))
	f.Add([]byte(`{"devices":[1,"a,\"",[]]}`))
	f.Add([]byte(`{"x":{"devices":[1]},"devices":[{"labels":{"a":"b"}}]}`))
	f.Fuzz(func(t *testing.T, payload []byte) { agree(t, payload) })
}
