// Package server is the station's door on the bench LAN: HTTPS with the station's own
// certificate, behind which boards enrol over EST.
//
// It translates between package est, which speaks the protocol, and package station,
// which issues: errors become status codes here and nowhere else.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/provisioning/station"
)

// Limits of one connection and of the server.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 2 * time.Minute
	shutdownTimeout   = 10 * time.Second
	maxHeaderBytes    = 16 << 10
	maxConnections    = 1024
)

// Config is what a Server serves.
type Config struct {
	Station *station.Station // required; the caller closes it, after the server
	Hosts   []string         // names and addresses for the server's certificate, besides this machine's loopback

	// Attestation decides about the TPMs of boards. Nil: no board's key is taken for a TPM's.
	Attestation *attestation.Verifier

	// OnEvent is called for every enrolment and refusal, from many goroutines; it must not
	// block. Nil: nobody watches.
	OnEvent func(Event)

	// Handler answers requests that aren't EST's, such as a screen for the bench. Nil: 404.
	Handler http.Handler

	Log *slog.Logger // nil: nothing is logged
}

// Event is one board's success or failure at the door.
type Event struct {
	At         time.Time `json:"at"`
	Address    string    `json:"address"`
	ID         string    `json:"id,omitempty"`     // of a success
	Serial     string    `json:"serial,omitempty"` // of the certificate
	Protection string    `json:"protection,omitempty"`
	Repeated   bool      `json:"repeated,omitempty"` // the board had its certificate before
	Reason     string    `json:"reason,omitempty"`   // of a refusal, one word
	Detail     string    `json:"detail,omitempty"`   // and one sentence
}

// Server is the door. Use it once.
type Server struct {
	config  Config
	cert    *tls.Certificate
	binding []byte
	http    *http.Server
}

// New prepares a server. The station's server certificate is made where it is missing.
func New(c Config) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnEvent == nil {
		c.OnEvent = func(Event) {}
	}
	cert, err := c.Station.ServerCertificate(c.Hosts...)
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, cert: cert, binding: est.Binding(cert.Leaf)}
	config := est.Config{
		CACerts:  s.caCerts,
		ParseCSR: issuance.ParseCSR,
		Enroll:   s.enroll,
		Reenroll: s.reenroll,
		Realm:    "station " + c.Station.Name(),
		Log:      c.Log,
	}
	if c.Attestation != nil {
		config.Challenge, config.EnrollAttested, config.ReenrollAttested = s.challenge, s.enrollAttested, s.reenrollAttested
	}
	mux := http.NewServeMux()
	mux.Handle(est.Prefix, s.watched(est.NewHandler(config)))
	if c.Handler != nil {
		mux.Handle("/", c.Handler)
	}
	policy := mtls.ServerConfig(mtls.ServerOptions{Certificate: func() (*tls.Certificate, error) { return cert, nil }})
	// Boards come with a token and no certificate, or with one whose fingerprint the ledger
	// knows. A session ticket would let its bearer in without the key.
	policy.ClientAuth, policy.VerifyConnection, policy.SessionTicketsDisabled = tls.RequestClientCert, nil, true
	var protocols http.Protocols
	protocols.SetHTTP1(true) // one request a connection at a time, so its deadlines are its own
	s.http = &http.Server{
		Handler: mux, TLSConfig: policy, Protocols: &protocols,
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Certificate returns the server's certificate, for a person to compare its pin.
func (s *Server) Certificate() *x509.Certificate { return s.cert.Leaf }

// Serve answers until ctx ends; then it lets requests under way finish and returns nil.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		err := s.http.Shutdown(ctx)
		if err != nil {
			err = errors.Join(err, s.http.Close())
		}
		stopped <- err
	})
	err := s.http.ServeTLS(limited(listener, maxConnections), "", "")
	if !stop() {
		return <-stopped
	}
	return errors.Join(err, s.http.Close())
}

func (s *Server) caCerts() []*x509.Certificate { return s.config.Station.CACerts() }

// limitedListener bounds the connections that are open at a time; others wait in the
// kernel's queue.
type limitedListener struct {
	net.Listener
	turns chan struct{}
	done  chan struct{} // closed by Close
}

func limited(l net.Listener, n int) net.Listener {
	return &limitedListener{Listener: l, turns: make(chan struct{}, n), done: make(chan struct{})}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.turns <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.turns
		return nil, err
	}
	return &limitedConn{Conn: conn, release: func() { <-l.turns }}, nil
}

func (l *limitedListener) Close() error {
	err := l.Listener.Close()
	if !errors.Is(err, net.ErrClosed) {
		close(l.done)
	}
	return err
}

// limitedConn gives its turn back once.
type limitedConn struct {
	net.Conn
	release func()
}

// Close is called by one goroutine at a time, and more than once: crypto/tls and
// net/http both do.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	if !errors.Is(err, net.ErrClosed) {
		c.release()
	}
	return err
}

// String names the door for logs.
func (s *Server) String() string {
	return fmt.Sprintf("station %s, pin %s", s.config.Station.Name(), est.PinOf(s.cert.Leaf))
}
