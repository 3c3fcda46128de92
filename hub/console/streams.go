package console

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
)

// maxStreams bounds how many pages are kept fresh at a time, and eachStreams how many of one
// operator: one alone must not take them from all others.
const (
	maxStreams  = 64
	eachStreams = 8
)

// streams are the pages that are kept fresh. It is safe for concurrent use; the zero value is
// ready.
type streams struct {
	mu    sync.Mutex     // guards what follows
	taken int            // in all
	by    map[string]int // operator; who has none is not in it
}

// take gives an operator a stream until it calls free, once; nil if there is none left, or none
// for that operator.
func (s *streams) take(operator string) (free func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= maxStreams || s.by[operator] >= eachStreams {
		return nil
	}
	if s.by == nil {
		s.by = make(map[string]int)
	}
	s.taken++
	s.by[operator]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken--
		if s.by[operator]--; s.by[operator] == 0 {
			delete(s.by, operator)
		}
	}
}

// operator tells one of whom the API has accepted from another, by the name in the certificate
// or the subject of the token. It verifies nothing: before that it is whatever somebody claims.
func operator(r *http.Request) string {
	if token := r.Header.Get("Authorization"); token != "" {
		var claims struct {
			Issuer  string `json:"iss"`
			Subject string `json:"sub"`
		}
		if parts := strings.Split(token, "."); len(parts) == 3 {
			if data, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && json.Unmarshal(data, &claims) == nil && claims.Subject != "" {
				return "token " + claims.Issuer + " " + claims.Subject
			}
		}
		return "token" // of a form that the API doesn't take
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	leaf := r.TLS.PeerCertificates[0]
	if len(leaf.URIs) != 1 {
		return "certificate" // of a form that the API doesn't take
	}
	return "certificate " + leaf.URIs[0].String()
}
