package station

import (
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// The certificates that a station signs with a key of its own, not with its authority.
func TestLinterFindsNoErrorInServerAndClaimCertificates(t *testing.T) {
	s, _ := bench(t)
	server, err := s.ServerCertificate("bench-1.factory.example", "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ledger().OpenOrder(time.Now(), ledger.Order{Kind: ledger.Imported, Name: "po-1"}, ledger.Line{IDs: []string{"pi-1"}}); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "claim")
	if _, err := s.MakeClaim(ClaimOrder{Name: "lot-7", Order: "po-1", Max: 1, Valid: time.Hour, Out: out}); err != nil {
		t.Fatal(err)
	}
	claim, err := pemfile.ReadCertificates(filepath.Join(out, claimCertFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, errors := range certtest.Lint(t, map[string]*x509.Certificate{"server": server.Leaf, "claim": claim[0]}) {
		t.Errorf("%s: %q", name, errors)
	}
}
