package est

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "open sesame"

// authority is a backend that gives whoever knows the secret, or has a device's
// certificate of its fleet, a certificate for board-7.
type authority struct {
	fleet *certtest.Fleet
	sent  int
}

func (a *authority) issue(r Request) (Answer, error) {
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, "board-7")
	if err != nil {
		return Answer{}, err
	}
	cert, err := a.fleet.Factory.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: r.CSR.PublicKey})
	return Answer{Certificate: cert, Sent: func() { a.sent++ }}, err
}

func (a *authority) enroll(_ context.Context, r Request) (Answer, error) {
	switch r.Token {
	case secret:
		return a.issue(r)
	case "wait":
		return Answer{}, &Refusal{Status: http.StatusAccepted, Reason: "pending", Detail: "somebody has to approve it", RetryAfter: 90 * time.Second}
	case "fault":
		return Answer{}, errors.New("the disk with the name of a secret file is full")
	}
	return Answer{}, &Refusal{Status: http.StatusUnauthorized, Reason: "token", Detail: "no such token"}
}

func (a *authority) reenroll(_ context.Context, r Request) (Answer, error) {
	if err := r.Peer.CheckSignatureFrom(a.fleet.Factory.Certificate()); err != nil {
		return Answer{}, &Refusal{Status: http.StatusForbidden, Reason: "issuer", Detail: "it is not ours"}
	}
	return a.issue(r)
}

func newAuthority(t testing.TB) (*authority, Config) {
	t.Helper()
	a := &authority{fleet: certtest.New(t)}
	return a, Config{
		CACerts:  func() []*x509.Certificate { return append(a.fleet.Bundle(), a.fleet.Factory.Certificate()) },
		ParseCSR: issuance.ParseCSR, Enroll: a.enroll, Reenroll: a.reenroll,
	}
}

// send has the handler answer one request over TLS.
func send(h http.Handler, method, path, mediaType, token string, body io.Reader, peer *x509.Certificate) *http.Response {
	r := httptest.NewRequest(method, path, body)
	r.TLS = &tls.ConnectionState{}
	if peer != nil {
		r.TLS.PeerCertificates = []*x509.Certificate{peer}
	}
	if mediaType != "" {
		r.Header.Set("Content-Type", mediaType)
	}
	if token != "" {
		r.SetBasicAuth("board", token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func newCSR(t testing.TB) ([]byte, *x509.CertificateRequest) {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := issuance.NewCSR(key, "any")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return der, csr
}

func encoded(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

func TestAnswersHaveTheStatusAndHeadersOfTheRFC(t *testing.T) {
	a, config := newAuthority(t)
	h := NewHandler(config)
	der, _ := newCSR(t)
	good := encoded(der)
	enroll, reenroll := Prefix+opEnroll, Prefix+opReenroll
	device := a.fleet.Device("any")
	foreign := a.fleet.Foreign().Device("any")
	for _, c := range []struct {
		name, method, path, mediaType, token, body string
		peer                                       *x509.Certificate
		status                                     int
		header                                     [2]string
		say                                        string
	}{
		{"cacerts", "GET", Prefix + opCACerts, "", "", "", nil, 200, [2]string{"Content-Type", "application/pkcs7-mime"}, ""},
		{"cacerts with credentials", "GET", Prefix + opCACerts, "", secret, "", device.Leaf, 200, [2]string{"Content-Type", "application/pkcs7-mime"}, ""},
		{"cacerts by POST", "POST", Prefix + opCACerts, "", "", "", nil, 405, [2]string{"Allow", "GET"}, "use GET"},
		{"csrattrs", "GET", Prefix + opCSRAttrs, "", "", "", nil, 200, [2]string{"Content-Type", "application/csrattrs"}, ""},
		{"enrol", "POST", enroll, typeRequest, secret, good, nil, 200, [2]string{"Content-Type", "application/pkcs7-mime; smime-type=certs-only"}, ""},
		{"enrol with parameter", "POST", enroll, "Application/PKCS10; charset=us-ascii", secret, good, nil, 200, [2]string{"Content-Transfer-Encoding", "base64"}, ""},
		{"enrol with lines", "POST", enroll, typeRequest, secret, string(encodeBase64(der)), nil, 200, [2]string{}, ""},
		{"enrol by GET", "GET", enroll, typeRequest, secret, "", nil, 405, [2]string{"Allow", "POST"}, ""},
		{"no credential", "POST", enroll, typeRequest, "", good, nil, 401, [2]string{"Www-Authenticate", `Basic realm="enrolment", charset="UTF-8"`}, "token"},
		{"wrong token", "POST", enroll, typeRequest, "guess", good, nil, 401, [2]string{"Www-Authenticate", `Basic realm="enrolment", charset="UTF-8"`}, "no such token"},
		{"pending", "POST", enroll, typeRequest, "wait", good, nil, 202, [2]string{"Retry-After", "90"}, "approve"},
		{"fault", "POST", enroll, typeRequest, "fault", good, nil, 500, [2]string{"Content-Type", "text/plain; charset=utf-8"}, "its log says why"},
		{"no media type", "POST", enroll, "", secret, good, nil, 415, [2]string{}, typeRequest},
		{"another media type", "POST", enroll, "application/pkcs7-mime", secret, good, nil, 415, [2]string{}, typeRequest},
		{"PEM", "POST", enroll, typeRequest, secret, "-----BEGIN CERTIFICATE REQUEST-----\n" + good + "\n-----END CERTIFICATE REQUEST-----\n", nil, 400, [2]string{}, "PEM"},
		{"DER", "POST", enroll, typeRequest, secret, string(der), nil, 400, [2]string{}, "base64"},
		{"nothing", "POST", enroll, typeRequest, secret, "", nil, 400, [2]string{}, "base64"},
		{"cut padding", "POST", enroll, typeRequest, secret, strings.TrimRight(encoded(der[:len(der)-1]), "="), nil, 400, [2]string{}, ""},
		{"two requests", "POST", enroll, typeRequest, secret, encoded(append(bytes.Clone(der), der...)), nil, 400, [2]string{}, ""},
		{"a megabyte", "POST", enroll, typeRequest, secret, strings.Repeat("A", 1<<20), nil, 413, [2]string{}, "at most"},
		{"renew", "POST", reenroll, typeRequest, "", good, device.Leaf, 200, [2]string{"Content-Type", "application/pkcs7-mime; smime-type=certs-only"}, ""},
		{"renew without certificate", "POST", reenroll, typeRequest, secret, good, nil, 403, [2]string{}, "none was presented"},
		{"renew with another CA's", "POST", reenroll, typeRequest, "", good, foreign.Leaf, 403, [2]string{}, "not ours"},
		{"renew as another", "POST", reenroll, typeRequest, "", good, a.fleet.Device("other").Leaf, 400, [2]string{}, `the certificate to be renewed has "other"`},
		{"serverkeygen", "POST", Prefix + opServerKeygen, typeRequest, secret, good, nil, 403, [2]string{}, "never leaves"},
		{"fullcmc", "POST", Prefix + "fullcmc", "application/pkcs7-mime", secret, good, nil, 404, [2]string{}, ""},
		{"label", "GET", Prefix + "label/cacerts", "", "", "", nil, 404, [2]string{}, ""},
		{"slash", "GET", Prefix + "cacerts/", "", "", "", nil, 404, [2]string{}, ""},
		{"elsewhere", "GET", "/cacerts", "", "", "", nil, 404, [2]string{}, ""},
		{"TPM, not set up", "POST", Prefix + opChallenge, typeExchange, secret, "{}", nil, 403, [2]string{}, "simpleenroll"},
	} {
		t.Run(c.name, func(t *testing.T) {
			response := send(h, c.method, c.path, c.mediaType, c.token, strings.NewReader(c.body), c.peer)
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != c.status || c.header[0] != "" && response.Header.Get(c.header[0]) != c.header[1] || !strings.Contains(string(body), c.say) {
				t.Errorf("%d %v\n%s", response.StatusCode, response.Header, body)
			}
			if response.StatusCode >= 400 && (response.Header.Get("Content-Type") != "text/plain; charset=utf-8" || bytes.Count(body, []byte("\n")) != 1) {
				t.Errorf("the error is not one line of text: %v %q", response.Header, body)
			}
			if strings.Contains(string(body), "secret file") {
				t.Error("a fault of the server is told to the client")
			}
		})
	}
}

func TestEnrolledCertificateIsTheLeafAlone(t *testing.T) {
	a, config := newAuthority(t)
	h := NewHandler(config)
	der, csr := newCSR(t)
	response := send(h, "POST", Prefix+opEnroll, typeRequest, secret, strings.NewReader(encoded(der)), nil)
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	message, err := decodeBase64(body)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := decodeCerts(message)
	if err != nil || len(certs) != 1 || !bytes.Equal(certs[0].RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
		t.Fatalf("%v %v", certs, err)
	}
	if a.sent != 1 {
		t.Errorf("Sent was called %d times", a.sent)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	_, config := newAuthority(t)
	w := httptest.NewRecorder()
	NewHandler(config).ServeHTTP(w, httptest.NewRequest("GET", Prefix+opCACerts, nil))
	if w.Code != http.StatusForbidden {
		t.Error(w.Code)
	}
}

func TestHandlerWithoutAFunctionRefusesItsOperation(t *testing.T) {
	_, config := newAuthority(t)
	config.Enroll, config.Reenroll = nil, nil
	config.CACerts = func() []*x509.Certificate { return nil }
	config.Attributes = []byte{}
	h := NewHandler(config)
	for path, want := range map[string]int{opEnroll: 403, opReenroll: 403} {
		if r := send(h, "POST", Prefix+path, typeRequest, secret, strings.NewReader("x"), nil); r.StatusCode != want {
			t.Errorf("%s: %d", path, r.StatusCode)
		}
	}
	if r := send(h, "GET", Prefix+opCACerts, "", "", nil, nil); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("cacerts: %d", r.StatusCode)
	}
	if r := send(h, "GET", Prefix+opCSRAttrs, "", "", nil, nil); r.StatusCode != 204 {
		t.Errorf("csrattrs: %d", r.StatusCode)
	}
}

func TestAddressThatIsRefusedTooOftenWaits(t *testing.T) {
	_, config := newAuthority(t)
	now := time.Now()
	config.Now = func() time.Time { return now }
	config.Refusals = Rate{PerSecond: 0.5, Burst: 3}
	h := NewHandler(config)
	der, _ := newCSR(t)
	try := func(address, token string) *http.Response {
		r := httptest.NewRequest("POST", Prefix+opEnroll, strings.NewReader(encoded(der)))
		r.TLS, r.RemoteAddr = &tls.ConnectionState{}, address
		r.Header.Set("Content-Type", typeRequest)
		r.SetBasicAuth("", token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result()
	}
	for range 50 { // what succeeds costs nothing
		if r := try("192.0.2.1:1000", secret); r.StatusCode != 200 {
			t.Fatal(r.StatusCode)
		}
	}
	for range 3 {
		if r := try("192.0.2.1:1000", "guess"); r.StatusCode != 401 {
			t.Fatal(r.StatusCode)
		}
	}
	r := try("192.0.2.1:2000", secret)
	if r.StatusCode != 429 || r.Header.Get("Retry-After") != "2" {
		t.Errorf("after three guesses: %d, Retry-After %q", r.StatusCode, r.Header.Get("Retry-After"))
	}
	if r := try("192.0.2.2:1000", secret); r.StatusCode != 200 {
		t.Errorf("another address: %d", r.StatusCode)
	}
	now = now.Add(2 * time.Second)
	if r := try("192.0.2.1:1000", secret); r.StatusCode != 200 {
		t.Errorf("after the wait: %d", r.StatusCode)
	}
}

func TestRequestsOfOneAddressAreLimited(t *testing.T) {
	_, config := newAuthority(t)
	now := time.Now()
	config.Now = func() time.Time { return now }
	config.Requests = Rate{PerSecond: 1, Burst: 2}
	h := NewHandler(config)
	get := func(address string) int {
		r := httptest.NewRequest("GET", Prefix+opCACerts, nil)
		r.TLS, r.RemoteAddr = &tls.ConnectionState{}, address
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	// An IPv6 host has all addresses of its network, and counts as one.
	for i, want := range []int{200, 200, 429} {
		if got := get([]string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::ffff:1]:1"}[i]); got != want {
			t.Errorf("request %d: %d", i, got)
		}
	}
	if got := get("[2001:db8:0:1::1]:1"); got != 200 {
		t.Errorf("another network: %d", got)
	}
}

func TestLimiterRemembersABoundedNumberOfAddresses(t *testing.T) {
	now := time.Now()
	l := limiter{rate: Rate{PerSecond: 1, Burst: 1}, now: func() time.Time { return now }}
	for i := range 3 * maxAddresses {
		l.take(fmt.Sprint(i))
	}
	if len(l.buckets) > maxAddresses {
		t.Errorf("%d addresses", len(l.buckets))
	}
}

func TestMoreRequestsThanTurnsHearToComeAgain(t *testing.T) {
	_, config := newAuthority(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	config.Concurrency = 1
	config.Enroll = func(context.Context, Request) (Answer, error) {
		close(entered)
		<-leave
		return Answer{}, &Refusal{Status: 403, Detail: "enough"}
	}
	h := NewHandler(config)
	der, _ := newCSR(t)
	done := make(chan int)
	go func() {
		done <- send(h, "POST", Prefix+opEnroll, typeRequest, secret, strings.NewReader(encoded(der)), nil).StatusCode
	}()
	<-entered
	if r := send(h, "GET", Prefix+opCACerts, "", "", nil, nil); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("%d", r.StatusCode)
	}
	close(leave)
	if code := <-done; code != 403 {
		t.Error(code)
	}
	if r := send(h, "GET", Prefix+opCACerts, "", "", nil, nil); r.StatusCode != 200 {
		t.Errorf("the turn was not given back: %d", r.StatusCode)
	}
}

func TestAttributesAskForAKeyOnP256(t *testing.T) {
	var attributes []asn1.RawValue
	if rest, err := asn1.Unmarshal(DefaultAttributes(), &attributes); err != nil || len(rest) > 0 || len(attributes) != 2 {
		t.Fatal(attributes, rest, err)
	}
	var key struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.ObjectIdentifier `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(attributes[0].FullBytes, &key); err != nil || key.Type.String() != "1.2.840.10045.2.1" || len(key.Values) != 1 || key.Values[0].String() != "1.2.840.10045.3.1.7" {
		t.Errorf("%v %v", key, err)
	}
}
