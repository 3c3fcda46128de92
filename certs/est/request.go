package est

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// Request is one that passed the handler: well-formed, within the limits, and by whoever
// holds the private key that it names.
//
// Of CSR only the public key may be believed. Its names, its other extensions and its
// attributes are what the client would like; a certificate takes none of them. What no
// board asks for by accident was refused before: to be a CA, a common name with control
// characters, a field twice.
type Request struct {
	CSR     *x509.CertificateRequest
	Token   string            // the password of HTTP authentication, "" if none came
	Peer    *x509.Certificate // the client's TLS certificate, nil if none came: its key is proved, its chain is not
	Address string            // HOST:PORT of the client, for logs
}

// errRequest is in the chain of the refusals of checkRequest and checkNames.
var errRequest = errors.New("certificate request not accepted")

var basicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}

// checkRequest refuses what isn't ignored in a request of any kind.
func checkRequest(csr *x509.CertificateRequest) error {
	for _, r := range csr.Subject.CommonName {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return fmt.Errorf("%w: its common name has control characters in it", errRequest)
		}
	}
	var seen []asn1.ObjectIdentifier
	for _, e := range csr.Extensions {
		if slices.ContainsFunc(seen, e.Id.Equal) {
			return fmt.Errorf("%w: it asks for the extension %v twice", errRequest, e.Id)
		}
		seen = append(seen, e.Id)
		if !e.Id.Equal(basicConstraints) {
			continue
		}
		var constraints struct {
			IsCA    bool `asn1:"optional"`
			PathLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(e.Value, &constraints); err != nil || len(rest) > 0 {
			return fmt.Errorf("%w: the basic constraints it asks for are malformed", errRequest)
		}
		if constraints.IsCA {
			return fmt.Errorf("%w: it asks to be a CA, which no device is", errRequest)
		}
	}
	return nil
}

// CheckRenewal holds a request that came in an attested exchange to what the handler holds
// every other to: nothing is asked for that no board asks for by accident, and no other
// name than that of the certificate to be renewed. Its error is a *Refusal.
func CheckRenewal(csr *x509.CertificateRequest, current *x509.Certificate) error {
	err := checkRequest(csr)
	if err == nil {
		err = checkNames(csr, current)
	}
	if err != nil {
		return &Refusal{Status: http.StatusBadRequest, Reason: "request", Detail: err.Error()}
	}
	return nil
}

// checkNames refuses a request to renew a certificate that asks for another name than
// the certificate has (RFC 7030 §4.2.2). It need not repeat any.
func checkNames(csr *x509.CertificateRequest, current *x509.Certificate) error {
	if cn := csr.Subject.CommonName; cn != "" && cn != current.Subject.CommonName {
		return fmt.Errorf("%w: it asks for the common name %.80q, the certificate to be renewed has %.80q", errRequest, cn, current.Subject.CommonName)
	}
	foreign := func(has []*url.URL) func(*url.URL) bool {
		return func(u *url.URL) bool {
			return !slices.ContainsFunc(has, func(h *url.URL) bool { return h.String() == u.String() })
		}
	}
	if slices.ContainsFunc(csr.URIs, foreign(current.URIs)) {
		return fmt.Errorf("%w: it asks for a URI name that the certificate to be renewed doesn't have", errRequest)
	}
	return nil
}
