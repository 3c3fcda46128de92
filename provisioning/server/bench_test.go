package server

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

// boundless writes an authority for that key of two thousand million devices, as
// `hub station authorize --max-devices` does.
func boundless(b *testing.B, pub crypto.PublicKey) string {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	key, err := issuance.NewKey()
	must(err)
	rootCert, err := issuance.NewRoot(certtest.TrustDomain, key, 0, nil)
	must(err)
	root, err := issuance.NewIssuer(rootCert, key, nil)
	must(err)
	template, err := root.IssueCA(issuance.CARequest{Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: pub})
	must(err)
	value, err := asn1.Marshal(2_000_000_000)
	must(err)
	template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 25, 1789415523, 1}, Value: value}}
	der, err := x509.CreateCertificate(rand.Reader, template, rootCert, pub, key)
	must(err)
	ca, err := x509.ParseCertificate(der)
	must(err)
	file := filepath.Join(b.TempDir(), "authority.crt")
	must(pemfile.WriteCertificates(file, ca, rootCert))
	return file
}

// BenchmarkEnrol is boards that come one after the other on 32 connections, with a token
// and a key each, and a station that fsyncs every step. Keys and requests are made
// before; the boards' TLS and HTTP run in the same process and are counted.
func BenchmarkEnrol(b *testing.B) {
	dir := b.TempDir()
	if _, err := station.Init(dir, certtest.StationName); err != nil {
		b.Fatal(err)
	}
	der, err := pemfile.ReadCSR(filepath.Join(dir, "station.csr"))
	if err != nil {
		b.Fatal(err)
	}
	csr, err := issuance.ParseCSR(der)
	if err != nil {
		b.Fatal(err)
	}
	s, err := station.Open(dir, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Accept(boundless(b, csr.PublicKey)); err != nil {
		b.Fatal(err)
	}
	server, err := New(Config{Station: s})
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	defer func() { stop(); <-served }()

	const connections = 32
	order, err := s.Ledger().OpenOrder(time.Now(), ledger.Order{Kind: ledger.Imported, Name: "bench"}, ledger.Line{Pattern: ledger.Pattern{Prefix: "pi-", Width: 6}, Count: 999_999})
	if err != nil {
		b.Fatal(err)
	}
	boards := make([]board, b.N)
	tokens := make([]string, 0, b.N)
	for len(tokens) < b.N {
		made, err := s.MakeTokens(station.TokenOrder{Order: order.Name, Count: min(b.N-len(tokens), 10_000), Valid: time.Hour})
		if err != nil {
			b.Fatal(err)
		}
		tokens = append(tokens, made.Tokens...)
	}
	var next atomic.Int64
	var wait sync.WaitGroup
	for w := range 2 {
		wait.Go(func() {
			for i := w; i < b.N; i += 2 {
				boards[i] = newBoard(b, "x")
			}
		})
	}
	wait.Wait()
	pin := est.PinOf(server.Certificate())
	before := cpuTime()
	b.ResetTimer()
	for range connections {
		wait.Go(func() {
			var c *est.Client
			for {
				i := int(next.Add(1)) - 1
				if i >= b.N {
					return
				}
				// A board has a client of its own, and a connection; here 32 connections stand for all.
				if c == nil {
					var err error
					if c, err = est.NewClient(est.ClientConfig{URL: "https://" + listener.Addr().String(), Pin: &pin}); err != nil {
						b.Error(err)
						return
					}
					defer c.Close()
				}
				if _, err := c.WithToken(tokens[i]).Enroll(context.Background(), boards[i].csr, boards[i].key.Public()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "enrolments/s")
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/enrolment")
}

// BenchmarkEnrolWithTPM is a board with a TPM that has never been used (swtpm): its key
// and endorsement key are made, the TPM is asked to vouch, and the certificate fetched
// from a station that fsyncs every step. Starting the TPM is not counted.
func BenchmarkEnrolWithTPM(b *testing.B) {
	bench := newBench(b, withAttestation(b))
	ids := make([]string, b.N)
	for i := range ids {
		ids[i] = fmt.Sprintf("pi-%d", i)
	}
	tokens := bench.tokens(bench.order(ledger.Attributes{Protection: ledger.TPM}, ids...), b.N)
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		emulator := tpmtest.Start(b)
		b.StartTimer()
		chip, err := tpm.Open(emulator.Address())
		if err != nil {
			b.Fatal(err)
		}
		key, err := chip.CreateKey(nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := bench.attest(tokens[i], key); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		emulator.Stop()
		b.StartTimer()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/enrolment")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
