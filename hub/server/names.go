package server

import (
	"crypto/tls"
	"sync"
)

// suiteNames are the names of crypto/tls's cipher suites. tls.CipherSuiteName lists them
// all anew at every call, which shows at thousands of handshakes a second.
var suiteNames = sync.OnceValue(func() map[uint16]string {
	names := make(map[uint16]string)
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		names[s.ID] = s.Name
	}
	return names
})

func suiteName(id uint16) string {
	if name, ok := suiteNames()[id]; ok {
		return name
	}
	return tls.CipherSuiteName(id)
}
