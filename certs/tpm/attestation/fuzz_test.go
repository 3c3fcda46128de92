package attestation

import (
	"crypto/x509"
	"encoding/json"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// What a stranger sends is refused with a reason, or is a message that is spelled alike
// when sent on; nothing panics.
func FuzzRequest(f *testing.F) {
	board := newForger(f)
	v := board.verifier(func(c *Config) { c.Allowed = func([32]byte) bool { return true } })
	f.Add(must(json.Marshal(board.request())))
	f.Add([]byte(`{"csr":"MAA="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRequest(data)
		if err == nil {
			_, err = v.Begin(r, binding)
		}
		wantRefusal(t, err)
	})
}

// The parts of a request, each by itself and rightly signed, so that the fuzzer gets
// past the signature.
func FuzzParts(f *testing.F) {
	board := newForger(f)
	v := board.verifier(func(c *Config) { c.Allowed = func([32]byte) bool { return true } })
	good := board.request()
	attest := func(change func(*tpm2.TPMSAttest)) []byte {
		b := newForger(f)
		b.attest = change
		return b.request().Certification
	}
	f.Add(good.AK, good.Key, good.Certification, good.Signature, good.EKCertificate)
	f.Add(good.Key, good.AK, attest(quote), good.Signature, good.CSR)
	f.Add(good.AK, good.Key, attest(creation), []byte{0, 0x18, 0, 0xb}, []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, ak, key, certification, signature, certificate []byte) {
		forger := *board
		forger.t = t
		r := good
		r.AK, r.Key, r.Certification, r.Signature, r.EKCertificate = ak, key, certification, signature, certificate
		_, err := v.Begin(r, binding)
		wantRefusal(t, err)

		r = good
		r.Certification = certification
		if len(certification) > 0 {
			r.Signature = forger.sign(certification)
		}
		_, err = v.Begin(r, binding)
		wantRefusal(t, err)

		r = good
		r.Key = key
		forger.certify(&r, Statement(must(x509.MarshalPKIXPublicKey(board.ek.Public())), good.CSR))
		_, err = v.Begin(r, binding)
		wantRefusal(t, err)
	})
}

func FuzzAnswer(f *testing.F) {
	board := newForger(f)
	b := newBench(board, nil)
	f.Add(must(json.Marshal(b.answer(must(b.Begin(board.request(), binding)).ID))))
	f.Add([]byte(`{"id":"","proof":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ParseAnswer(data)
		if err == nil {
			_, err = b.Finish(a, binding)
		}
		wantRefusal(t, err)
	})
}

func FuzzChallenge(f *testing.F) {
	board := newForger(f)
	f.Add(must(json.Marshal(must(board.verifier(nil).Begin(board.request(), binding)))))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseChallenge(data)
		wantRefusal(t, err)
		if err == nil {
			if again, err := ParseChallenge(must(json.Marshal(c))); err != nil || again.ID != c.ID {
				t.Errorf("sent on it is another: %v", err)
			}
		}
	})
}

func wantRefusal(t *testing.T, err error) {
	t.Helper()
	if _, ok := reasonOf(err); err != nil && !ok {
		t.Errorf("%v is no refusal", err)
	}
}

// go-tpm decodes by reflection what strangers send: whatever it takes, it gives back,
// and it never panics.
func FuzzStructures(f *testing.F) {
	board := newForger(f)
	good := board.request()
	for _, seed := range [][]byte{good.AK, good.Key, good.Certification, good.Signature, tpm2.Marshal(tpm2.RSAEKTemplate), {0, 8, 0, 0xb}, {0, 0x25, 0, 0xb}} {
		f.Add(seed)
	}
	for _, change := range []func(*tpm2.TPMSAttest){quote, creation} {
		board.attest = change
		f.Add(board.request().Certification)
	}
	for _, change := range []func(*tpm2.TPMTSignature){rsaSignature, hmacSignature} {
		board.signature = change
		f.Add(board.request().Signature)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > maxStructure {
			return
		}
		_, _ = unmarshal[tpm2.TPMSAttest](data)
		_, _ = unmarshal[tpm2.TPMTSignature](data)
		for _, parse := range []func([]byte) (*object, error){parseObject, parseAK, parseKey} {
			if o, err := parse(data); err == nil {
				if _, err := o.key.Bytes(); err != nil {
					t.Errorf("a key off its curve: %v", err)
				}
			}
		}
	})
}
