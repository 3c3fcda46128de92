package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// credential is what a foreign client is handed: the paths of three PEM files.
type credential struct{ ca, cert, key string }

func deviceFiles(dir string) credential  { return inFolder(dir, "device") }
func serviceFiles(dir string) credential { return inFolder(dir, "service") }

func inFolder(dir, base string) credential {
	return credential{filepath.Join(dir, "ca.crt"), filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")}
}

// arguments are the options of mosquitto_pub and mosquitto_sub that reach the hub with a credential.
func (f *fleet) arguments(c credential, version, clientID string) []string {
	args := []string{"-h", "127.0.0.1", "-p", port(f.at.MQTT), "-V", version, "-i", clientID, "-q", "1", "--cafile", c.ca}
	if c.cert != "" {
		args = append(args, "--cert", c.cert, "--key", c.key)
	}
	return args
}

// mosquittoPub publishes one message with the client that Debian ships, and returns its error and output.
func (f *fleet) mosquittoPub(c credential, version, clientID, topic, payload string) (string, error) {
	args := append([]string{"30", "mosquitto_pub"}, f.arguments(c, version, clientID)...)
	out, err := exec.Command("timeout", append(args, "-t", topic, "-m", payload)...).CombinedOutput()
	return string(out), err
}

// subscriber starts mosquitto_sub, with what it prints in lines as they come. Its options name at least one filter.
func (f *fleet) subscriber(c credential, version, clientID string, options ...string) *process {
	f.t.Helper()
	args := append([]string{"-oL", "mosquitto_sub"}, f.arguments(c, version, clientID)...)
	return background(f.t, "stdbuf", append(append(args, "-d", "-v"), options...)...)
}

// mosquittoSub subscribes for the rest of the test, and returns when the hub has granted it.
func (f *fleet) mosquittoSub(c credential, version, clientID string, options ...string) *process {
	f.t.Helper()
	p := f.subscriber(c, version, clientID, options...)
	if err := p.sees(granted); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// granted is what mosquitto_sub says of a subscription at QoS 1 that was not refused.
const granted = `Subscribed \(mid: \d+\): 1`

var versions = []string{"mqttv311", "mqttv5"}

func TestForeignClientPublishesAndReceives(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.issue("pi-1")
	service := serviceFiles(f.service("dashboard"))
	device := deviceFiles(f.device("pi-1"))
	f.serve()
	f.register()

	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			f := f.with(t)
			reader := f.mosquittoSub(service, version, "dashboard:"+version, "-t", "d/+/tele/#")
			if out, err := f.mosquittoPub(device, version, "pi-1", "d/pi-1/tele/room", "21.5 "+version); err != nil {
				t.Fatalf("device publishes: %v\n%s", err, out)
			}
			if err := reader.sees("(?m)^d/pi-1/tele/room 21.5 " + version + "$"); err != nil {
				t.Error(err)
			}
			commands := f.mosquittoSub(device, version, "pi-1", "-t", "d/pi-1/cmd/#")
			if out, err := f.mosquittoPub(service, version, "dashboard:cmd", "d/pi-1/cmd/reboot/1", version); err != nil {
				t.Fatalf("service commands: %v\n%s", err, out)
			}
			if err := commands.sees("(?m)^d/pi-1/cmd/reboot/1 " + version + "$"); err != nil {
				t.Error(err)
			}
		})
	}
}

// forged are certificates that a hub must not let in, made as an attacker or an accident would.
type forged struct {
	f   *fleet
	dir string
}

// write puts a certificate, signed by parent with key, and the device key it belongs to into a credential folder.
func (g forged) write(name string, template, parent *x509.Certificate, public crypto.PublicKey, signer, key crypto.Signer) credential {
	g.f.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	g.must(err)
	leaf, err := x509.ParseCertificate(der)
	g.must(err)
	c := credential{g.f.path("hub", "ca.crt"), filepath.Join(g.dir, name+".crt"), filepath.Join(g.dir, name+".key")}
	g.must(pemfile.WriteKey(c.key, key))
	chain := []*x509.Certificate{leaf}
	if parent != template {
		chain = append(chain, parent)
	}
	g.must(pemfile.WriteCertificates(c.cert, chain...))
	return c
}

func (g forged) must(err error) {
	g.f.t.Helper()
	if err != nil {
		g.f.t.Fatal(err)
	}
}

// likeness is the certificate of a real device as a template, with a serial number of its own.
func (g forged) likeness(id string) *x509.Certificate {
	g.f.t.Helper()
	chain, err := pemfile.ReadCertificates(deviceFiles(g.f.device(id)).cert)
	g.must(err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	g.must(err)
	return &x509.Certificate{
		SerialNumber: serial, Subject: chain[0].Subject, URIs: chain[0].URIs, KeyUsage: chain[0].KeyUsage,
		ExtKeyUsage: chain[0].ExtKeyUsage, BasicConstraintsValid: true, NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter,
	}
}

func (g forged) key() *ecdsa.PrivateKey {
	g.f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.must(err)
	return key
}

// selfSigned names pi-1 as a real certificate does, with nobody's signature but its own.
func (g forged) selfSigned() credential {
	key, template := g.key(), g.likeness("pi-1")
	return g.write("self-signed", template, template, key.Public(), key, key)
}

// stationIssued is signed with the station's real key, and valid from the station's first moment until notAfter.
func (g forged) stationIssued(name string, notAfter time.Time) credential {
	ca, err := pemfile.ReadCertificates(g.f.path("station.crt"))
	g.must(err)
	signer, err := pemfile.ReadKey(g.f.path("station", "station.key"))
	g.must(err)
	key, template := g.key(), g.likeness("pi-1")
	template.NotBefore, template.NotAfter = ca[0].NotBefore, notAfter
	return g.write(name, template, ca[0], key.Public(), signer, key)
}

func TestForeignClientIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.issue("pi-1", "pi-2", "pi-revoked", "pi-suspended")
	dashboard := serviceFiles(f.service("dashboard"))
	f.serve()
	f.register()
	f.issue("pi-unregistered") // after the manifest: the hub hasn't heard of it

	other := newFleet(t)
	other.issue("pi-1")
	g := forged{f, t.TempDir()}
	hubDir := []string{"--dir", f.path("hub")}
	f.run("hub", append([]string{"device", "suspend", "pi-suspended"}, hubDir...)...)
	f.run("hub", append([]string{"device", "revoke", "pi-revoked", "--reason", "keyCompromise", "--confirm"}, hubDir...)...)

	otherCA := deviceFiles(other.device("pi-1"))
	otherCA.ca = f.path("hub", "ca.crt")
	now := time.Now()
	cases := []struct {
		name     string
		c        credential
		clientID string
		reason   string // as the hub's log and metrics have it
	}{
		{"no certificate", credential{ca: f.path("hub", "ca.crt")}, "pi-1", "no-certificate"},
		{"self-signed certificate", g.selfSigned(), "pi-1", "unknown-issuer"},
		{"certificate of another CA", otherCA, "pi-1", "unknown-issuer"},
		{"server certificate as client", credential{f.path("hub", "ca.crt"), f.path("hub", "tls", "server.crt"), f.path("hub", "tls", "server.key")}, "pi-1", "wrong-usage"},
		{"operator certificate", inFolder(f.path("hub", "operator"), "operator"), "pi-1", "wrong-role"},
		{"service certificate on a device's work", dashboard, "pi-1", "client-identifier"},
		{"expired certificate", g.stationIssued("expired", now.Add(-time.Minute)), "pi-1", "expired"},
		{"certificate that the station's ledger doesn't know", g.stationIssued("stolen-issuer", now.Add(24*time.Hour)), "pi-1", "certificate-unknown"},
		{"unregistered device", deviceFiles(f.device("pi-unregistered")), "pi-unregistered", "unknown-device"},
		{"suspended device", deviceFiles(f.device("pi-suspended")), "pi-suspended", "suspended"},
		{"revoked device", deviceFiles(f.device("pi-revoked")), "pi-revoked", "revoked"},
		{"another device's client identifier", deviceFiles(f.device("pi-2")), "pi-1", "client-identifier"},
	}

	owner := f.mosquittoSub(deviceFiles(f.device("pi-1")), "mqttv5", "pi-1", "-t", "d/pi-1/cmd/#")
	reader := f.mosquittoSub(dashboard, "mqttv5", "dashboard", "-t", "d/+/tele/#", "-t", "d/+/evt/#")
	for _, version := range versions {
		for _, tc := range cases {
			t.Run(version+"/"+tc.name, func(t *testing.T) {
				f := f.with(t)
				before := f.refusals(tc.reason)
				out, err := f.mosquittoPub(tc.c, version, tc.clientID, "d/"+tc.clientID+"/tele/room", "forged")
				if err == nil {
					t.Fatalf("was let in:\n%s", out)
				}
				if strings.Contains(err.Error(), "exit status 124") {
					t.Errorf("hung until the timeout:\n%s", out)
				}
				if !until(func() bool { return f.refusals(tc.reason) > before }) {
					t.Errorf("no refusal counted for %q; the metrics have\n%s\nand the hub said\n%s", tc.reason, f.metrics("refus"), f.hub.output())
				}
			})
		}
	}

	// The rightful owner's session is the same one as before, and nothing of the forgers has arrived.
	if out, err := f.mosquittoPub(dashboard, "mqttv5", "dashboard:cmd", "d/pi-1/cmd/reboot/1", "now"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := owner.sees("(?m)^d/pi-1/cmd/reboot/1 now$"); err != nil {
		t.Error(err)
	}
	if n := strings.Count(owner.output(), "sending CONNECT"); n != 1 {
		t.Errorf("the owner of pi-1 had to connect %d times", n)
	}
	f.barrier("pi-2", reader)
	if strings.Contains(reader.output(), "forged") {
		t.Errorf("a refused client's message was delivered:\n%s", reader.output())
	}
}

// A revoked device stays out after the hub has restarted, and its live connection is closed without its will.
func TestForeignClientIsCutOffWhenRevoked(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.issue("pi-1", "pi-2")
	dashboard := serviceFiles(f.service("dashboard"))
	device := deviceFiles(f.device("pi-1"))
	f.serve()
	f.register()
	reader := f.mosquittoSub(dashboard, "mqttv5", "dashboard", "-t", "d/+/tele/#", "-t", "d/+/evt/#")
	victim := f.subscriber(device, "mqttv5", "pi-1", "-t", "d/pi-1/cmd/#",
		"--will-topic", "d/pi-1/evt/last", "--will-payload", "will-of-the-revoked")
	if err := victim.sees(granted); err != nil {
		t.Fatal(err)
	}
	f.run("hub", "device", "revoke", "pi-1", "--reason", "keyCompromise", "--confirm", "--dir", f.path("hub"))
	if err := victim.sees(`(?s)Subscribed.*(DISCONNECT|sending CONNECT|rror)`); err != nil {
		t.Error(err)
	}
	if out, err := f.mosquittoPub(device, "mqttv311", "pi-1", "d/pi-1/tele/room", "after"); err == nil {
		t.Errorf("let in after revocation:\n%s", out)
	}
	f.barrier("pi-2", reader)
	if out := reader.output(); strings.Contains(out, "will-of-the-revoked") || strings.Contains(out, "after") {
		t.Errorf("a revoked device was heard:\n%s", out)
	}
	f.restart()
	if out, err := f.mosquittoPub(device, "mqttv5", "pi-1", "d/pi-1/tele/room", "after"); err == nil {
		t.Errorf("let in after a restart:\n%s", out)
	}
	if got := f.show("pi-1").State; got != "revoked" {
		t.Errorf("state is %q after a restart", got)
	}
}

// barrier returns when reader has received a message that device id publishes now, and so all that came before it.
func (f *fleet) barrier(id string, reader *process) {
	f.t.Helper()
	if out, err := f.mosquittoPub(deviceFiles(f.device(id)), "mqttv5", id, "d/"+id+"/tele/room", "genuine"); err != nil {
		f.t.Fatalf("%v\n%s", err, out)
	}
	if err := reader.sees("(?m)^d/" + id + "/tele/room genuine$"); err != nil {
		f.t.Fatal(err)
	}
}

// metrics returns the lines of the hub's /metrics that contain word.
func (f *fleet) metrics(word string) string {
	f.t.Helper()
	client := http.Client{Timeout: patience}
	resp, err := client.Get("http://" + f.at.Metrics + "/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^[^#\n]*`+word+`.*$`).FindAllString(string(body), -1)
	return strings.Join(lines, "\n")
}

// refusals is how many connections the hub has refused for reason, summed over its other labels.
func (f *fleet) refusals(reason string) float64 {
	f.t.Helper()
	var sum float64
	for _, m := range regexp.MustCompile(`reason="`+regexp.QuoteMeta(reason)+`".*\} ([0-9.e+]+)`).FindAllStringSubmatch(f.metrics("refus"), -1) {
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			f.t.Fatal(err)
		}
		sum += n
	}
	return sum
}
