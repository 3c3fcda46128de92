package link

import (
	"crypto/tls"

	"github.com/fleethub/fleethub/certs/mtls"
)

// ticketBox holds the TLS sessions that one set of credentials has earned. A
// new certificate or trust bundle starts with a new one: a ticket stands for
// the old certificate and for a hub that the old bundle vouched for.
type ticketBox struct {
	open  func(mtls.Credentials) tls.ClientSessionCache
	cred  mtls.Credentials
	cache tls.ClientSessionCache
}

func (b *ticketBox) cacheFor(cred mtls.Credentials) tls.ClientSessionCache {
	if b.cache == nil || !sameCredentials(b.cred, cred) {
		b.cred, b.cache = cred, b.open(cred)
	}
	return b.cache
}

// inMemory is Config.Sessions for who gives none.
func inMemory(mtls.Credentials) tls.ClientSessionCache { return tls.NewLRUClientSessionCache(1) }

func sameCredentials(a, b mtls.Credentials) bool {
	if !a.Leaf.Equal(b.Leaf) || len(a.Roots) != len(b.Roots) {
		return false
	}
	for i := range a.Roots {
		if !a.Roots[i].Equal(b.Roots[i]) {
			return false
		}
	}
	return true
}
