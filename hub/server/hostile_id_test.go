package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
)

// hostileIDs are no device IDs, and would do harm as a file name, a topic level, a client
// identifier, an API path or a line of a log; or look like the device pi-1.
var hostileIDs = []string{
	"../../hub", "..", "/etc/passwd", "pi-1/..", "pi-1:2", ":pi-1", "pi-1\x00", "\x00", "pi-1\n", "pi-1\u202e", "+", "#", "pi-1/#", "$SYS", "",
	"\u0440i-1",     // Cyrillic er
	"pi\u20101",     // a hyphen that is another
	"\uff50i-1",     // a full-width p
	"pi-1\u200b",    // a space of no width
	"pi-1%2f..%2fx", // escaped
}

// stolen returns the credential of a device of that name, as who stole the station's key
// makes it: signed like any other, by whatever encodings it takes.
func stolen(t *testing.T, h *hubtest.Hub, id string) (certtest.Credential, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(t, err)
	template := x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{{
			Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(id)},
		}}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Scheme: "spiffe", Host: certtest.TrustDomain, Path: "/device/" + id}},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, h.Fleet.Factory.Certificate(), key.Public(), h.Fleet.FactoryKey)
	if err != nil {
		return certtest.Credential{}, err // crypto/x509 writes no such certificate
	}
	leaf, err := x509.ParseCertificate(der)
	c := h.Fleet.Device("stand-in")
	c.Leaf, c.Key = leaf, key
	c.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return c, err
}

// TestHostileDeviceIDsOpenNothing: neither in a certificate by a stolen station key, nor in
// the station's manifest, nor as a client identifier, nor in a path of the API. None of
// them leaves a file or a record.
func TestHostileDeviceIDsOpenNothing(t *testing.T) {
	h := hubtest.Start(t)
	good := h.Device("pi-1")
	before := files(t, h.Dir)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: h.Fleet.Operator("ann", certtest.WithOU("admin")).ClientConfig()}, Timeout: patience}
	defer client.CloseIdleConnections()
	made := 0
	for i, id := range hostileIDs {
		t.Run(fmt.Sprintf("%q", id), func(t *testing.T) {
			if c, err := stolen(t, h, id); err == nil {
				made++
				if conn, err := dial(h.MQTTAddr(), c.ClientConfig()); err == nil {
					conn.Close()
					t.Error("its certificate is admitted")
				}
				m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: uint64(100 + i), CreatedAt: time.Now(), Devices: []manifest.Entry{{Certificate: c.Leaf.Raw, Protection: "software"}}}
				data, err := manifest.Sign(m, []*x509.Certificate{h.Fleet.Factory.Certificate()}, h.Fleet.FactoryKey)
				must(t, err)
				if _, err := h.Server().Fleet().Import(t.Context(), data, fleet.Actor{Name: "thief"}); err == nil {
					t.Error("the manifest that names it is taken")
				}
			}
			if connectAs(t, h, good, id) {
				t.Error("a device is connected under it")
			}
			for _, path := range []string{"", "/why", "/label", "/revoke"} {
				method, body := http.MethodGet, io.Reader(nil)
				if path == "/label" || path == "/revoke" {
					method = http.MethodPost
				}
				r, err := http.NewRequestWithContext(t.Context(), method, "https://"+h.HTTPSAddr()+"/v1/devices/"+url.PathEscape(id)+path, body)
				must(t, err)
				answer, err := client.Do(r)
				must(t, err)
				answer.Body.Close()
				// The empty one is the path of the list.
				if answer.StatusCode >= 500 || answer.StatusCode < 300 && id != "" && id != ".." {
					t.Errorf("%s %s answers %s", method, r.URL.EscapedPath(), answer.Status)
				}
			}
		})
	}
	if made < len(hostileIDs)/2 {
		t.Errorf("only %d certificates could be made: the test tries too little", made)
	}
	if after := files(t, h.Dir); !slices.Equal(before, after) {
		t.Errorf("files were %q and are %q", before, after)
	}
	page, err := h.Operator().Devices(t.Context(), "", 100)
	must(t, err)
	if len(page.Devices) != 1 || page.Devices[0].ID != "pi-1" {
		t.Errorf("the registry has %+v", page.Devices)
	}
}

// connectAs reports whether a CONNECT with that client identifier is accepted.
func connectAs(t *testing.T, h *hubtest.Hub, c certtest.Credential, id string) bool {
	t.Helper()
	conn, err := tls.Dial("tcp", h.MQTTAddr(), c.ClientConfig())
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	_, err = conn.Write(append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))}, id...))
	must(t, err)
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false // malformed: closed without an answer
	}
	return answer[3] == 0
}

// files returns what is in a folder, the journal's and the store's own growth aside.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a temporary file went meanwhile
		}
		rel, _ := filepath.Rel(dir, path)
		if err == nil && filepath.Dir(rel) != "journal" && !d.IsDir() {
			names = append(names, rel)
		}
		return err
	}))
	return names
}
