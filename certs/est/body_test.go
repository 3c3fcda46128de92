package est

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("its body was read")
	return 0, io.EOF
}

func renewsOnly(config Config) Config {
	config.Enroll = nil
	config.Challenge = func(context.Context, Exchange) ([]byte, error) { return []byte("{}"), nil }
	config.ReenrollAttested = func(context.Context, Exchange) (Answer, error) { return Answer{}, nil }
	return config
}

// Where certificates are renewed only, a token is no credential, and whoever has nothing
// else isn't listened to.
func TestChallengeWhereNobodyEnrolsNeedsACertificate(t *testing.T) {
	a, config := newAuthority(t)
	h := NewHandler(renewsOnly(config))
	if r := send(h, "POST", Prefix+opChallenge, typeExchange, "x", unread{t}, nil); r.StatusCode != http.StatusForbidden {
		t.Errorf("with a token: %d", r.StatusCode)
	}
	if r := send(h, "POST", Prefix+opChallenge, typeExchange, "", strings.NewReader("{}"), a.fleet.Device("any").Leaf); r.StatusCode != http.StatusOK {
		t.Errorf("with a certificate: %d", r.StatusCode)
	}
	config.EnrollAttested = func(context.Context, Exchange) (Answer, error) { return Answer{}, nil }
	config.Challenge = func(context.Context, Exchange) ([]byte, error) { return []byte("{}"), nil }
	if r := send(NewHandler(config), "POST", Prefix+opChallenge, typeExchange, "x", strings.NewReader("{}"), nil); r.StatusCode != http.StatusOK {
		t.Errorf("with a token where devices enrol: %d", r.StatusCode)
	}
}

// Who sends slowly keeps nobody else from anything.
func TestBodyThatDribblesInHoldsNoTurn(t *testing.T) {
	a, config := newAuthority(t)
	config.Concurrency = 1
	config.EnrollAttested = func(context.Context, Exchange) (Answer, error) { return Answer{}, nil }
	config.Challenge = func(context.Context, Exchange) ([]byte, error) { return []byte("{}"), nil }
	config.ReenrollAttested = config.EnrollAttested
	h := NewHandler(config)
	device := a.fleet.Device("any").Leaf
	for op, media := range map[string]string{opEnroll: typeRequest, opReenroll: typeRequest, opChallenge: typeExchange, opAttested: typeExchange, opReattested: typeExchange} {
		body, dribble := io.Pipe()
		done := make(chan struct{})
		go func() { send(h, "POST", Prefix+op, media, "x", body, device); close(done) }()
		if _, err := dribble.Write([]byte("{")); err != nil { // returns once it is read
			t.Fatal(err)
		}
		if r := send(h, "GET", Prefix+opCACerts, "", "", nil, nil); r.StatusCode != http.StatusOK {
			t.Errorf("%s: others hear %d", op, r.StatusCode)
		}
		dribble.CloseWithError(io.ErrUnexpectedEOF)
		<-done
	}
}

// deadlines is a writer that notes the deadlines of reading, as of a connection.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.set = append(d.set, at)
	return nil
}

// The deadline is there before the first byte of the body is read, and gone before the
// authority, who may take its time, is asked.
func TestBodyHasToComeSoon(t *testing.T) {
	_, config := newAuthority(t)
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	config.Enroll = func(context.Context, Request) (Answer, error) {
		if len(w.set) != 2 || !w.set[1].IsZero() {
			t.Errorf("deadlines while the authority is at work: %v", w.set)
		}
		return Answer{}, &Refusal{Status: 403, Detail: "enough"}
	}
	der, _ := newCSR(t)
	r := httptest.NewRequest("POST", Prefix+opEnroll, io.MultiReader(readerFunc(func([]byte) (int, error) {
		if len(w.set) != 1 || w.set[0].IsZero() || time.Until(w.set[0]) > bodyTime {
			t.Errorf("deadlines as the body is read: %v", w.set)
		}
		return 0, io.EOF
	}), strings.NewReader(encoded(der))))
	r.TLS = &tls.ConnectionState{}
	r.Header.Set("Content-Type", typeRequest)
	r.SetBasicAuth("", secret)
	NewHandler(config).ServeHTTP(w, r)
	if w.Code != 403 || len(w.set) != 2 {
		t.Errorf("%d, deadlines %v", w.Code, w.set)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// past sets every deadline to a moment ago, on the connection itself.
type past struct{ http.ResponseWriter }

func (p past) SetReadDeadline(at time.Time) error {
	if !at.IsZero() {
		at = time.Now().Add(-time.Second)
	}
	return http.NewResponseController(p.ResponseWriter).SetReadDeadline(at)
}

func TestBodyThatDoesNotComeInTimeIsRefused(t *testing.T) {
	_, config := newAuthority(t)
	h := NewHandler(config)
	url, server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(past{w}, r) }))
	roots := x509.NewCertPool()
	roots.AddCert(server)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nAuthorization: Bearer x\r\nContent-Length: 100\r\n\r\nab", Prefix+opEnroll, typeRequest)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusRequestTimeout {
		t.Errorf("%d", response.StatusCode)
	}
}
