package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// NoticeTLS is the what of the [System] topic that carries a [TLSNotice]:
// d/<id>/sys/tls.
const NoticeTLS = "tls"

// ChainLeaf as the Chain of a [TLSNotice] says that the hub has the issuer of
// the device's certificate: the device may present its leaf alone, which saves
// it some 500 bytes in each full handshake.
const ChainLeaf = "leaf"

// TLSNotice is the payload of the topic d/<id>/sys/tls, as JSON: what the hub
// tells a device about its TLS connections. The hub keeps it retained, and
// sends it at QoS 0 to a device that presented more than its leaf; a device
// subscribes only while it hasn't been told.
type TLSNotice struct {
	// Chain is what the hub needs of the device's certificate chain: ChainLeaf.
	Chain string `json:"chain"`
}

// maxTLSNotice bounds the payload of a notice.
const maxTLSNotice = 256

// ParseTLSNotice reads the payload of d/<id>/sys/tls. It takes one JSON object
// of at most 256 bytes with the fields above and nothing else: whatever isn't
// understood leaves the device with its whole chain, which always works.
func ParseTLSNotice(payload []byte) (TLSNotice, error) {
	if len(payload) > maxTLSNotice {
		return TLSNotice{}, fmt.Errorf("TLS notice of %d bytes, at most %d are allowed", len(payload), maxTLSNotice)
	}
	var n TLSNotice
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&n); err != nil {
		return TLSNotice{}, fmt.Errorf("TLS notice: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return TLSNotice{}, errors.New("TLS notice: something follows the JSON object")
	}
	if n.Chain != ChainLeaf {
		return TLSNotice{}, fmt.Errorf("TLS notice: chain is %.40q, this program knows only %q", n.Chain, ChainLeaf)
	}
	return n, nil
}
