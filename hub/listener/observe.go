package listener

import (
	"errors"
	"net"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
)

// Refusal is a connection that was turned away in its handshake, in full.
type Refusal struct {
	Reason string
	Detail string // one sentence for people
	Remote net.Addr

	// Claimed is the common name of the certificate presented, "" if none was. Nobody
	// has vouched for it.
	Claimed string
	// Identity is whom a trusted issuer has certified that certificate for; zero if
	// there is none such. Whether the peer holds its key is not known: certificates are
	// no secret, and the refusal came before the proof.
	Identity identity.Identity
}

// RefusalObserver is what an Observer may be, too. It is called as an Observer is.
type RefusalObserver interface {
	// OnRefusal reports a connection whose handshake was refused or failed.
	OnRefusal(Refusal)
}

// tell reports a refusal in full to an observer that wants it so.
func (l *Listener) tell(c *Conn, err error, reason, claimed, detail string) {
	observer, ok := l.config.Observer.(RefusalObserver)
	if !ok {
		return
	}
	r := Refusal{Reason: reason, Detail: detail, Remote: c.RemoteAddr(), Claimed: claimed}
	if refusal, ok := errors.AsType[*mtls.Refusal](err); ok {
		r.Identity = refusal.Identity
	}
	observer.OnRefusal(r)
}
