// Package est is enrolment over secure transport: RFC 7030 as RFC 8951 clarifies it.
//
// Handler is the server's side, an http.Handler that a station mounts for a factory's
// boards and a hub for renewals. It owns the protocol: paths, media types, base64,
// status codes, limits of size and rate. Who gets a certificate, and for which ID, is
// for two functions of its Config. Client is the board's side.
//
// /serverkeygen is refused, since a board's key is made on the board; /fullcmc is absent.
// Of a certificate request the handler hands on the key that it proves possession of,
// and refuses what no board asks for by accident (see Request).
package est

import (
	"errors"
	"time"
)

// Prefix is the path below which the operations are (RFC 7030 §3.2.2).
const Prefix = "/.well-known/est/"

// The operations.
const (
	opCACerts      = "cacerts"
	opCSRAttrs     = "csrattrs"
	opEnroll       = "simpleenroll"
	opReenroll     = "simplereenroll"
	opServerKeygen = "serverkeygen"
)

// The media types (RFC 7030 §4.1.3, §4.2.1, §4.2.3, §4.5.2).
const (
	typeCerts    = "application/pkcs7-mime"
	typeResponse = "application/pkcs7-mime; smime-type=certs-only"
	typeRequest  = "application/pkcs10"
	typeAttrs    = "application/csrattrs"
)

// Limits of what is read.
const (
	defaultMaxBody = 24 << 10  // of a request: base64 of 16 KiB, the most that package issuance reads
	maxAnswer      = 256 << 10 // of an answer
	maxCerts       = 32        // in an answer
)

// ErrMalformed is in the chain of errors about what doesn't have the form that the RFCs
// demand.
var ErrMalformed = errors.New("malformed")

// Refusal is why a request gets no certificate, for Enroll and Reenroll to return. It
// is told to the client as it is: Detail names no secret.
type Refusal struct {
	Status     int           // of the HTTP answer: 202, 4xx or 503
	Reason     string        // one word, for counters
	Detail     string        // one sentence
	RetryAfter time.Duration // for 202, 429 and 503; 0: the client decides
}

// Error returns the sentence.
func (r *Refusal) Error() string { return r.Detail }
