package agent

import (
	"context"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/why"
)

// inquiry is what is known of why the hub refuses the device. Only the link's goroutine
// touches it.
type inquiry struct {
	cred  mtls.Credentials // of the last attempt to connect
	last  link.Answer      // the last that was for good
	about string           // the fingerprint of the certificate that it was about
}

// ask asks the hub why it refused the certificate of the last attempt. What is for good is
// asked once: a revoked device comes back now and then for years, and what it was
// told stays true of that certificate.
func (a *Agent) ask(ctx context.Context) link.Answer {
	i := &a.inquiry
	if a.config.HTTPS == "" || i.cred.Leaf == nil {
		return link.Answer{}
	}
	about := identity.Fingerprint(i.cred.Leaf)
	if i.about == about {
		return i.last
	}
	answer, err := why.Ask(ctx, a.config.HTTPS, i.cred)
	if err != nil {
		if ctx.Err() == nil {
			a.config.Log.Info("the hub can't be asked why it refuses this device", "err", err)
		}
		return link.Answer{}
	}
	told := link.Answer{Verdict: answer.Verdict, ForGood: answer.ForGood()}
	if told.ForGood {
		i.last, i.about = told, about
	}
	return told
}
