package enrolment

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/attestation"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// office is a server that certifies: a station to those who bring its token, a hub to
// those who bring a certificate.
type office struct {
	t        *testing.T
	fleet    *certtest.Fleet
	url      string
	server   *x509.Certificate
	token    est.Token
	verifier *attestation.Verifier
	as       string // the ID it gives
	issuer   *issuance.Issuer
	cas      func() []*x509.Certificate
	fail     func() error // called before it answers; nil: it answers
	deny     error        // of every challenge, if not nil

	mu       sync.Mutex                   // guards issued
	issued   map[string]*x509.Certificate // by key
	attested int
}

func newOffice(t *testing.T, change func(*office)) *office {
	t.Helper()
	o := &office{t: t, fleet: certtest.New(t), as: "board-7", issued: make(map[string]*x509.Certificate)}
	o.issuer = o.fleet.Factory
	o.cas = func() []*x509.Certificate { return append(o.fleet.Bundle(), o.fleet.Factory.Certificate()) }
	server := o.fleet.Server("hub.example")
	o.server, o.token = server.Leaf, est.NewToken(server.Leaf)
	if change != nil {
		change(o)
	}
	config := est.Config{
		CACerts:  func() []*x509.Certificate { return o.cas() },
		ParseCSR: issuance.ParseCSR,
		Enroll: func(_ context.Context, r est.Request) (est.Answer, error) {
			if r.Token != o.token.Secret && (r.Peer == nil || r.Peer.Subject.CommonName != "claim") {
				return est.Answer{}, &est.Refusal{Status: 401, Detail: "no such token"}
			}
			return o.issue(r.CSR.PublicKey, r.CSR.RawSubjectPublicKeyInfo)
		},
		Reenroll: func(_ context.Context, r est.Request) (est.Answer, error) {
			return o.issue(r.CSR.PublicKey, r.CSR.RawSubjectPublicKeyInfo)
		},
	}
	if o.verifier != nil {
		binding := est.Binding(o.server)
		config.Challenge = func(_ context.Context, x est.Exchange) ([]byte, error) {
			if o.deny != nil {
				return nil, o.deny
			}
			request, err := attestation.ParseRequest(x.JSON)
			if err != nil {
				return nil, &est.Refusal{Status: 400, Detail: err.Error()}
			}
			challenge, err := o.verifier.Begin(request, binding)
			if err != nil {
				return nil, &est.Refusal{Status: 403, Detail: err.Error()}
			}
			return json.Marshal(challenge)
		}
		attested := func(_ context.Context, x est.Exchange) (est.Answer, error) {
			answer, err := attestation.ParseAnswer(x.JSON)
			if err != nil {
				return est.Answer{}, &est.Refusal{Status: 400, Detail: err.Error()}
			}
			evidence, err := o.verifier.Finish(answer, binding)
			if err != nil {
				return est.Answer{}, &est.Refusal{Status: 403, Detail: err.Error()}
			}
			o.attested++
			return o.issue(evidence.CSR.PublicKey, evidence.CSR.RawSubjectPublicKeyInfo)
		}
		config.EnrollAttested, config.ReenrollAttested = attested, attested
	}
	s := httptest.NewUnstartedServer(est.NewHandler(config))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{server.Certificate}}
	s.StartTLS()
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

// issue certifies a key, once: the same key gets the same certificate.
func (o *office) issue(pub crypto.PublicKey, spki []byte) (est.Answer, error) {
	if o.fail != nil {
		if err := o.fail(); err != nil {
			return est.Answer{}, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if cert := o.issued[string(spki)]; cert != nil {
		return est.Answer{Certificate: cert}, nil
	}
	id, err := identity.New(certtest.TrustDomain, identity.RoleDevice, o.as)
	if err != nil {
		return est.Answer{}, err
	}
	cert, err := o.issuer.Issue(issuance.Request{Profile: issuance.DeviceProfile(), Identity: id, PublicKey: pub})
	o.issued[string(spki)] = cert
	return est.Answer{Certificate: cert}, err
}

// config is what a board is told: everything but what a test changes.
func (o *office) config(dir string) Config {
	return Config{Dir: dir, Server: o.url, Token: o.token.String(), TPM: TPMOff}
}

func TestEnrolledBoardHasCredentialsThatWork(t *testing.T) {
	o := newOffice(t, nil)
	dir := filepath.Join(t.TempDir(), "deep", "D")
	c := o.config(dir)
	var notices []string
	c.Notice = func(text string) { notices = append(notices, text) }
	r, err := Enroll(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keystore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cred := keys.Credentials()
	if keys.Identity().ID != "board-7" || keys.Fingerprint() != r.Fingerprint || r.TPM != "" || len(cred.Certificate.Certificate) != 2 || len(cred.Roots) != 2 {
		t.Errorf("%+v: %d certificates, %d in the bundle", r, len(cred.Certificate.Certificate), len(cred.Roots))
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "the private key is a file") {
		t.Errorf("a software key was not said loudly: %q", notices)
	}
	for file, mode := range map[string]fs.FileMode{"device.key": 0o600, "device.crt": 0o644, "ca.crt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", file, info, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v %v", left, err)
	}
	if _, err := Enroll(t.Context(), o.config(dir)); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("enrolled again: %v", err)
	}
}

// Whatever the station sent, the board asks again with the same key, and nothing is
// installed before all of it is right.
func TestWhatComesFromALyingServerIsNotInstalled(t *testing.T) {
	foreign := certtest.New(t)
	for name, test := range map[string]struct {
		change func(*office)
		want   string
	}{
		"another fleet's certificate": {func(o *office) { o.issuer = foreign.Factory }, "unknown authority"},
		"no root":                     {func(o *office) { o.cas = func() []*x509.Certificate { return o.fleet.Bundle()[1:] } }, "no root among them"},
		"no issuer":                   {func(o *office) { o.cas = o.fleet.Bundle }, "unknown authority"},
		"a leaf for a CA": {func(o *office) {
			o.cas = func() []*x509.Certificate { return []*x509.Certificate{o.fleet.Device("x").Leaf} }
		}, "not a CA certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t, test.change)
			dir := filepath.Join(t.TempDir(), "D")
			if _, err := Enroll(t.Context(), o.config(dir)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
			if _, err := keystore.Open(dir); err == nil {
				t.Error("installed")
			}
		})
	}
}

func TestBoardKnowsItsStationByThePin(t *testing.T) {
	o, liar := newOffice(t, nil), newOffice(t, nil)
	dir := filepath.Join(t.TempDir(), "D")
	c := o.config(dir)
	c.Server = liar.url
	if _, err := Enroll(t.Context(), c); !errors.Is(err, est.ErrUntrusted) {
		t.Errorf("somebody else at the station's address: %v", err)
	}
	if len(liar.issued) > 0 {
		t.Error("the token was told to somebody else")
	}
	c.Token = ""
	if _, err := Enroll(t.Context(), c); !errors.Is(err, ErrInvalid) {
		t.Errorf("a station that could be anybody: %v", err)
	}
	c = o.config(dir)
	c.Pin = liar.token.Pin.String()
	if _, err := Enroll(t.Context(), c); !errors.Is(err, ErrInvalid) {
		t.Errorf("two pins: %v", err)
	}
	for _, bad := range []func(*Config){
		func(c *Config) { c.Token = "fh1.x.y" },
		func(c *Config) { c.Server = "http://station" },
		func(c *Config) { c.Pin = "short" },
	} {
		c := o.config(dir)
		bad(&c)
		if _, err := Enroll(t.Context(), c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestKeyOfAnInterruptedEnrolmentIsUsedAgain(t *testing.T) {
	o := newOffice(t, nil)
	o.fail = func() error { return errors.New("the line went dead") }
	dir := filepath.Join(t.TempDir(), "D")
	if _, err := Enroll(t.Context(), o.config(dir)); err == nil {
		t.Fatal("no error")
	}
	first, err := pemfile.ReadKey(filepath.Join(dir, ".enrolment", "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	o.fail = nil
	if _, err := Enroll(t.Context(), o.config(dir)); err != nil {
		t.Fatal(err)
	}
	second, err := pemfile.ReadKey(filepath.Join(dir, "device.key"))
	if err != nil || !first.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(second.Public()) {
		t.Errorf("another key was made: %v", err)
	}
}

func TestBusyServerIsAskedAgain(t *testing.T) {
	o := newOffice(t, nil)
	tries := 0
	o.fail = func() error {
		if tries++; tries < 2 {
			return &est.Refusal{Status: 503, Detail: "busy", RetryAfter: time.Second}
		}
		return nil
	}
	if _, err := Enroll(t.Context(), o.config(filepath.Join(t.TempDir(), "D"))); err != nil || tries != 2 {
		t.Errorf("%d tries, %v", tries, err)
	}
	o.fail = func() error { return &est.Refusal{Status: 202, Detail: "pending", RetryAfter: time.Hour} }
	ctx, cancel := context.WithCancel(t.Context())
	c := o.config(filepath.Join(t.TempDir(), "D"))
	c.Notice = func(text string) {
		if strings.Contains(text, "trying again") {
			cancel()
		}
	}
	if _, err := Enroll(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting didn't end with the context: %v", err)
	}
}

func TestBundleThatIsThereDecidesWhichFleetTheBoardJoins(t *testing.T) {
	o := newOffice(t, nil)
	for name, test := range map[string]struct {
		bundle []*x509.Certificate
		ok     bool
	}{"its own": {o.fleet.Bundle(), true}, "another": {certtest.New(t).Bundle(), false}} {
		dir := t.TempDir()
		if err := pemfile.WriteCertificates(filepath.Join(dir, "ca.crt"), test.bundle...); err != nil {
			t.Fatal(err)
		}
		if _, err := Enroll(t.Context(), o.config(dir)); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRenewedBoardHasANewKeyAndTheSameIdentity(t *testing.T) {
	o := newOffice(t, nil)
	dir := filepath.Join(t.TempDir(), "D")
	first, err := Enroll(t.Context(), o.config(dir))
	if err != nil {
		t.Fatal(err)
	}
	// The hub, known by the trust bundle and its name.
	c := Config{Dir: dir, Server: o.url}
	second, err := Renew(t.Context(), c)
	if err != nil || second.Identity.String() != first.Identity.String() || second.Fingerprint == first.Fingerprint {
		t.Fatalf("%+v %v", second, err)
	}
	keys, err := keystore.Open(dir)
	if err != nil || keys.Fingerprint() != second.Fingerprint {
		t.Fatal(keys, err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	o.as = "board-8"
	if _, err := Renew(t.Context(), c); err == nil || !strings.Contains(err.Error(), "this device is spiffe://fleet.example/device/board-7") {
		t.Errorf("became another: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "device.key")); err != nil || string(after) != string(before) {
		t.Errorf("the key was changed though nothing was renewed: %v", err)
	}
	liar := newOffice(t, nil)
	c.Server = liar.url
	if _, err := Renew(t.Context(), c); !errors.Is(err, est.ErrUntrusted) {
		t.Errorf("renewed at another fleet's hub: %v", err)
	}
	if _, err := Renew(t.Context(), Config{Dir: t.TempDir(), Server: o.url}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("renewed what isn't there: %v", err)
	}
}

// allow has the verifier take every TPM's endorsement key, as an allow-list would.
func allow(t *testing.T) func(*office) {
	return func(o *office) {
		v, err := attestation.NewVerifier(attestation.Config{Allowed: func([sha256.Size]byte) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		o.verifier = v
	}
}

func TestKeyInTheTPMIsProvedAndUsed(t *testing.T) {
	chip := tpmtest.Start(t)
	o := newOffice(t, allow(t))
	dir := filepath.Join(t.TempDir(), "D")
	c := o.config(dir)
	c.TPM = chip.Address()
	r, err := Enroll(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Attested || r.TPM != chip.Address() || o.attested != 1 {
		t.Errorf("%+v, attested %d times", r, o.attested)
	}
	data, err := os.ReadFile(filepath.Join(dir, "device.key"))
	if err != nil || !tpm.IsKeyFile(data) {
		t.Fatalf("device.key is no TPM's: %v", err)
	}
	keys, err := keystore.Open(dir)
	if err != nil || keys.TPM() != chip.Address() {
		t.Fatal(keys, err)
	}
	// The key does a TLS handshake, and so a renewal, which makes the next in the same TPM.
	next, err := Renew(t.Context(), Config{Dir: dir, Server: o.url})
	if err != nil || next.TPM != chip.Address() || next.Fingerprint == r.Fingerprint || !next.Attested || o.attested != 2 {
		t.Fatalf("%+v, attested %d times, %v", next, o.attested, err)
	}
	if _, err := keystore.Open(dir); err != nil {
		t.Error(err)
	}
}

// A hub that takes no TPM's word still renews; what may go better later is not given up for
// a certificate that says less; and who demands the TPM's word gets nothing without it.
func TestRenewalGoesWithoutTheTPMsWordWhenItIsDeclined(t *testing.T) {
	chip := tpmtest.Start(t)
	for name, test := range map[string]struct {
		status  int
		tpm     string
		renewed bool
	}{
		"no TPM is known of it": {404, "", true},
		"another TPM is":        {403, TPMAuto, true},
		"busy for now":          {409, "", false},
		"malformed":             {400, "", false},
		"demanded, unknown":     {404, chip.Address(), false},
		"demanded, another":     {403, chip.Address(), false},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t, allow(t))
			dir := filepath.Join(t.TempDir(), "D")
			c := o.config(dir)
			c.TPM = chip.Address()
			first, err := Enroll(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			o.deny = &est.Refusal{Status: test.status, Detail: "not so"}
			var notices []string
			next, err := Renew(t.Context(), Config{Dir: dir, Server: o.url, TPM: test.tpm, Notice: func(text string) { notices = append(notices, text) }})
			if (err == nil) != test.renewed {
				t.Fatalf("%+v, %v", next, err)
			}
			if test.renewed && (next.Attested || next.Fingerprint == first.Fingerprint || len(notices) != 1 || !strings.Contains(notices[0], "did not take this TPM's word")) {
				t.Errorf("%+v, and the person hears %q", next, notices)
			}
			if keys, err := keystore.Open(dir); err != nil || (keys.Fingerprint() == first.Fingerprint) == test.renewed {
				t.Errorf("in place: %v, %v", keys, err)
			}
		})
	}
}

func TestStationThatTakesNoTPMsWordIsToldToThePerson(t *testing.T) {
	chip := tpmtest.Start(t)
	o := newOffice(t, nil) // no attestation there
	c := o.config(filepath.Join(t.TempDir(), "D"))
	c.TPM = chip.Address()
	if _, err := Enroll(t.Context(), c); !errors.Is(err, est.ErrDenied) {
		t.Errorf("a TPM was required, and not proved: %v", err)
	}
}

func TestTPMSettingsAreChecked(t *testing.T) {
	for setting, ok := range map[string]bool{"": true, "auto": true, "require": true, "off": true, "/dev/tpmrm0": true, "tcp://127.0.0.1:1": true, "no": false, "swtpm": false} {
		if err := CheckTPM(setting); (err == nil) != ok {
			t.Errorf("%q: %v", setting, err)
		}
	}
	o := newOffice(t, nil)
	c := o.config(filepath.Join(t.TempDir(), "D"))
	c.TPM = "/nowhere/tpm"
	if _, err := Enroll(t.Context(), c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
