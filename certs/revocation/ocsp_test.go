package revocation_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/revocation"
)

// responder is a delegated OCSP signer of the throwaway fleet's factory CA.
func responder(t testing.TB, pki *certtest.Fleet) *revocation.Responder {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Factory.IssueResponder(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	r, err := revocation.NewResponder(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t testing.TB, leaf, issuer *x509.Certificate, hash crypto.Hash) []byte {
	t.Helper()
	der, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

var window = revocation.Window{This: moment, Next: moment.Add(time.Hour)}

func TestAnswersReadBackByTheGoLibrary(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	r, issuer, leaf := responder(t, pki), pki.Factory.Certificate(), pki.Device("pi-1").Leaf
	name, err := revocation.NameOf(issuer)
	if err != nil {
		t.Fatal(err)
	}
	at := moment.Add(-time.Hour)
	for _, c := range []struct {
		status revocation.Status
		reason revocation.Reason
		want   int
	}{
		{revocation.Good, 0, ocsp.Good},
		{revocation.Unknown, 0, ocsp.Unknown},
		{revocation.Revoked, revocation.Unspecified, ocsp.Revoked},
		{revocation.Revoked, revocation.KeyCompromise, ocsp.Revoked},
		{revocation.Revoked, revocation.Hold, ocsp.Revoked},
	} {
		for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
			in, err := revocation.ReadInquiry(ask(t, leaf, issuer, hash))
			if err != nil {
				t.Fatal(err)
			}
			if len(in.Questions) != 1 || in.Questions[0].Serial.Cmp(leaf.SerialNumber) != 0 || !in.Questions[0].Asks(name) {
				t.Fatalf("the question was read as %+v", in)
			}
			der, err := r.Respond(in, []revocation.Answer{{Question: in.Questions[0], Status: c.status, At: at, Reason: c.reason}}, window)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ocsp.ParseResponseForCert(der, leaf, issuer)
			if err != nil {
				t.Fatal(err)
			}
			if got.Status != c.want || !got.ThisUpdate.Equal(window.This) || !got.NextUpdate.Equal(window.Next) || !got.ProducedAt.Equal(window.This) {
				t.Errorf("read back as %+v", got)
			}
			if c.status == revocation.Revoked && (!got.RevokedAt.Equal(at) || got.RevocationReason != int(c.reason)) {
				t.Errorf("revoked at %s for %d, want %s for %d", got.RevokedAt, got.RevocationReason, at, c.reason)
			}
			if _, err := ocsp.ParseResponseForCert(der, leaf, pki.Operational.Certificate()); err == nil {
				t.Error("the answer is taken for another CA's")
			}
		}
	}
}

func TestQuestionAboutAnotherIssuerIsNotTaken(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	in, err := revocation.ReadInquiry(ask(t, pki.Device("pi-1").Leaf, pki.Factory.Certificate(), crypto.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]*x509.Certificate{"another CA": pki.Operational.Certificate(), "a CA of the same name": pki.Foreign().Factory.Certificate()} {
		n, err := revocation.NameOf(other)
		if err != nil {
			t.Fatal(err)
		}
		if in.Questions[0].Asks(n) {
			t.Errorf("the question is taken for one about %s", name)
		}
	}
	unknown, err := revocation.ReadInquiry(ask(t, pki.Device("pi-1").Leaf, pki.Factory.Certificate(), crypto.SHA384))
	if err != nil {
		t.Fatal(err)
	}
	own, _ := revocation.NameOf(pki.Factory.Certificate())
	if unknown.Questions[0].Asks(own) {
		t.Error("a hash that isn't known names our issuer")
	}
}

func TestMalformedInquiriesAreRefused(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	good := ask(t, pki.Device("pi-1").Leaf, pki.Factory.Certificate(), crypto.SHA1)
	for name, der := range map[string][]byte{
		"nothing":           nil,
		"cut short":         good[:len(good)-1],
		"something behind":  append(slices.Clone(good), 0),
		"no question":       {0x30, 0x04, 0x30, 0x02, 0x30, 0x00},
		"too large":         bytes.Repeat([]byte{0x30}, revocation.MaxRequestSize+1),
		"indefinite length": {0x30, 0x80, 0, 0},
		"a certificate":     pki.Factory.Certificate().Raw,
	} {
		if in, err := revocation.ReadInquiry(der); err == nil {
			t.Errorf("%s was read as %+v", name, in)
		}
	}
}

func TestFailuresAreWhatTheGoLibraryTakesThemFor(t *testing.T) {
	t.Parallel()
	for failure, want := range map[revocation.Failure]ocsp.ResponseStatus{
		revocation.MalformedRequest: ocsp.Malformed, revocation.InternalError: ocsp.InternalError, revocation.TryLater: ocsp.TryLater, revocation.Unauthorized: ocsp.Unauthorized,
	} {
		_, err := ocsp.ParseResponse(failure.DER(), nil)
		if e, ok := err.(ocsp.ResponseError); !ok || e.Status != want {
			t.Errorf("failure %d is read as %v, want %v", failure, err, want)
		}
	}
}

func TestResponderRefusesAKeyThatIsNotItsCertificates(t *testing.T) {
	t.Parallel()
	pki := certtest.New(t)
	key, _ := issuance.NewKey()
	other, _ := issuance.NewKey()
	cert, err := pki.Factory.IssueResponder(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := revocation.NewResponder(cert, other); err == nil {
		t.Error("another key is taken")
	}
	if _, err := pki.Root.IssueResponder(key.Public()); err == nil {
		t.Error("the root has certified an OCSP signer")
	}
}

func FuzzReadInquiry(f *testing.F) {
	pki := certtest.New(f)
	der := ask(f, pki.Device("pi-1").Leaf, pki.Factory.Certificate(), crypto.SHA1)
	r := responder(f, pki)
	f.Add(der)
	f.Add(der[:30])
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := revocation.ReadInquiry(data)
		if err != nil {
			return
		}
		if len(in.Questions) == 0 || len(in.Questions) > revocation.MaxQuestions {
			t.Fatalf("%d questions", len(in.Questions))
		}
		// The Go library reads the first question; where it can, we have read the same.
		if theirs, err := ocsp.ParseRequest(data); err == nil && theirs.SerialNumber.Cmp(in.Questions[0].Serial) != 0 {
			t.Errorf("serial %s, the Go library reads %s", in.Questions[0].Serial, theirs.SerialNumber)
		}
		answers := make([]revocation.Answer, len(in.Questions))
		for i, q := range in.Questions {
			answers[i] = revocation.Answer{Question: q, Status: revocation.Good}
		}
		out, err := r.Respond(in, answers, window)
		if err != nil {
			t.Fatal(err)
		}
		if parsed, err := ocsp.ParseResponse(out, pki.Factory.Certificate()); len(answers) == 1 && in.Questions[0].Serial.Sign() >= 0 && (err != nil || parsed.SerialNumber.Cmp(in.Questions[0].Serial) != 0) {
			if in.Questions[0].Serial.Cmp(big.NewInt(0)) > 0 && knownHash(data) {
				t.Errorf("our answer can't be read: %v", err)
			}
		}
	})
}

// knownHash reports whether the Go library knows the request's hash.
func knownHash(request []byte) bool {
	_, err := ocsp.ParseRequest(request)
	return err == nil
}
