package fleet

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

func TestFleetTrustsIssuersInForceAndTheirRenewals(t *testing.T) {
	r := newRig(t)
	other, _ := r.pki.IssuingCA(identity.KindFactory, "bench-2")
	namesake, _ := r.pki.IssuingCA(identity.KindFactory, certtest.StationName) // another key
	for _, tt := range []struct {
		name string
		ca   certtest.Credential
		want bool
	}{
		{"factory", r.pki.Device("a"), true},
		{"operational", r.pki.Service("a"), true},
		{"not one of them", r.pki.Device("a", certtest.WithIssuer(other)), false},
		{"the name with another key", r.pki.Device("a", certtest.WithIssuer(namesake)), false},
		{"another fleet's", r.pki.Foreign().Device("a"), false},
	} {
		if got := r.TrustsIssuer(tt.ca.Issuer); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	reread := *r.pki.Factory.Certificate()
	reread.Raw = nil // a renewal has another serial number and other dates, and so other octets
	if !SameIssuer(&reread, r.pki.Factory.Certificate()) || SameIssuer(&reread, namesake.Certificate()) {
		t.Error("an issuer is not told by its name and key")
	}
}

func TestDevicesOfAnIssuerAreThoseWhoseCertificateIsUsable(t *testing.T) {
	r := newRig(t)
	r.register("a", "b", "c")
	if _, err := r.Suspend(t.Context(), "b", "", ann); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke(t.Context(), "c", revocation.KeyCompromise, ann); err != nil {
		t.Fatal(err)
	}
	of := func(ca *x509.Certificate) (got []string) {
		if err := r.IssuedTo(t.Context(), IssuerID(ca), func(id string, state registry.State) { got = append(got, id+" "+string(state)) }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got, want := of(r.pki.Factory.Certificate()), []string{"a registered", "b suspended"}; !slices.Equal(got, want) {
		t.Errorf("visited %v, want %v", got, want)
	}
	if got := of(r.pki.Operational.Certificate()); len(got) > 0 {
		t.Errorf("by the hub's CA: %v", got)
	}
}

func TestAuditedChangeLeavesRequestAndOutcome(t *testing.T) {
	r := newRig(t)
	note := Note{Action: "issuer.remove", Subject: "issuer bench-1", Reason: "key stolen"}
	outcomes := func() string {
		page, err := r.Audit(t.Context(), registry.AuditQuery{})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, a := range page.Records {
			if a.Actor != ann.Name || a.Subject != note.Subject || a.Reason != note.Reason {
				t.Errorf("record %+v", a)
			}
			all = append(all, strings.TrimSpace(string(a.Outcome)+" "+a.Detail))
		}
		return strings.Join(all, ", ")
	}
	if err := r.Audited(t.Context(), ann, note, func() (string, error) {
		if got := outcomes(); got != "requested" {
			t.Errorf("while it is done the log says %q", got)
		}
		return "1 session closed", nil
	}); err != nil {
		t.Fatal(err)
	}
	impossible := errors.New("no such file")
	if err := r.Audited(t.Context(), ann, note, func() (string, error) { return "", impossible }); !errors.Is(err, impossible) {
		t.Errorf("got %v", err)
	}
	if got, want := outcomes(), "requested, done 1 session closed, requested, refused no such file"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

func TestAuditedChangeIsMadeThoughTheLogCantBeWritten(t *testing.T) {
	r := newRig(t)
	r.store.broken.Store(true)
	done := false
	err := r.Audited(t.Context(), ann, Note{Action: "issuer.remove", Subject: "issuer bench-1"}, func() (string, error) { done = true; return "", nil })
	r.store.broken.Store(false)
	if !done || !errors.Is(err, ErrNotAudited) {
		t.Errorf("done %v, error %v", done, err)
	}
}

func TestAuditedRefusesAReasonThatIsNoLine(t *testing.T) {
	r := newRig(t)
	err := r.Audited(t.Context(), ann, Note{Action: "tickets.rotate", Reason: "a\nb"}, func() (string, error) {
		t.Error("done all the same")
		return "", nil
	})
	if !errors.Is(err, ErrText) {
		t.Errorf("got %v", err)
	}
}
