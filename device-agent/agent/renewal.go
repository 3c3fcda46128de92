package agent

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/fleethub/fleethub/device-agent/enrolment"
	"github.com/fleethub/fleethub/device-agent/keystore"
	"github.com/fleethub/fleethub/device-agent/link"
	"github.com/fleethub/fleethub/device-agent/renewal"
)

// renewalPort is the hub's HTTPS door, unless somebody says otherwise.
const renewalPort = "8443"

// RenewalURL returns where the device of a hub at HOST:PORT renews its certificate.
func RenewalURL(hub string) string {
	host, _, err := net.SplitHostPort(hub)
	if err != nil {
		return ""
	}
	return "https://" + net.JoinHostPort(host, renewalPort)
}

// CheckRenewal says what is wrong with a setting of [Config.Renewal], or returns nil.
func CheckRenewal(setting string) error {
	u, err := url.Parse(setting)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return fmt.Errorf("%.200q is neither off nor of the form https://HOST:PORT", setting)
	}
	return nil
}

func newRenewal(config *Config, reconnect func()) *renewal.Loop {
	ask := enrolment.Config{
		Dir: config.Dir, Server: config.Renewal, Stage: true,
		Notice: func(text string) { config.Log.Info(text) },
	}
	return renewal.New(renewal.Config{
		Dir: config.Dir, Reconnect: reconnect, Log: config.Log,
		Renew: func(ctx context.Context) error {
			_, err := enrolment.Renew(ctx, ask)
			return err
		},
	})
}

// runLink keeps the device connected until ctx ends; reconnect has it begin anew.
func (a *Agent) runLink(ctx context.Context) error {
	for ctx.Err() == nil {
		run, end := context.WithCancel(ctx)
		a.relink.Store(&end)
		err := a.link.Run(run)
		end()
		if err != nil {
			return err
		}
	}
	return nil
}

// reconnect ends the connection, or the wait for the next attempt, and has the link
// connect at once. It doesn't block.
func (a *Agent) reconnect() {
	if end := a.relink.Load(); end != nil {
		(*end)()
	}
}

// offered returns the credentials of a renewal that the hub has yet to take, nil if
// there are none.
func (a *Agent) offered() *keystore.Keystore {
	if a.renewal == nil {
		return nil
	}
	return a.renewal.Offer()
}

// renewalDue returns what to do when the hub asks for a renewal; nil if this agent renews
// nothing.
func (a *Agent) renewalDue() func() {
	if a.renewal == nil {
		return nil
	}
	return func() { a.renewal.AskSoon(a.inquiry.cred.Leaf) } // the link's goroutine calls it, as it does credentials
}

// tellRenewal passes on whether the hub took what it was offered.
func (a *Agent) tellRenewal(now link.Status) {
	switch {
	case a.renewal == nil:
	case now.State == link.StateConnected:
		a.renewal.Taken()
	case now.State == link.StateWaiting && now.LastFailure != nil && now.LastFailure.Slow():
		a.renewal.Refused()
	}
}
