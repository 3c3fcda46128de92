package protocol

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// NoticeRenewal is the what of the [System] topic that carries a [RenewalNotice]:
// d/<id>/sys/renewal.
const NoticeRenewal = "renewal"

// RenewalNotice is the payload of the topic d/<id>/sys/renewal, as JSON: the hub asks a
// device to renew its certificate now. The hub keeps it retained, at QoS 0, from three
// quarters of the certificate's lifetime on, by the hub's clock: a device that goes by its own would
// have renewed by then.
type RenewalNotice struct {
	// Certificate is the SHA-256 of the one to be renewed, in lower-case hex. A device
	// that has another by now has done it.
	Certificate string `json:"certificate"`
}

// maxRenewalNotice bounds the payload of a notice.
const maxRenewalNotice = 256

// ParseRenewalNotice reads the payload of d/<id>/sys/renewal: one JSON object of at most
// 256 bytes. Fields that it doesn't know are passed over.
func ParseRenewalNotice(payload []byte) (RenewalNotice, error) {
	if len(payload) > maxRenewalNotice {
		return RenewalNotice{}, fmt.Errorf("renewal notice of %d bytes, at most %d are allowed", len(payload), maxRenewalNotice)
	}
	var n RenewalNotice
	if err := json.Unmarshal(payload, &n); err != nil {
		return RenewalNotice{}, fmt.Errorf("renewal notice: %w", err)
	}
	if sum, err := hex.DecodeString(n.Certificate); err != nil || len(sum) != 32 || strings.ToLower(n.Certificate) != n.Certificate {
		return RenewalNotice{}, fmt.Errorf("renewal notice: %.80q is no SHA-256 in lower-case hex", n.Certificate)
	}
	return n, nil
}
