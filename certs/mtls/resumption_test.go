package mtls_test

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// resumable returns a hub, and a client that has a session ticket of it and has used one.
func resumable(t *testing.T, fleet *certtest.Fleet, version uint16, now func() time.Time, opts ...certtest.Option) (*hub, *tls.Config) {
	t.Helper()
	h := newHub(t, fleet, fleet.Trust(), now, identity.RoleDevice)
	client := clientConfig(fleet, fleet.Device("board-1", opts...).Certificate, version)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for _, resumed := range []bool{false, true} {
		o := connect(t, h.config, client)
		if err := errors.Join(o.serverErr, o.clientErr); err != nil {
			t.Fatal(err)
		}
		if o.client.DidResume != resumed || h.peer.Resumed != resumed || h.peer.Identity.ID != "board-1" {
			t.Fatalf("resumed: client %t, peer %t of %s; want %t", o.client.DidResume, h.peer.Resumed, h.peer.Identity, resumed)
		}
	}
	if h.calls != 2 {
		t.Fatalf("verified %d times in two handshakes", h.calls)
	}
	return h, client
}

func TestResumptionIsRefusedOnceTheIssuerIsNoLongerTrusted(t *testing.T) {
	t.Parallel()
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fleet := certtest.New(t)
			h, client := resumable(t, fleet, version, nil)
			without := fleet.Trust()
			without.Issuers = without.Issuers[:1] // the operational one stays
			if err := h.verifier.SetTrust(without); err != nil {
				t.Fatal(err)
			}
			o := connect(t, h.config, client)
			wantRefusal(t, o, mtls.ReasonUnknownIssuer)
			if !o.server.DidResume {
				t.Error("the refused handshake was a full one")
			}
			client.ClientSessionCache = nil
			wantRefusal(t, connect(t, h.config, client), mtls.ReasonUnknownIssuer)
		})
	}
}

func TestResumptionIsRefusedOnceTheCertificateHasExpired(t *testing.T) {
	t.Parallel()
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ahead atomic.Int64
			now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			h, client := resumable(t, certtest.New(t), version, now, certtest.WithValidity(time.Now(), time.Hour))
			ahead.Store(int64(2 * time.Hour))
			o := connect(t, h.config, client)
			wantRefusal(t, o, mtls.ReasonExpired)
			if !o.server.DidResume {
				t.Error("the refused handshake was a full one")
			}
		})
	}
}

func TestResumptionIsRefusedWhateverTheHubDecidesSince(t *testing.T) {
	t.Parallel()
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, client := resumable(t, certtest.New(t), version, nil)
			revoked := errors.New("revoked")
			h.config = h.config.Clone()
			h.config.VerifyConnection = func(tls.ConnectionState) error { return revoked }
			if o := connect(t, h.config, client); !errors.Is(o.serverErr, revoked) || o.clientErr == nil {
				t.Errorf("server %v, client %v", o.serverErr, o.clientErr)
			}
		})
	}
}

// The hub's certificate is held to its role in a resumed session too.
func TestClientVerifiesTheHubOnResumption(t *testing.T) {
	t.Parallel()
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, client := resumable(t, certtest.New(t), version, nil)
			verify, calls := client.VerifyConnection, 0
			client.VerifyConnection = func(cs tls.ConnectionState) error {
				if calls++; !cs.DidResume || len(cs.PeerCertificates) == 0 {
					t.Errorf("resumed %t with %d certificates", cs.DidResume, len(cs.PeerCertificates))
				}
				return verify(cs)
			}
			if o := connect(t, h.config, client); o.serverErr != nil || o.clientErr != nil || calls != 1 {
				t.Errorf("server %v, client %v, verified %d times", o.serverErr, o.clientErr, calls)
			}
		})
	}
}
