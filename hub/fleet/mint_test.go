package fleet

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/manifest"
	"golang.org/x/sync/errgroup"
)

// mint makes manifests of many certificates quickly: one certificate is issued as a
// station would, and the others are it with another ID, serial number and key, signed.
// IDs are as long as placeholder. The keys are a few, which no check forbids a station.
type mint struct {
	b      *testing.B
	pki    *certtest.Fleet
	entry  manifest.Entry
	tbs    []byte // of the certificate issued as a station would
	ids    []int  // where the ID stands in it
	serial int    // where the serial number's last 8 octets stand
	key    int    // where the public key's point stands
	points [][]byte
	number uint64 // of the last manifest
	made   uint64 // certificates
}

const placeholder = "pi-XXXXXXXXX"

func newMint(b *testing.B, pki *certtest.Fleet) *mint {
	b.Helper()
	c := pki.Device(placeholder)
	m := &mint{b: b, pki: pki, entry: entryOf(c), tbs: c.Leaf.RawTBSCertificate}
	for at := 0; ; {
		i := bytes.Index(m.tbs[at:], []byte(placeholder))
		if i < 0 {
			break
		}
		m.ids = append(m.ids, at+i)
		at += i + len(placeholder)
	}
	number := c.Leaf.SerialNumber.Bytes()
	m.serial = bytes.Index(m.tbs, number) + len(number) - 8
	for range 64 {
		key, err := issuance.NewKey()
		if err != nil {
			b.Fatal(err)
		}
		m.points = append(m.points, m.point(key.Public()))
	}
	m.key = bytes.Index(m.tbs, m.point(c.Leaf.PublicKey))
	if len(m.ids) < 2 || m.serial < 0 || m.key < 0 {
		b.Fatalf("the certificate has its ID at %d, its serial number at %d and its key at %d", m.ids, m.serial, m.key)
	}
	return m
}

func (m *mint) point(key crypto.PublicKey) []byte {
	point, err := key.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		m.b.Fatal(err)
	}
	return point
}

// manifest returns the next manifest, of that many devices that no other has.
func (m *mint) manifest(devices int) []byte {
	m.b.Helper()
	m.number++
	listed := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: m.number, Devices: make([]manifest.Entry, devices)}
	var workers errgroup.Group
	processors := runtime.GOMAXPROCS(0)
	for w := range processors {
		workers.Go(func() error {
			for i := w; i < devices; i += processors {
				der, err := m.certificate(m.made + uint64(i))
				if err != nil {
					return err
				}
				listed.Devices[i] = m.entry
				listed.Devices[i].Certificate = der
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		m.b.Fatal(err)
	}
	m.made += uint64(devices)
	data, err := manifest.Sign(listed, []*x509.Certificate{m.pki.Factory.Certificate()}, m.pki.FactoryKey)
	if err != nil {
		m.b.Fatal(err)
	}
	return data
}

func (m *mint) certificate(n uint64) ([]byte, error) {
	tbs := slices.Clone(m.tbs)
	id := fmt.Sprintf("pi-%09d", n)
	for _, at := range m.ids {
		copy(tbs[at:], id)
	}
	rand.Read(tbs[m.serial:][:8])
	copy(tbs[m.key:], m.points[n%uint64(len(m.points))])
	sum := sha256.Sum256(tbs)
	signature, err := m.pki.FactoryKey.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, // ecdsa-with-SHA256
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}
