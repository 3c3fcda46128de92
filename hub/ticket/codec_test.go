package ticket

import (
	"crypto/tls"
	"reflect"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add((&session{version: tls.VersionTLS13, suite: 0x1301, created: 1 << 32, chain: 2, ems: true, epoch: 7, secret: make([]byte, secret256)}).encode())
	f.Add((&session{version: tls.VersionTLS12, suite: 0xc02b, chain: 1, curve: 23, secret: make([]byte, secret384)}).encode())
	f.Fuzz(func(t *testing.T, plain []byte) {
		s, err := decode(plain)
		if err != nil {
			return
		}
		if again := s.encode(); string(again) != string(plain) {
			t.Errorf("%x decodes to what encodes as %x", plain, again)
		}
	})
}

func TestStateParsesBackToTheSession(t *testing.T) {
	for _, want := range []session{
		{version: tls.VersionTLS13, suite: 0x1302, created: 1792000000, ems: false, secret: make([]byte, secret384)},
		{version: tls.VersionTLS12, suite: 0xc02b, created: 1792000000, ems: true, curve: 23, secret: make([]byte, secret384)},
	} {
		encoded := want.state(nil, nil)
		got, ok := parseState(encoded)
		if !ok {
			t.Fatalf("%x does not parse", encoded)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
