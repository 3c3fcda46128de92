package issuance_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

func TestDeviceBudgetIsWhatTheRootWrote(t *testing.T) {
	fleet := certtest.New(t)
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	authority := func(kind identity.IssuerKind, n int) (*x509.Certificate, error) {
		return fleet.Root.IssueCA(issuance.CARequest{Kind: kind, Name: "bench-2", TrustDomain: certtest.TrustDomain, PublicKey: key.Public(), MaxDevices: n})
	}
	for written, want := range map[int]int{0: issuance.DefaultDevices, 1: 1, 250: 250, math.MaxInt32: math.MaxInt32} {
		ca, err := authority(identity.KindFactory, written)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := issuance.DeviceBudget(ca); err != nil || got != want {
			t.Errorf("written %d: got %d, %v, want %d", written, got, err, want)
		}
		if len(ca.UnhandledCriticalExtensions) > 0 {
			t.Errorf("written %d: a verifier that doesn't know the extension refuses the authority", written)
		}
	}
	for name, tt := range map[string]struct {
		kind identity.IssuerKind
		n    int
	}{
		"negative":  {identity.KindFactory, -1},
		"too large": {identity.KindFactory, math.MaxInt32 + 1},
		"a hub's":   {identity.KindOperational, 5},
	} {
		if _, err := authority(tt.kind, tt.n); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestUnreadableDeviceBudgetIsNone(t *testing.T) {
	id := asn1.ObjectIdentifier{2, 25, 1789415523, 1}
	for name, value := range map[string][]byte{
		"empty": {}, "zero": {2, 1, 0}, "negative": {2, 1, 0xff}, "trailing data": {2, 1, 5, 0}, "a string": {12, 1, '5'}, "33 bits": {2, 5, 1, 0, 0, 0, 0},
	} {
		ca := &x509.Certificate{Extensions: []pkix.Extension{{Id: id, Value: value}}}
		if n, err := issuance.DeviceBudget(ca); n != 0 || !errors.Is(err, issuance.ErrAuthority) {
			t.Errorf("%s: got %d, %v", name, n, err)
		}
	}
}
