// Package policy answers one question: may this identity use this topic?
//
// The rules are a file (policy.yaml, whose comments are its manual; Document is its form),
// made into an immutable Policy. A decision is a pure function of the Policy, the Subject
// and the topic: safe for concurrent use, free of I/O, and free of allocations. Current
// holds the Policy in force, so that a reload is one store of a pointer.
//
// Deny wins, whatever the order of the rules, and what no rule allows is denied. What
// isn't known counts against the subject. Wildcards: an allow rule must cover all of a
// topic filter, a deny rule need only meet it; see pattern.go.
//
//   - document.go, compile.go: the file, and what becomes of it
//   - pattern.go, condition.go, list.go, bunch.go, decide.go: the decision
//   - explain.go, expect.go: the same for people: why, and is it what I meant?
package policy

import (
	"crypto/x509"
	_ "embed"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/identity"
)

// Action is what an identity wants to do with a topic.
type Action uint8

// The actions. Publish and Receive take a topic name, Subscribe a topic filter. Rules
// speak of publish and subscribe; the latter are about Receive, too.
const (
	Publish   Action = iota + 1 // send a message, or leave a will
	Subscribe                   // ask for every message that a filter matches
	Receive                     // be sent one message, now
)

// String returns the action as a word for logs and metrics.
func (a Action) String() string {
	switch a {
	case Publish:
		return "publish"
	case Subscribe:
		return "subscribe"
	case Receive:
		return "receive"
	}
	return "unknown"
}

// ParseAction is the inverse of String.
func ParseAction(word string) (Action, error) {
	for _, a := range []Action{Publish, Subscribe, Receive} {
		if a.String() == word {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%.40q is none of publish, subscribe, receive", word)
}

// Subject is who asks. Nobody may change what its slices and maps hold.
type Subject struct {
	Role identity.Role
	ID   string
	OU   []string // the organizational units of its certificate
	SAN  []string // the subject alternative names of its certificate, as Names writes them

	// Attributes returns what the registry knows about a device now, false if that can't
	// be told. It is asked only where a rule depends on it, so that a change of labels
	// takes effect with the next message. Nil: nothing is known, because there is nothing
	// to know, as of a service.
	Attributes func() (Attributes, bool)

	// Unseen is whether the certificate isn't at hand, so that OU and SAN aren't known.
	Unseen bool
	// Provisional is whether what isn't known counts in the subject's favour. It is for
	// deciding what to keep for somebody who is away, where the decision is made again,
	// without it, before anything is handed out.
	Provisional bool
}

// Attributes are what the registry knows about a device.
type Attributes struct {
	Labels     map[string]string
	Model      string
	Protection string // of the key: tpm, software
	Batch      string
	Station    string
}

// Names returns the subject alternative names of a certificate as rules have them:
// dns:NAME, ip:ADDRESS, email:ADDRESS, uri:URI.
func Names(c *x509.Certificate) []string {
	if c == nil {
		return nil
	}
	names := make([]string, 0, len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs))
	for _, n := range c.DNSNames {
		names = append(names, "dns:"+n)
	}
	for _, a := range c.IPAddresses {
		names = append(names, "ip:"+a.String())
	}
	for _, a := range c.EmailAddresses {
		names = append(names, "email:"+a)
	}
	for _, u := range c.URIs {
		names = append(names, "uri:"+u.String())
	}
	return names
}

// Decision is the answer. The zero value is a denial.
type Decision struct {
	Allowed bool
	// Rule names the rule that allowed or denied, or says why none allowed ("no-rule",
	// "reserved-topic", "invalid-topic", "invalid-filter", "unknown-role").
	Rule string
	// Number is the rule's place in its file, from 1; 0 if no rule decided.
	Number int
}

// Shipped returns the file that hub init writes, which is the policy of a hub without
// one. The caller owns it.
func Shipped() []byte { return []byte(shipped) }

//go:embed policy.yaml
var shipped string

// standard is the shipped policy, compiled when it is first needed.
var standard = sync.OnceValue(func() *Policy {
	p, err := Parse(Shipped())
	if err != nil {
		panic("the policy built into this program is wrong: " + err.Error()) // a test parses it
	}
	return p
})

// Default returns the policy of a hub without a file: the shipped file's.
func Default() *Policy { return standard() }

// Allow decides by the default policy.
func Allow(s Subject, a Action, topic string) Decision { return standard().Allow(s, a, topic) }

// Current is the policy in force. Its zero value has the default one. It is safe for
// concurrent use.
type Current struct{ p atomic.Pointer[Policy] }

// Policy returns the policy in force.
func (c *Current) Policy() *Policy {
	if p := c.p.Load(); p != nil {
		return p
	}
	return standard()
}

// Set puts a policy in force: every decision that begins from now on is by it.
func (c *Current) Set(p *Policy) { c.p.Store(p) }

// Allow decides by the policy in force.
func (c *Current) Allow(s Subject, a Action, topic string) Decision {
	return c.Policy().Allow(s, a, topic)
}
