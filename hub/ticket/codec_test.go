package ticket

import (
	"crypto/tls"
	"reflect"
	"testing"
	"time"
)

func FuzzDecode(f *testing.F) {
	now := time.Unix(1792000000, 0)
	for i, k := range kinds {
		s := session{kind: k, created: uint64(now.Unix()) - uint64(i), name: make([]byte, ShortName), secret: make([]byte, secret256)}
		plain, ok := s.encode()
		if !ok {
			f.Fatalf("%+v can't be said", s)
		}
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		s, err := decode(plain, now)
		if err != nil {
			return
		}
		if again, ok := s.encode(); !ok || string(again) != string(plain) {
			t.Errorf("%x decodes to what encodes as %x", plain, again)
		}
		if age := now.Unix() - int64(s.created); age < -int64(clockSkew.Seconds()) || age > 1<<createdBits {
			t.Errorf("%x was made %d seconds ago", plain, age)
		}
	})
}

func TestTimeOfATicketIsToldForAsLongAsItLives(t *testing.T) {
	made := time.Unix(1792000000, 0)
	for _, age := range []time.Duration{-clockSkew, 0, time.Second, DefaultLifetime, MaxLifetime + sealFor} {
		s := session{kind: kinds[0], created: uint64(made.Unix()), name: make([]byte, LongName), secret: make([]byte, secret256)}
		plain, _ := s.encode()
		if got, err := decode(plain, made.Add(age)); err != nil || got.created != s.created {
			t.Errorf("after %s: %v, made at %d, want %d", age, err, got.created, s.created)
		}
	}
}

func TestWhatATicketCantSayIsLeftToTheFallback(t *testing.T) {
	for name, spoil := range map[string]func(*kind){
		"suite":               func(k *kind) { k.suite = tls.TLS_RSA_WITH_AES_128_CBC_SHA },
		"suite of 1.2 in 1.3": func(k *kind) { k.suite = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 },
		"curve":               func(k *kind) { k.curve = tls.CurveP521 },
		"three certificates":  func(k *kind) { k.chain = 3 },
	} {
		k := kinds[0]
		spoil(&k)
		if plain, ok := (&session{kind: k, secret: make([]byte, secret256)}).encode(); ok {
			t.Errorf("%s: encoded as %x", name, plain)
		}
	}
	if len(kinds) != 16 {
		t.Errorf("%d kinds, four bits say 16", len(kinds))
	}
}

func TestStateParsesBackToTheSession(t *testing.T) {
	for _, want := range []session{
		{kind: kind{version: tls.VersionTLS13, suite: 0x1302}, created: 1792000000, secret: make([]byte, secret384)},
		{kind: kind{version: tls.VersionTLS12, suite: 0xc02b, curve: tls.CurveP256, ems: true}, created: 1792000000, secret: make([]byte, secret384)},
	} {
		encoded := want.appendState(nil, nil, nil)
		got, ok := parseState(encoded)
		if !ok {
			t.Fatalf("%x does not parse", encoded)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}
