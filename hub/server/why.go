package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/listener"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/registry"
	"github.com/fleethub/fleethub/hub/why"
)

// chronicle writes down what becomes of connections, for hub why.
type chronicle struct{ h *Hub }

func (c chronicle) note(id identity.Identity, e why.Event) {
	registered := id.Role != identity.RoleDevice // there is no registry of others; their issuer is ours
	if !registered {
		_, registered = c.h.fleet.Status(id.ID)
	}
	c.h.book.Note(nameOf(id), registered, e)
}

// noteAdmitted is note for who was connected, and is registered therefore: a connect is
// no time for looking it up once more.
func (c chronicle) noteAdmitted(id identity.Identity, e why.Event) {
	c.h.book.Note(nameOf(id), true, e)
}

func nameOf(id identity.Identity) why.Name { return why.Name{Role: string(id.Role), ID: id.ID} }

// doorObserver is what the listener tells: metrics, the account of handshakes, and the
// chronicle.
type doorObserver struct {
	observer
	chronicle chronicle
}

var (
	_ listener.RefusalObserver   = doorObserver{}
	_ listener.HandshakeObserver = doorObserver{}
)

// OnRefusal implements listener.RefusalObserver.
func (o doorObserver) OnRefusal(r listener.Refusal) { o.chronicle.onHandshakeRefused(r) }

// onHandshakeRefused is told by the listener. A certificate of another issuer names a device
// whose own it need not be; who refuses us names nobody, and is guessed by its address.
func (c chronicle) onHandshakeRefused(r listener.Refusal) {
	e := why.Event{Kind: why.Refused, Reason: r.Reason, Detail: r.Detail, Address: why.Host(r.Remote), Own: true}
	id := r.Identity
	if id.ID == "" {
		id, e.Own = identity.Identity{Role: identity.RoleDevice, ID: r.Claimed}, false
	}
	if id.ID == "" {
		name, only := c.h.book.At(e.Address)
		if !only {
			return
		}
		id = identity.Identity{Role: identity.Role(name.Role), ID: name.ID}
		e.Detail += "; it has no name, and is the only one known from that address"
	}
	if r.Reason == listener.ReasonPeerAlert {
		e.Detail += c.h.certificateWindow()
	}
	c.note(id, e)
}

// certificateWindow says what a device's clock must say for it to accept the hub.
func (h *Hub) certificateWindow() string {
	own, err := h.certificate.Certificate()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("; the hub's certificate is good from %s to %s, so a clock more than %s slow refuses it",
		own.Leaf.NotBefore.UTC().Format(time.RFC3339), own.Leaf.NotAfter.UTC().Format(time.RFC3339), why.Span(h.now().Sub(own.Leaf.NotBefore)))
}

// OnRefusal implements broker.Observer.
func (c chronicle) OnRefusal(id identity.Identity, remote net.Addr, reason, detail string) {
	c.note(id, why.Event{Kind: why.Refused, Reason: reason, Detail: detail, Address: why.Host(remote), Own: true})
}

// OnConnected implements broker.Observer.
func (c chronicle) OnConnected(id identity.Identity, remote net.Addr, resumed bool) {
	reason := "full"
	if resumed {
		reason = "resumed"
	}
	c.noteAdmitted(id, why.Event{Kind: why.Connected, Reason: reason, Address: why.Host(remote), Own: true})
}

// OnEnded implements broker.Observer.
func (c chronicle) OnEnded(id identity.Identity, remote net.Addr, reason, detail string) {
	c.noteAdmitted(id, why.Event{Kind: why.Disconnected, Reason: reason, Detail: detail, Address: why.Host(remote), Own: true})
}

// OnDenied implements broker.Observer.
func (c chronicle) OnDenied(id identity.Identity, action policy.Action, topic, rule string) {
	c.noteAdmitted(id, why.Event{Kind: why.Denied, Reason: rule, Detail: fmt.Sprintf("it may not %s %.100q", action, topic), Own: true})
}

// refuseRenewal is refuseEST of a renewal that id asked for from that address (HOST:PORT),
// and writes it down.
func (h *Hub) refuseRenewal(address string, id identity.Identity, err error) error {
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok {
		id = refusal.Identity
	}
	err = h.refuseEST(err)
	if refusal, ok := errors.AsType[*est.Refusal](err); ok && id.ID != "" {
		host, _, splitErr := net.SplitHostPort(address)
		if splitErr != nil {
			host = address
		}
		// The door let in only whom a trusted issuer had named, and its handshake proved the key.
		chronicle{h}.note(id, why.Event{Kind: why.NotRenewed, Reason: refusal.Reason, Detail: refusal.Detail, Address: host, Own: true})
	}
	return err
}

// why returns an operator's answer about a device, registered or not.
func (h *Hub) why(ctx context.Context, id string) (admin.Why, error) {
	if err := identity.ValidID(id); err != nil {
		return admin.Why{}, fmt.Errorf("%w: %.80q can't be a device's ID", fleet.ErrUnknownDevice, id)
	}
	answer, err := h.standing(ctx, id, nil, true)
	if err != nil {
		return answer, err
	}
	for _, e := range h.book.Of(why.Name{Role: string(identity.RoleDevice), ID: id}) {
		answer.Events = append(answer.Events, eventOf(e))
	}
	if answer.State == "" && len(answer.Events) == 0 {
		return answer, fmt.Errorf("%w: %s, and nobody came under that name since %s", fleet.ErrUnknownDevice, id, answer.Since.UTC().Format(time.RFC3339))
	}
	return answer, nil
}

func eventOf(e why.Event) admin.WhyEvent {
	return admin.WhyEvent{At: e.At, First: e.First, Times: e.Times, Kind: string(e.Kind), Reason: e.Reason, Words: e.Words(), Address: e.Address, Own: e.Own}
}

// ownWhy answers a device that asks about itself, whatever its state: with a
// certificate of a trusted issuer, valid or within the grace, whose key its handshake has
// proved. It hears nothing of who came under its name without one, and not who or what
// words cut it off.
func (h *Hub) ownWhy(r *http.Request) (admin.Why, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return admin.Why{}, admin.Denied("a device asks about itself with its certificate; present one")
	}
	leaf := r.TLS.PeerCertificates[0]
	id, err := h.identify(leaf)
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok && refusal.Reason == mtls.ReasonRole {
		return admin.Why{}, admin.Denied("this is for devices to ask about themselves; operators use /v1/devices/ID/why")
	}
	if err != nil {
		return admin.Why{}, admin.Denied(err.Error())
	}
	answer, err := h.standing(r.Context(), id.ID, leaf, false)
	if err != nil {
		return answer, err
	}
	if at, err := http.ParseTime(r.Header.Get("Date")); err == nil {
		answer.Clock = why.Skew(at, h.now())
	}
	for _, e := range h.book.Of(why.Name{Role: string(identity.RoleDevice), ID: id.ID}) {
		if e.Own {
			answer.Events = append(answer.Events, eventOf(e))
		}
	}
	return answer, nil
}

// standing says whether a device may connect: with the certificate it presents, or, if
// that is nil, with the one it is to use.
func (h *Hub) standing(ctx context.Context, id string, leaf *x509.Certificate, toOperator bool) (admin.Why, error) {
	_, online := h.live(id)
	answer := admin.Why{ID: id, Online: online, Since: h.book.Since(), Events: []admin.WhyEvent{}}
	d, err := h.fleet.Device(ctx, id)
	if errors.Is(err, fleet.ErrUnknownDevice) {
		answer.Verdict = fmt.Sprintf("%s is not registered: import the manifest of the station that made it", id)
		return answer, nil
	}
	if err != nil {
		return answer, err
	}
	answer.State = d.State
	answer.Verdict, answer.MayConnect = h.verdict(&d, leaf, toOperator)
	return answer, nil
}

// verdict says whether the device may connect with that certificate, nil for the one it is to
// use, and in words why not.
func (h *Hub) verdict(d *registry.Device, leaf *x509.Certificate, toOperator bool) (text string, mayConnect bool) {
	if !d.State.MayConnect() {
		text = fmt.Sprintf("%s is %s", d.ID, d.State)
		if since := d.Since(); since.To == d.State && !since.At.IsZero() {
			text += " since " + since.At.UTC().Format(time.RFC3339)
			if since.Reason != "" {
				text += " (" + since.Reason + ")"
			}
			if toOperator {
				text += " by " + since.Actor
				if since.Note != "" {
					text += ": " + since.Note
				}
			}
		}
		if d.State == registry.StateQuarantined {
			text += ": it waits for approval (hub device approve " + d.ID + "), or for a manifest that names it"
		}
		return text, false
	}
	i := len(d.Certificates) - 1
	if leaf != nil {
		i = slices.IndexFunc(d.Certificates, func(c registry.Certificate) bool { return c.Fingerprint == identity.Fingerprint(leaf) })
	}
	if i < 0 {
		return fmt.Sprintf("%s is %s, and the certificate is not one that is registered for it: another enrolment, or another board's", d.ID, d.State), false
	}
	c := d.Certificates[i]
	switch c.Standing {
	case registry.StandingUsable:
		if text := h.unprotected(d, c); text != "" {
			return text, false
		}
		return fmt.Sprintf("%s is %s and may connect; its certificate %s is good until %s", d.ID, d.State, c.Serial, c.NotAfter.UTC().Format(time.RFC3339)), true
	case registry.StandingExpired:
		return fmt.Sprintf("its certificate %s expired on %s: it may renew it until %s and nothing else", c.Serial, c.NotAfter.UTC().Format(time.RFC3339), c.NotAfter.Add(h.config.Renewal.Grace).UTC().Format(time.RFC3339)), false
	case registry.StandingNotYetValid:
		return fmt.Sprintf("its certificate %s begins on %s, in %s: the hub's clock is slow, or that of who issued it was fast", c.Serial, c.NotBefore.UTC().Format(time.RFC3339), why.Span(c.NotBefore.Sub(h.now()))), false
	case registry.StandingSuperseded:
		return fmt.Sprintf("its certificate %s was superseded on %s: use the one that it renewed to", c.Serial, c.Superseded.UTC().Format(time.RFC3339)), false
	case registry.StandingUntrusted:
		return fmt.Sprintf("the issuing CA of its certificate %s is not trusted any more", c.Serial), false
	}
	return fmt.Sprintf("its certificate %s is %s", c.Serial, c.Standing), false
}

// withWhy serves GET /v1/why beside the API.
func (h *Hub) withWhy(api http.Handler) http.Handler {
	own := admin.WhyHandler(h.ownWhy)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/why" {
			own.ServeHTTP(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}
