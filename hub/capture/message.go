package capture

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/fleethub/fleethub/certs/identity"
)

// The handshake messages of RFC 8446 §4 and RFC 5246 §7.4.
const (
	helloRequest       = 0
	clientHelloType    = 1
	serverHelloType    = 2
	newSessionTicket   = 4
	certificateType    = 11
	serverKeyExchange  = 12
	certificateRequest = 13
	serverHelloDone    = 14
	certificateVerify  = 15
	clientKeyExchange  = 16
)

// message reads a handshake message in the clear, and completes its event.
func (c *conversation) message(e *event, body []byte) error {
	s := cryptobyte.String(body)
	switch e.message {
	case clientHelloType:
		return c.clientHello(e, s)
	case serverHelloType:
		return c.serverHello(e, s)
	case certificateType:
		return c.certificate(e, s)
	case serverKeyExchange:
		return c.serverKeyExchange(e, s)
	case certificateRequest:
		return c.certificateRequest(e, s)
	case certificateVerify:
		var scheme uint16
		var signature cryptobyte.String
		if !s.ReadUint16(&scheme) || !s.ReadUint16LengthPrefixed(&signature) || !s.Empty() {
			return errors.New("its signature can't be read")
		}
		e.fields = append(e.fields, field("signature", fmt.Sprintf("%s, %d bytes", signatureName(tls.SignatureScheme(scheme)), len(signature))))
		e.note = "proves that the client has the certificate's key"
	case serverHelloDone:
		c.notAsked = !c.asked
	case newSessionTicket:
		var lifetime uint32
		var ticket cryptobyte.String
		if !s.ReadUint32(&lifetime) || !s.ReadUint16LengthPrefixed(&ticket) || !s.Empty() {
			return errors.New("its ticket can't be read")
		}
		e.note = fmt.Sprintf("a ticket of %d bytes for the next connect", len(ticket))
		e.fields = append(e.fields, field("lifetime", (time.Duration(lifetime)*time.Second).String()))
	}
	return nil
}

func (c *conversation) clientHello(e *event, s cryptobyte.String) error {
	hello, err := parseClientHello(s)
	if hello == nil {
		return err
	}
	if c.hellos++; c.hellos == 1 {
		c.client = e.end
	}
	c.hello = hello
	e.fields = hello.fields()
	e.note = hello.summary()
	return err
}

func (c *conversation) serverHello(e *event, s cryptobyte.String) error {
	hello, err := parseServerHello(s)
	if hello == nil {
		return err
	}
	c.server, c.version = hello, hello.version
	if hello.retry {
		c.retried = true
		e.name = "HelloRetryRequest"
		e.note = "the client's key share doesn't suit the server: one more round trip"
	} else {
		e.note = hello.summary()
		if hello.version == tls.VersionTLS13 {
			c.resumed = hello.psk
		}
	}
	e.fields = hello.fields()
	return err
}

// chain is what a side presented.
type chain struct {
	count int // 0: an empty message, no certificate
	leaf  *x509.Certificate
	id    identity.Identity // zero if the leaf names none
}

func (c *conversation) certificate(e *event, s cryptobyte.String) error {
	var list cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&list) || !s.Empty() {
		return errors.New("its list can't be read")
	}
	found := &chain{}
	c.certificates[e.end] = found
	total := 0
	for !list.Empty() {
		var der cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&der) {
			return fmt.Errorf("certificate %d of its list is cut off", found.count+1)
		}
		found.count++
		total += len(der)
		if found.count > maxItems {
			continue
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			e.fields = append(e.fields, field(fmt.Sprintf("certificate %d", found.count), fmt.Sprintf("%d bytes that are no certificate: %s", len(der), text(err.Error()))))
			continue
		}
		if found.count == 1 {
			found.leaf = cert
			found.id, _ = identity.FromCertificate(cert)
		}
		e.fields = append(e.fields, field(fmt.Sprintf("certificate %d", found.count), describe(cert, e.at)...))
	}
	switch found.count {
	case 0:
		e.note = "empty: it has no certificate to show"
	case 1:
		e.note = fmt.Sprintf("1 certificate of %d bytes", total)
	default:
		e.note = fmt.Sprintf("%d certificates of %d bytes", found.count, total)
	}
	return nil
}

// describe returns what a reader wants to know of a certificate, at that time.
func describe(cert *x509.Certificate, at time.Time) []string {
	values := []string{
		"subject " + text(cert.Subject.String()),
		"issuer " + text(cert.Issuer.String()),
		fmt.Sprintf("%d bytes, %s key", len(cert.Raw), cert.PublicKeyAlgorithm),
		fmt.Sprintf("valid %s to %s", cert.NotBefore.UTC().Format(time.DateTime), cert.NotAfter.UTC().Format(time.DateTime)),
	}
	if state := validity(cert, at); state != "" {
		values = append(values, state)
	}
	for i, uri := range cert.URIs {
		if i < 4 {
			values = append(values, "URI "+text(uri.String()))
		}
	}
	if len(cert.DNSNames) > 0 {
		values = append(values, "names "+text(strings.Join(cert.DNSNames, " ")))
	}
	return values
}

// validity says so if a certificate was not valid at that time; else it is empty.
func validity(cert *x509.Certificate, at time.Time) string {
	switch {
	case at.After(cert.NotAfter):
		return "EXPIRED when this was captured"
	case at.Before(cert.NotBefore):
		return "NOT YET VALID when this was captured"
	}
	return ""
}

func (c *conversation) serverKeyExchange(e *event, s cryptobyte.String) error {
	if c.server == nil || !ephemeral(c.server.suite) {
		return nil // not the elliptic kind, whose form is another
	}
	var form uint8
	var group, scheme uint16
	var point, signature cryptobyte.String
	const namedCurve = 3
	if !s.ReadUint8(&form) || form != namedCurve || !s.ReadUint16(&group) || !s.ReadUint8LengthPrefixed(&point) {
		return errors.New("its curve can't be read")
	}
	c.server.group = tls.CurveID(group)
	e.note = "curve " + groupName(c.server.group)
	e.fields = append(e.fields, field("key", fmt.Sprintf("%d bytes", len(point))))
	if c.version < tls.VersionTLS12 {
		return nil // no algorithm before the signature
	}
	if !s.ReadUint16(&scheme) || !s.ReadUint16LengthPrefixed(&signature) || !s.Empty() {
		return errors.New("its signature can't be read")
	}
	e.fields = append(e.fields, field("signature", fmt.Sprintf("%s, %d bytes", signatureName(tls.SignatureScheme(scheme)), len(signature))))
	return nil
}

func (c *conversation) certificateRequest(e *event, s cryptobyte.String) error {
	c.asked = true
	var kinds, schemes, names cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&kinds) {
		return errors.New("its certificate types can't be read")
	}
	var values []string
	for _, k := range kinds {
		values = append(values, certificateKind(k))
	}
	e.fields = append(e.fields, field("types", values...))
	if c.version >= tls.VersionTLS12 {
		if !s.ReadUint16LengthPrefixed(&schemes) {
			return errors.New("its signature algorithms can't be read")
		}
		list, ok := uint16s(schemes)
		if !ok {
			return errors.New("its signature algorithms can't be read")
		}
		e.fields = append(e.fields, field("signature algorithms", named(list, func(v uint16) string { return signatureName(tls.SignatureScheme(v)) })...))
	}
	if !s.ReadUint16LengthPrefixed(&names) || !s.Empty() {
		return errors.New("its acceptable CAs can't be read")
	}
	values = nil
	count := 0
	for !names.Empty() {
		var der cryptobyte.String
		if !names.ReadUint16LengthPrefixed(&der) {
			return errors.New("its acceptable CAs can't be read")
		}
		if count++; count <= maxItems+1 {
			values = append(values, distinguishedName(der))
		}
	}
	e.note = fmt.Sprintf("the client must show a certificate of one of %d CAs", count)
	if count == 0 {
		e.note = "the client must show a certificate; any CA may be tried"
		values = []string{"none named"}
	}
	e.fields = append(e.fields, field("acceptable CAs", values...))
	return nil
}

// distinguishedName prints a DER name.
func distinguishedName(der []byte) string {
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &sequence); err != nil || len(rest) > 0 {
		return fmt.Sprintf("%d bytes that are no name", len(der))
	}
	return text(sequence.String())
}
