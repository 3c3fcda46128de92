package est

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/issuance"
)

// asked is the extensions that a fuzzer's octets ask for: of each its number in a list
// of those that matter, whether it is critical, how long it is, and its value.
func asked(data []byte) (extensions []pkix.Extension) {
	known := []asn1.ObjectIdentifier{
		basicConstraints,
		{2, 5, 29, 15},               // key usage
		{2, 5, 29, 37},               // extended key usage
		{2, 5, 29, 17},               // subject alternative name
		{2, 5, 29, 32},               // certificate policies
		{2, 5, 29, 30},               // name constraints
		{1, 3, 6, 1, 5, 5, 7, 48, 1}, // nothing that is an extension
	}
	for len(data) >= 2 && len(extensions) < 16 {
		length := min(int(data[1]), len(data)-2)
		extensions = append(extensions, pkix.Extension{
			Id: known[int(data[0]&0x7f)%len(known)], Critical: data[0]&0x80 != 0, Value: data[2 : 2+length],
		})
		data = data[2+length:]
	}
	return extensions
}

// FuzzSignedRequest asks, in requests whose signature is good, for any extensions, any of
// them more than once: what comes back is refused or has of it the key alone.
func FuzzSignedRequest(f *testing.F) {
	f.Add("pi-1", []byte{1, 4, 3, 2, 1, 6, 1, 4, 3, 2, 1, 6})                                 // key usage twice
	f.Add("pi-1", []byte{0, 0x05, 0x30, 3, 1, 1, 0xff, 0, 2, 0x30, 0})                        // CA:true, then CA:false
	f.Add("pi-1", []byte{0x83, 8, 0x30, 6, 0x82, 4, 'e', 'v', 'i', 'l', 3, 4, 0x30, 2, 7, 0}) // names, twice
	f.Add("pi-1", []byte{2, 12, 0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1})                   // for servers
	f.Add("a\x00b", []byte{4, 2, 0x30, 0})
	f.Add("", []byte{0, 0})
	key, err := issuance.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	_, config := newAuthority(f)
	config.Refusals = Rate{PerSecond: 1e9, Burst: 1e9}
	h := NewHandler(config)
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		extensions := asked(data)
		subject, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(name)}}}})
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject, ExtraExtensions: extensions}, key)
		if err != nil {
			return // nothing that could be sent
		}
		response := send(h, "POST", Prefix+opEnroll, typeRequest, secret, strings.NewReader(encoded(der)), nil)
		answer, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		switch response.StatusCode {
		case 200:
			onlyItsKey(t, der, answer)
		case 400, 413:
			if len(answer) > 1000 || bytes.ContainsAny(answer[:len(answer)-1], "\x00\x1b\n") {
				t.Errorf("the error is %q", answer)
			}
			return
		default:
			t.Fatalf("%d %s", response.StatusCode, answer)
		}
		seen := make(map[string]bool)
		for _, e := range extensions {
			if seen[e.Id.String()] {
				t.Errorf("a request that asks for %v twice was granted", e.Id)
			}
			seen[e.Id.String()] = true
		}
	})
}
