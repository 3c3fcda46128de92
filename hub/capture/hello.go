package capture

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// The extensions that are read (IANA TLS ExtensionType Values).
const (
	extServerName          = 0
	extSupportedGroups     = 10
	extSignatureAlgorithms = 13
	extALPN                = 16
	extSessionTicket       = 35
	extPreSharedKey        = 41
	extEarlyData           = 42
	extSupportedVersions   = 43
	extPSKModes            = 45
	extKeyShare            = 51
)

// share is a key share and its size.
type share struct {
	group tls.CurveID
	size  int
}

// clientHello is what a client offers.
type clientHello struct {
	legacy     uint16
	sessionID  []byte
	suites     []uint16
	versions   []uint16 // of the extension, or legacy alone
	groups     []uint16
	shares     []share
	schemes    []uint16
	serverName string
	protocols  []string
	tickets    bool  // TLS 1.2 tickets are understood
	ticket     int   // size of the TLS 1.2 ticket offered, 0 if none
	identities []int // sizes of the TLS 1.3 tickets offered
	pskModes   []uint8
	early      bool
	extensions []uint16
}

// parseClientHello reads a ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2). With an error
// it returns what it could read, or nil if that isn't worth showing.
func parseClientHello(s cryptobyte.String) (*clientHello, error) {
	h := &clientHello{}
	var random []byte
	var session, suites, compression cryptobyte.String
	if !s.ReadUint16(&h.legacy) || !s.ReadBytes(&random, 32) || !s.ReadUint8LengthPrefixed(&session) ||
		!s.ReadUint16LengthPrefixed(&suites) || !s.ReadUint8LengthPrefixed(&compression) {
		return nil, errors.New("it is cut off before its extensions")
	}
	h.sessionID = bytes.Clone(session)
	h.versions = []uint16{h.legacy}
	var ok bool
	if h.suites, ok = uint16s(suites); !ok {
		return nil, errors.New("its cipher suites can't be read")
	}
	return h, eachExtension(s, func(kind uint16, body cryptobyte.String) bool {
		h.extensions = append(h.extensions, kind)
		return h.extension(kind, body)
	})
}

// eachExtension reads the extensions that end a hello; none at all is fine.
func eachExtension(s cryptobyte.String, read func(kind uint16, body cryptobyte.String) bool) error {
	if s.Empty() {
		return nil
	}
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
		return errors.New("its extensions can't be read")
	}
	seen := map[uint16]bool{}
	for !list.Empty() {
		var kind uint16
		var body cryptobyte.String
		if !list.ReadUint16(&kind) || !list.ReadUint16LengthPrefixed(&body) {
			return errors.New("its extensions are cut off")
		}
		if seen[kind] {
			return fmt.Errorf("it has the extension %s twice", extensionName(kind))
		}
		seen[kind] = true
		if !read(kind, body) {
			return fmt.Errorf("its extension %s can't be read", extensionName(kind))
		}
	}
	return nil
}

func (h *clientHello) extension(kind uint16, s cryptobyte.String) bool {
	switch kind {
	case extServerName:
		var list, name cryptobyte.String
		var form uint8
		if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
			return false
		}
		for !list.Empty() {
			if !list.ReadUint8(&form) || !list.ReadUint16LengthPrefixed(&name) {
				return false
			}
			if form == 0 {
				h.serverName = text(string(name))
			}
		}
	case extSupportedGroups:
		return readUint16List(&s, &h.groups)
	case extSignatureAlgorithms:
		return readUint16List(&s, &h.schemes)
	case extALPN:
		var list, name cryptobyte.String
		if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
			return false
		}
		for !list.Empty() {
			if !list.ReadUint8LengthPrefixed(&name) {
				return false
			}
			if len(h.protocols) <= maxItems {
				h.protocols = append(h.protocols, text(string(name)))
			}
		}
	case extSessionTicket:
		h.tickets, h.ticket = true, len(s)
	case extSupportedVersions:
		var list cryptobyte.String
		if !s.ReadUint8LengthPrefixed(&list) || !s.Empty() {
			return false
		}
		versions, ok := uint16s(list)
		h.versions = versions
		return ok
	case extKeyShare:
		var list, key cryptobyte.String
		if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
			return false
		}
		for !list.Empty() {
			var group uint16
			if !list.ReadUint16(&group) || !list.ReadUint16LengthPrefixed(&key) {
				return false
			}
			if len(h.shares) <= maxItems {
				h.shares = append(h.shares, share{tls.CurveID(group), len(key)})
			}
		}
	case extPSKModes:
		var list cryptobyte.String
		if !s.ReadUint8LengthPrefixed(&list) || !s.Empty() {
			return false
		}
		h.pskModes = bytes.Clone(list)
	case extEarlyData:
		h.early = true
	case extPreSharedKey:
		return h.preSharedKey(s)
	}
	return true
}

func (h *clientHello) preSharedKey(s cryptobyte.String) bool {
	var list, identity, binders cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.ReadUint16LengthPrefixed(&binders) || !s.Empty() {
		return false
	}
	for !list.Empty() {
		var age uint32
		if !list.ReadUint16LengthPrefixed(&identity) || !list.ReadUint32(&age) {
			return false
		}
		if len(h.identities) <= maxItems {
			h.identities = append(h.identities, len(identity))
		}
	}
	return true
}

// newest returns the highest version offered, GREASE aside.
func (h *clientHello) newest() uint16 {
	newest := uint16(0)
	for _, v := range h.versions {
		if !isGREASE(v) {
			newest = max(newest, v)
		}
	}
	return newest
}

// offersTicket reports whether the client wants to resume a session.
func (h *clientHello) offersTicket() bool { return len(h.identities) > 0 || h.ticket > 0 }

func (h *clientHello) summary() string {
	s := "up to " + versionName(h.newest())
	if h.serverName != "" {
		s += ", for " + h.serverName
	}
	switch {
	case len(h.identities) > 0:
		s += fmt.Sprintf(", resumption with a ticket of %d bytes", h.identities[0])
	case h.ticket > 0:
		s += fmt.Sprintf(", resumption with a ticket of %d bytes", h.ticket)
	}
	return s
}

func (h *clientHello) fields() []Field {
	fields := []Field{
		field("versions", named(h.versions, versionName)...),
		field("legacy version", versionName(h.legacy)),
		field("cipher suites", named(h.suites, suiteName)...),
	}
	add := func(name string, values []string) {
		if len(values) > 0 {
			fields = append(fields, field(name, values...))
		}
	}
	add("groups", named(h.groups, func(v uint16) string { return groupName(tls.CurveID(v)) }))
	var shares []string
	for _, s := range h.shares {
		shares = append(shares, fmt.Sprintf("%s (%d bytes)", groupName(s.group), s.size))
	}
	add("key shares", shares)
	add("signature algorithms", named(h.schemes, func(v uint16) string { return signatureName(tls.SignatureScheme(v)) }))
	if h.serverName != "" {
		fields = append(fields, field("server name", h.serverName))
	} else {
		fields = append(fields, field("server name", "none: it dials an address, or its TLS library sends none"))
	}
	add("ALPN", h.protocols)
	if len(h.identities) > 0 {
		fields = append(fields, field("ticket", fmt.Sprintf("%d bytes (TLS 1.3 pre_shared_key)", h.identities[0])))
	}
	switch {
	case h.ticket > 0:
		fields = append(fields, field("ticket", fmt.Sprintf("%d bytes (TLS 1.2 session_ticket)", h.ticket)))
	case len(h.identities) == 0 && h.tickets:
		fields = append(fields, field("ticket", "none to offer, but would take one"))
	case len(h.identities) == 0 && len(h.pskModes) > 0:
		fields = append(fields, field("ticket", "none to offer, but would take one (TLS 1.3)"))
	case len(h.identities) == 0:
		fields = append(fields, field("ticket", "none, and takes none"))
	}
	if h.early {
		fields = append(fields, field("early data", "announced (0-RTT)"))
	}
	add("extensions", named(h.extensions, extensionName))
	return fields
}

// serverHello is what a server chose.
type serverHello struct {
	version   uint16
	suite     uint16
	sessionID []byte
	retry     bool // a HelloRetryRequest
	group     tls.CurveID
	share     int
	psk       bool
	protocol  string
	tickets   bool
}

// retryRandom marks a HelloRetryRequest (RFC 8446 §4.1.3).
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// parseServerHello reads a ServerHello or HelloRetryRequest, as parseClientHello does.
func parseServerHello(s cryptobyte.String) (*serverHello, error) {
	h := &serverHello{}
	var random []byte
	var session cryptobyte.String
	var compression uint8
	if !s.ReadUint16(&h.version) || !s.ReadBytes(&random, 32) || !s.ReadUint8LengthPrefixed(&session) ||
		!s.ReadUint16(&h.suite) || !s.ReadUint8(&compression) {
		return nil, errors.New("it is cut off before its extensions")
	}
	h.sessionID = bytes.Clone(session)
	h.retry = bytes.Equal(random, retryRandom[:])
	return h, eachExtension(s, func(kind uint16, s cryptobyte.String) bool {
		switch kind {
		case extSupportedVersions:
			return s.ReadUint16(&h.version) && s.Empty()
		case extKeyShare:
			var group uint16
			var key cryptobyte.String
			if !s.ReadUint16(&group) {
				return false
			}
			h.group = tls.CurveID(group)
			if h.retry {
				return s.Empty()
			}
			ok := s.ReadUint16LengthPrefixed(&key) && s.Empty()
			h.share = len(key)
			return ok
		case extPreSharedKey:
			h.psk = true
			var index uint16
			return s.ReadUint16(&index) && s.Empty()
		case extSessionTicket:
			h.tickets = true
		case extALPN:
			var list, name cryptobyte.String
			if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || !list.ReadUint8LengthPrefixed(&name) || !list.Empty() {
				return false
			}
			h.protocol = text(string(name))
		}
		return true
	})
}

func (h *serverHello) summary() string {
	s := versionName(h.version) + ", " + suiteName(h.suite)
	if h.group != 0 {
		s += ", " + groupName(h.group)
	}
	if h.psk {
		s += ", takes the ticket: resumed"
	}
	return s
}

func (h *serverHello) fields() []Field {
	fields := []Field{field("version", versionName(h.version)), field("cipher suite", suiteName(h.suite))}
	if h.group != 0 {
		name := groupName(h.group)
		if h.share > 0 {
			name += fmt.Sprintf(" (%d bytes)", h.share)
		}
		fields = append(fields, field("group", name))
	}
	if h.protocol != "" {
		fields = append(fields, field("ALPN", h.protocol))
	}
	if h.tickets {
		fields = append(fields, field("ticket", "will send one"))
	}
	return fields
}

// uint16s splits a list.
func uint16s(s cryptobyte.String) ([]uint16, bool) {
	list := make([]uint16, 0, len(s)/2)
	for !s.Empty() {
		var v uint16
		if !s.ReadUint16(&v) {
			return list, false
		}
		list = append(list, v)
	}
	return list, true
}

func readUint16List(s *cryptobyte.String, list *[]uint16) bool {
	var inner cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&inner) || !s.Empty() {
		return false
	}
	var ok bool
	*list, ok = uint16s(inner)
	return ok
}

// named returns the names of the values.
func named(values []uint16, name func(uint16) string) []string {
	names := make([]string, 0, len(values))
	for _, v := range values {
		names = append(names, name(v))
	}
	return names
}

// text makes a name from the wire fit for a terminal and for a line.
func text(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Map(printable, strings.ToValidUTF8(s, "�"))
}
