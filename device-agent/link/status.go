package link

import (
	"crypto/tls"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
)

// State is what a link is doing.
type State string

// The states of a link.
const (
	StateStopped    State = "stopped"    // Run isn't running
	StateConnecting State = "connecting" // an attempt is under way
	StateConnected  State = "connected"  // the hub sent CONNACK
	StateWaiting    State = "waiting"    // for the next attempt
)

// Status is a snapshot of a link. It shares nothing that changes.
type Status struct {
	State State     `json:"state"`
	Since time.Time `json:"since"` // of State
	Hub   string    `json:"hub"`

	Attempts uint64 `json:"attempts"`           // to connect, of this run
	Full     uint64 `json:"full_handshakes"`    // that ended in CONNACK
	Resumed  uint64 `json:"resumed_handshakes"` // likewise, by a session ticket

	// Handshakes is what connecting has cost: from the first octet to CONNACK,
	// or to the end of an attempt that failed. Traffic is of everything.
	Handshakes Traffic `json:"handshakes_bytes"`
	Traffic    Traffic `json:"traffic_bytes"`

	Profile mtls.Profile `json:"tls_profile"`
	Chain   ChainMode    `json:"chain,omitempty"` // presented in the next full handshake; empty before the first attempt

	Handshake   *Handshake `json:"handshake,omitempty"`    // of the last connection
	NextAttempt time.Time  `json:"next_attempt,omitzero"`  // while waiting
	LastFailure *Failure   `json:"last_failure,omitempty"` // of any kind
	LastRefusal *Failure   `json:"last_refusal,omitempty"` // the last that was Slow
}

// Handshake is how a connection came about.
type Handshake struct {
	Protocol string        `json:"protocol"` // "TLS 1.3"
	Suite    string        `json:"suite"`
	Curve    string        `json:"curve,omitempty"`
	Resumed  bool          `json:"resumed"`
	TLS      time.Duration `json:"tls_ns"`     // dialling and TLS handshake
	Connect  time.Duration `json:"connect_ns"` // until CONNACK
	Bytes    Traffic       `json:"bytes"`      // likewise
}

func handshakeOf(cs tls.ConnectionState, took time.Duration) Handshake {
	h := Handshake{
		Protocol: tls.VersionName(cs.Version),
		Suite:    tls.CipherSuiteName(cs.CipherSuite),
		Resumed:  cs.DidResume,
		TLS:      took,
	}
	if cs.CurveID != 0 {
		h.Curve = cs.CurveID.String()
	}
	return h
}
