package ticket

import (
	"crypto/tls"
	"reflect"
	"testing"
)

func FuzzDecode(f *testing.F) {
	for _, s := range []session{
		{version: tls.VersionTLS13, suite: tls.TLS_AES_128_GCM_SHA256, created: 1 << 31, chain: 2, secret: make([]byte, secret256)},
		{version: tls.VersionTLS12, suite: tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, ems: true, chain: 1, curve: tls.CurveP256, secret: make([]byte, secret384)},
	} {
		plain, ok := s.encode()
		if !ok {
			f.Fatalf("%+v can't be said", s)
		}
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		s, err := decode(plain)
		if err != nil {
			return
		}
		if again, ok := s.encode(); !ok || string(again) != string(plain) {
			t.Errorf("%x decodes to what encodes as %x", plain, again)
		}
	})
}

func TestWhatATicketCantSayIsLeftToTheFallback(t *testing.T) {
	good := session{version: tls.VersionTLS13, suite: tls.TLS_AES_128_GCM_SHA256, created: 1, chain: 1, secret: make([]byte, secret256)}
	for name, spoil := range map[string]func(*session){
		"suite":               func(s *session) { s.suite = tls.TLS_RSA_WITH_AES_128_CBC_SHA },
		"suite of 1.2 in 1.3": func(s *session) { s.suite = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 },
		"curve":               func(s *session) { s.curve = tls.CurveP521 },
		"year 2106":           func(s *session) { s.created = 1 << 32 },
	} {
		s := good
		spoil(&s)
		if plain, ok := s.encode(); ok {
			t.Errorf("%s: encoded as %x", name, plain)
		}
	}
	if _, ok := good.encode(); !ok {
		t.Error("a good session was not encoded")
	}
}

func TestStateParsesBackToTheSession(t *testing.T) {
	for _, want := range []session{
		{version: tls.VersionTLS13, suite: 0x1302, created: 1792000000, ems: false, secret: make([]byte, secret384)},
		{version: tls.VersionTLS12, suite: 0xc02b, created: 1792000000, ems: true, curve: tls.CurveP256, secret: make([]byte, secret384)},
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
