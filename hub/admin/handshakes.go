package admin

import "time"

// Handshakes is the account of one device's TLS handshakes, completed and refused,
// since the hub started or last had room for it.
type Handshakes struct {
	Since       time.Time    `json:"since"` // of the first one counted
	Full        uint64       `json:"full"`
	Resumed     uint64       `json:"resumed"`
	BytesUp     int64        `json:"bytes_up"` // of those completed, TLS records without TCP
	BytesDown   int64        `json:"bytes_down"`
	CPUSeconds  float64      `json:"cpu_seconds"` // of the hub, for those CPUSampled
	CPUSampled  uint64       `json:"cpu_sampled"` // handshakes whose processor time was measured
	Refused     uint64       `json:"refused"`     // under this device's name, by whomever
	Last        *Handshake   `json:"last,omitempty"`
	LastRefusal *LastRefusal `json:"last_refusal,omitempty"`
}

// Handshake is one completed handshake.
type Handshake struct {
	At        time.Time `json:"at"`
	Resumed   bool      `json:"resumed"`
	TLS       string    `json:"tls"` // such as "TLS 1.3"
	Suite     string    `json:"suite"`
	Curve     string    `json:"curve,omitempty"`
	BytesUp   int64     `json:"bytes_up"`
	BytesDown int64     `json:"bytes_down"`
	Seconds   float64   `json:"seconds"` // from its beginning to its end, waiting included
}

// LastRefusal is the newest connection that was turned away under a device's name,
// which who was refused for the certificate may have no right to.
type LastRefusal struct {
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Address string    `json:"address"`
}
