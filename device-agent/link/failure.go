package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/fleethub/fleethub/certs/mtls"
)

// Kind classes failures by what helps against them.
type Kind string

// The kinds of failures. After the slow ones (see [Failure.Slow]) nothing
// changes until a person acts.
const (
	KindUnreachable Kind = "unreachable" // no TCP connection: network, name or hub down
	KindTimeout     Kind = "timeout"     // the hub didn't answer in time
	KindClosed      Kind = "closed"      // the hub closed before CONNACK without saying why
	KindBusy        Kind = "busy"        // the hub said: not now
	KindLost        Kind = "lost"        // an established connection broke
	KindLeaf        Kind = "leaf"        // the hub refuses the leaf certificate alone; the next attempt presents the chain
	KindRefused     Kind = "refused"     // the hub refuses this device or what it offers
	KindUntrusted   Kind = "untrusted"   // the device refuses the hub
	KindCredentials Kind = "credentials" // this machine's own key or certificates can't be used
)

// Failure is why an attempt failed or a connection ended, in words for the
// person in front of the device.
type Failure struct {
	Kind Kind `json:"kind"`
	// Reason says what happened, without a full stop.
	Reason string `json:"reason"`
	// Advice says what it probably means and what to do; may be empty.
	Advice string `json:"advice,omitempty"`
	// At is when, by this machine's clock.
	At time.Time `json:"at"`

	err     error
	mayPass bool // the hub, asked, said nothing that is for good
}

// Answer is what the hub says when a device that it has refused asks why.
type Answer struct {
	// Verdict is that in a sentence; "" if nobody could be asked.
	Verdict string
	// ForGood is whether no waiting helps.
	ForGood bool
}

// answered returns the failure with what the hub says in the place of what a refused
// device can guess. The one before may be in a Status already, and stays as it is.
func (f *Failure) answered(a Answer) *Failure {
	if a.Verdict == "" {
		return f
	}
	told := *f
	told.Advice, told.mayPass = "the hub says: "+a.Verdict, !a.ForGood
	return &told
}

// Error returns reason and advice in one line.
func (f *Failure) Error() string {
	if f.Advice == "" {
		return f.Reason
	}
	return f.Reason + ": " + f.Advice
}

// Unwrap returns the error below, which may be nil.
func (f *Failure) Unwrap() error { return f.err }

// Slow reports whether retrying soon is pointless, so that the link waits for
// [Config.RefusedRetry] instead of backing off from a second.
func (f *Failure) Slow() bool {
	return f.Kind == KindRefused || f.Kind == KindUntrusted || f.Kind == KindCredentials
}

// alertOf returns the TLS alert that the other side sent, if err is one.
// crypto/tls reports it as an unexported type in a net.OpError, so it is
// recognized by the text it shares with the exported tls.AlertError.
func alertOf(err error) (tls.AlertError, bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return 0, false
	}
	text := op.Err.Error()
	for code := range 256 {
		if alert := tls.AlertError(code); alert.Error() == text {
			return alert, true
		}
	}
	return 0, false
}

// attempt is what explain knows of a failed attempt to connect.
type attempt struct {
	address string
	cred    mtls.Credentials
	now     time.Time
	shaken  bool           // the handshake succeeded, as far as a client can see
	alert   tls.AlertError // valid if alerted
	alerted bool
	// leafAlone: the hub got to see the leaf alone, and there is more.
	leafAlone bool
	connack   byte // CONNACK return code, or packets.ErrNetworkError
}

// explain turns the error of an attempt into a Failure.
func (a attempt) explain(err error) *Failure {
	f := a.classify(err)
	f.At, f.err = a.now, err
	return f
}

func (a attempt) classify(err error) *Failure {
	if alert, ok := alertOf(err); ok && !a.alerted {
		a.alert, a.alerted = alert, true
	}
	if a.alerted {
		f := a.alertFailure()
		if f.Kind == KindRefused && a.leafAlone {
			f.Kind, f.Advice = KindLeaf, "the certificate was presented without its issuer's, as the hub had said would do; the agent tries again with both"
		}
		return f
	}
	var (
		dial   *dialError
		record tls.RecordHeaderError
		nerr   net.Error
	)
	switch {
	case errors.As(err, &dial):
		return &Failure{Kind: KindUnreachable, Reason: fmt.Sprintf("the hub %s can't be reached (%s)", a.address, bare(dial.err)),
			Advice: "check the network, the name and the port in --hub, and that the hub is running"}
	case errors.As(err, &record):
		return &Failure{Kind: KindUntrusted, Reason: fmt.Sprintf("%s doesn't speak TLS", a.address),
			Advice: "something else listens there; check the port in --hub (a hub's MQTT port is 8883)"}
	case a.connack != packets.Accepted && a.connack != packets.ErrNetworkError:
		return a.connackFailure()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &nerr) && nerr.Timeout():
		f := &Failure{Kind: KindTimeout, Reason: fmt.Sprintf("the hub %s took the connection but didn't answer in time", a.address),
			Advice: "it is overloaded or the network loses packets; the agent keeps trying"}
		if a.shaken { // it speaks TLS, and perhaps not MQTT
			f.Advice = "it is overloaded, the network loses packets, or the port in --hub is not its MQTT port (8883); the agent keeps trying"
		}
		return f
	case a.shaken:
		return &Failure{Kind: KindClosed, Reason: fmt.Sprintf("the hub %s closed the connection after the handshake without saying why (%s)", a.address, bare(err)),
			Advice: "it is stopping, overloaded, or refuses the device; " + a.askHub()}
	case !errors.As(err, &nerr) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		// Neither the network nor the hub ended the handshake, so this side did.
		return a.untrusted(err)
	default:
		return &Failure{Kind: KindClosed, Reason: fmt.Sprintf("the hub %s broke off the TLS handshake (%s)", a.address, bare(err)),
			Advice: "it is stopping or overloaded, or something between is in the way; the agent keeps trying"}
	}
}

// untrusted explains why this device refuses the hub.
func (a attempt) untrusted(err error) *Failure {
	f := &Failure{Kind: KindUntrusted, Reason: fmt.Sprintf("the hub %s isn't trusted (%s)", a.address, bare(err))}
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &unknown):
		f.Advice = "its certificate doesn't come from the root in ca.crt: this is another fleet's hub, or an impostor; compare ca.crt with the hub's"
	case errors.As(err, &hostname):
		f.Advice = "its certificate doesn't name the host in --hub; use a name that it has, or run the hub with that --hostname"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Advice = fmt.Sprintf("by this machine's clock it is %s; set the clock if that is wrong, else renew the hub's certificate", stamp(a.now))
	default:
		f.Advice = "its certificate is not one that this fleet's root issued to a hub; check --hub and ca.crt"
	}
	return f
}

// The TLS alerts by which a server refuses (RFC 8446 §6.2).
const (
	alertHandshakeFailure       = 40
	alertBadCertificate         = 42
	alertUnsupportedCertificate = 43
	alertCertificateRevoked     = 44
	alertCertificateExpired     = 45
	alertCertificateUnknown     = 46
	alertUnknownCA              = 48
	alertAccessDenied           = 49
	alertProtocolVersion        = 70
	alertInsufficientSecurity   = 71
	alertUnrecognizedName       = 112
	alertCertificateRequired    = 116
	alertNoApplicationProtocol  = 120
)

// alertFailure explains the hub's TLS alert. The alert seldom says all: a Go
// server sends "bad certificate" for everything that its policy refuses.
func (a attempt) alertFailure() *Failure {
	f := &Failure{Kind: KindRefused,
		Reason: fmt.Sprintf("the hub %s refused the certificate of %s (%s)", a.address, a.cred.Identity.ID, a.alert)}
	switch a.alert {
	case alertCertificateRevoked:
		f.Advice = "the certificate is revoked; provision the device anew if that was a mistake"
	case alertUnknownCA:
		f.Advice = fmt.Sprintf("the hub doesn't know the issuer %q: this is another fleet's hub, or the station isn't authorized there", issuerName(a.cred))
	case alertCertificateExpired:
		f.Advice = a.validity("the certificate isn't valid by the hub's clock; compare the clocks or provision the device anew")
	case alertBadCertificate, alertUnsupportedCertificate, alertCertificateUnknown, alertAccessDenied:
		f.Advice = a.validity("most likely the device is revoked or suspended, its manifest isn't imported at this hub, or the hub doesn't trust the station that issued it; " + a.askHub())
	case alertCertificateRequired:
		f.Advice = "it didn't get a certificate; check that device.crt is complete"
	case alertHandshakeFailure, alertProtocolVersion, alertInsufficientSecurity, alertNoApplicationProtocol:
		f.Reason = fmt.Sprintf("the hub %s refused the TLS versions or suites on offer (%s)", a.address, a.alert)
		f.Advice = "one of the two is too old, or this isn't a hub's MQTT port; check --hub"
	case alertUnrecognizedName:
		f.Reason = fmt.Sprintf("the hub %s doesn't go by that name (%s)", a.address, a.alert)
		f.Advice = "check the name in --hub"
	default:
		f.Kind = KindClosed
		f.Reason = fmt.Sprintf("the hub %s broke off with a TLS alert (%s)", a.address, a.alert)
		f.Advice = "the hub's log says more; the agent keeps trying"
	}
	return f
}

// connackFailure explains a CONNACK return code [MQTT-3.2.2-4].
func (a attempt) connackFailure() *Failure {
	f := &Failure{Kind: KindRefused}
	id := a.cred.Identity.ID
	switch a.connack {
	case packets.ErrRefusedIDRejected:
		f.Reason = fmt.Sprintf("the hub %s rejected the client identifier %s", a.address, id)
		f.Advice = "it must equal the certificate's identity at a Fleethub hub, and here it does: is --hub another kind of broker? " + a.askHub()
	case packets.ErrRefusedBadProtocolVersion:
		f.Reason = fmt.Sprintf("the hub %s doesn't speak MQTT 3.1.1", a.address)
		f.Advice = "check --hub; a Fleethub hub does"
	case packets.ErrRefusedServerUnavailable:
		f.Kind = KindBusy
		f.Reason = fmt.Sprintf("the hub %s isn't taking connections now", a.address)
		f.Advice = "it is starting, stopping or full; the agent keeps trying"
	default:
		f.Reason = fmt.Sprintf("the hub %s doesn't authorize %s", a.address, id)
		f.Advice = a.validity("most likely the device is suspended, revoked or unknown there; " + a.askHub())
	}
	return f
}

// validity puts what this machine knows about its own certificate's dates
// before the guesses: those it needn't guess.
func (a attempt) validity(otherwise string) string {
	if leaf := a.cred.Leaf; leaf != nil {
		switch {
		case a.now.After(leaf.NotAfter):
			return fmt.Sprintf("the certificate expired at %s and by this machine's clock it is %s; provision the device anew, or set the clock if it is wrong", stamp(leaf.NotAfter), stamp(a.now))
		case a.now.Before(leaf.NotBefore):
			return fmt.Sprintf("the certificate is valid from %s and by this machine's clock it is %s; set the clock", stamp(leaf.NotBefore), stamp(a.now))
		}
	}
	return otherwise
}

func (a attempt) askHub() string {
	return fmt.Sprintf("`hub device show %s` and the hub's log say which", a.cred.Identity.ID)
}

func issuerName(cred mtls.Credentials) string {
	if cred.Leaf == nil {
		return "?"
	}
	return cred.Leaf.Issuer.CommonName
}

// bare cuts the wrapping that repeats what the sentence around it says.
func bare(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, io.EOF):
		return "end of stream"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return strings.TrimPrefix(err.Error(), "network Error : ") // paho's
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
