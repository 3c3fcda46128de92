package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
)

// serving starts the real program's serve in dir/S and returns its URL. The test's end
// stops it, and it must stop well.
func serving(t *testing.T, dir string, args ...string) (url string) {
	t.Helper()
	cmd := program(t, append([]string{"serve", "--dir", filepath.Join(dir, "S"), "--listen", "127.0.0.1:0"}, args...))
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(cmd.Process.Signal(unix.SIGTERM), cmd.Wait(), stderr.Close())
		if text, _ := os.ReadFile(stderr.Name()); err != nil {
			t.Errorf("serve ended with %v: %s", err, text)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		text, _ := os.ReadFile(stderr.Name())
		t.Fatalf("serve: %v: %s", err, text)
	}
	return line[strings.Index(line, "https://") : len(line)-1]
}

// output runs the program to its end, which must be a success, and returns what it printed.
func output(t *testing.T, args ...string) string {
	t.Helper()
	out, err := program(t, args).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("provisioning %q: %v: %s", args, err, exit.Stderr)
		}
		t.Fatal(err)
	}
	return string(out)
}

// sh runs a shell script in dir.
func sh(t *testing.T, dir, script string, env ...string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return string(out)
}

// Somebody who forgot --tpm-ca hears of it before the first board is refused.
func TestServeWarnsOfOrdersThatItCannotServe(t *testing.T) {
	dir := bench(t)
	for name, text := range map[string]string{"guarded": "id,protection\na,tpm\n", "plain": "id,protection\nb,any\n"} {
		order := filepath.Join(dir, name+".csv")
		if err := os.WriteFile(order, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "order", "import", "--dir", filepath.Join(dir, "S"), order)
	}
	allow := filepath.Join(dir, "allow")
	if err := os.WriteFile(allow, []byte(strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want int
	}{{nil, 1}, {[]string{"--ek-allow", allow}, 0}} {
		cmd := program(t, append([]string{"serve", "--dir", filepath.Join(dir, "S"), "--listen", "127.0.0.1:0"}, c.args...))
		var text bytes.Buffer // to be read when the program has ended
		cmd.Stderr = &text
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, err = bufio.NewReader(stdout).ReadString('\n') // it serves
		cmd.Process.Signal(unix.SIGTERM)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Errorf("serve %q: %v: %s", c.args, err, text.String())
		}
		if strings.Count(text.String(), "demands keys in a TPM") != c.want || strings.Count(text.String(), "(guarded) demands") != c.want {
			t.Errorf("serve %q is to warn %d times: %s", c.args, c.want, text.String())
		}
	}
}

// Nothing of ours at the board's end: curl speaks HTTP and TLS, openssl makes the keys
// and requests and reads what comes.
func TestForeignClientsEnrolWithCurlAndOpenssl(t *testing.T) {
	dir := bench(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	order := in("po-1.csv")
	if err := os.WriteFile(order, []byte("pattern,count,model\npi-###,4,m1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "order", "import", "--dir", in("S"), order)
	url := serving(t, dir)
	// The commands below reach the ledger through the server that holds it.
	token := strings.TrimSpace(output(t, "token", "--dir", in("S"), "--order", "po-1"))
	must(t, "claim", "make", "--dir", in("S"), "--order", "po-1", "--out", in("claim"))
	env := []string{"URL=" + url + est.Prefix[:len(est.Prefix)-1], "TOKEN=" + token}
	out := sh(t, dir, `
		curl() { command curl -sS --cacert S/server.crt "$@"; }
		request() { openssl ecparam -name prime256v1 -genkey -noout -out $1.key; openssl req -new -key $1.key -subj "$2" -outform DER | openssl base64 > $1.csr; }
		leaf() { openssl base64 -d -in $1.b64 | openssl pkcs7 -inform DER -print_certs -out $1.crt; openssl verify -x509_strict -purpose sslclient -CAfile root.crt -untrusted cas.crt $1.crt; }
		enrol() { curl --fail -H 'Content-Type: application/pkcs10' --data-binary @$1.csr -o $1.b64 "${@:3}" $URL/$2; leaf $1; }

		curl --fail -D head -o cas.b64 $URL/cacerts
		grep -i '^content-type: application/pkcs7-mime' head
		openssl base64 -d -in cas.b64 | openssl pkcs7 -inform DER -print_certs -out cas.crt
		cp root/root.crt root.crt
		curl --fail $URL/csrattrs | openssl base64 -d | openssl asn1parse -inform DER | grep prime256v1

		request one /CN=anything
		enrol one simpleenroll -u board:$TOKEN
		openssl x509 -in one.crt -noout -subject -ext subjectAltName,extendedKeyUsage
		cp one.crt first.crt
		enrol one simpleenroll -H "Authorization: Bearer $TOKEN"
		cmp one.crt first.crt

		request two /CN=anything
		enrol two simpleenroll --cert claim/claim.crt --key claim/claim.key
		openssl x509 -in two.crt -noout -subject

		status() { curl -o body -w '%{http_code}\n' "$@"; cat body; }
		status -X POST $URL/serverkeygen
		status -X POST $URL/fullcmc
		request three /CN=anything
		status -H 'Content-Type: application/pkcs10' --data-binary @three.csr $URL/simpleenroll
		status -H 'Content-Type: application/pkcs10' --data-binary @three.csr -u board:$TOKEN $URL/simpleenroll
		request four /CN=pi-001
		status -H 'Content-Type: application/pkcs10' --data-binary @four.csr --cert one.crt --key one.key $URL/simplereenroll
	`, env...)
	for _, want := range []string{
		"one.crt: OK", "subject=CN = pi-001", "URI:spiffe://fleet.example/device/pi-001", "TLS Web Client Authentication", "two.crt: OK", "subject=CN = pi-002",
		"403\na device's private key is made on the device", "404\nthere is nothing at", "401\nan enrolment token", "401\nthe enrolment token is not accepted: it was used for pi-001", "403\ncertificates are renewed at the hub",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	must(t, "replace", "--dir", in("S"), "--id", "pi-001", "--reason", "test")
	out = sh(t, dir, `
		curl -sS --cacert S/server.crt --fail -H 'Content-Type: application/pkcs10' --data-binary @four.csr --cert one.crt --key one.key -o four.b64 $URL/simplereenroll
		openssl base64 -d -in four.b64 | openssl pkcs7 -inform DER -print_certs -out four.crt
		openssl verify -x509_strict -purpose sslclient -CAfile root.crt -untrusted cas.crt four.crt
	`, env...)
	if !strings.Contains(out, "four.crt: OK") {
		t.Error(out)
	}
	must(t, "manifest", "--dir", in("S"), "--out", in("m.jws"))
	m, err := readManifest(in("m.jws"), in("root/root.crt"))
	if err != nil || len(m.Devices) != 3 || m.Devices[2].Supersedes == "" || m.Devices[0].Supersedes != "" {
		t.Errorf("%d devices %v", len(m.Devices), err)
	}
}

func TestCommandsWorkWhileTheServerHoldsTheLedger(t *testing.T) {
	dir := bench(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	serving(t, dir)
	must(t, "issue", "--dir", in("S"), "--id", "a", "--out", in("A"))
	cmd := program(t, []string{"batch", "--dir", "S", "--prefix", "sim-", "--count", "3", "--out", "relative"})
	cmd.Dir = dir // paths are as meant where the command is given
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "issued 3 devices") {
		t.Errorf("%v %s", err, out)
	}
	if _, err := os.Stat(in("relative/sim-00003/device.crt")); err != nil {
		t.Error(err)
	}
	if out := output(t, "list", "--dir", in("S"), "--output", "json"); !strings.Contains(out, `"unexported":4`) {
		t.Error(out)
	}
	for want, args := range map[int][]string{
		1: {"issue", "--dir", in("S"), "--id", "a", "--out", in("B")},
		2: {"issue", "--dir", in("S"), "--id", "a/b", "--out", in("B")},
		4: {"order", "show", "--dir", in("S"), "none"},
	} {
		cmd := program(t, args)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != want || strings.Count(string(out), "\n") != 1 || !strings.HasPrefix(string(out), "provisioning: ") {
			t.Errorf("%q: %v %s", args, err, out)
		}
	}
	cmd = program(t, []string{"serve", "--dir", in("S"), "--listen", "127.0.0.1:0"})
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "a server runs there already") {
		t.Errorf("a second server: %v %s", err, out)
	}
	info, err := os.Stat(in("S/station.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func TestSocketOfAKilledServerIsInNobodysWay(t *testing.T) {
	dir := bench(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("S/station.sock")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	must(t, "issue", "--dir", in("S"), "--id", "a", "--out", in("A"))
	serving(t, dir)
	must(t, "issue", "--dir", in("S"), "--id", "b", "--out", in("B"))
}

// boards are devices that each keep one key and one token, and come again with both
// until they have a certificate.
type boards struct {
	tokens []string
	keys   []crypto.Signer
	csrs   [][]byte

	mu      sync.Mutex // guards the fields below
	waiting []int
	serials []map[string]bool // that each was ever given
}

func newBoards(t *testing.T, tokens []string) *boards {
	t.Helper()
	b := &boards{tokens: tokens}
	for i := range tokens {
		key, err := issuance.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := issuance.NewCSR(key, "board")
		if err != nil {
			t.Fatal(err)
		}
		b.keys, b.csrs = append(b.keys, key), append(b.csrs, csr)
		b.waiting, b.serials = append(b.waiting, i), append(b.serials, make(map[string]bool))
	}
	return b
}

func (b *boards) next() (int, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		return 0, false
	}
	i := b.waiting[0]
	b.waiting = b.waiting[1:]
	return i, true
}

func (b *boards) done(i int, serial string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if serial == "" {
		b.waiting = append([]int{i}, b.waiting...) // it comes again before another comes
		return
	}
	b.serials[i][serial] = true
}

// come has boards enrol at the station, several at a time and some of them twice, until
// none waits or ctx ends.
func (b *boards) come(ctx context.Context, t *testing.T, url string, pin est.Pin) {
	var wait sync.WaitGroup
	for worker := range 4 {
		wait.Go(func() {
			c, err := est.NewClient(est.ClientConfig{URL: url, Pin: &pin})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for ctx.Err() == nil {
				i, ok := b.next()
				if !ok {
					return
				}
				serial := ""
				for range 1 + worker%2 {
					token, err := est.ParseToken(b.tokens[i])
					if err != nil {
						t.Error(err)
						return
					}
					cert, err := c.WithToken(token.Secret).Enroll(ctx, b.csrs[i], b.keys[i].Public())
					if refusal, ok := errors.AsType[*est.ServerError](err); ok && !refusal.Temporary() {
						t.Errorf("board %d: %v", i, err)
						return
					}
					if err == nil {
						serial = identity.SerialString(cert.SerialNumber)
						b.mu.Lock()
						b.serials[i][serial] = true
						b.mu.Unlock()
					}
				}
				b.done(i, serial)
				if serial == "" { // the station is not up yet, or no more
					tick(ctx)
				}
			}
		})
	}
	wait.Wait()
}

// tick lets another have the processor before the next try to connect.
func tick(ctx context.Context) {
	timer := time.NewTimer(2 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// The server is killed 200 times, at any of its writes to the disk, while boards enrol:
// no board is ever given two serial numbers, and none that one was given is missing from
// the manifest.
func TestServerKilledAtAnyStepGivesNoBoardTwoCertificates(t *testing.T) {
	const rounds, pool = 200, 1600
	dir := bench(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("po.csv"), []byte(fmt.Sprintf("pattern,count\npi-####,%d\n", pool)), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "order", "import", "--dir", in("S"), in("po.csv"))
	tokens := strings.Fields(output(t, "token", "--dir", in("S"), "--order", "po", "--count", fmt.Sprint(pool)))
	b := newBoards(t, tokens)
	certs, err := pemfile.ReadCertificates(in("S/server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pin := est.PinOf(certs[0])
	// An address that no other test listens at.
	address := fmt.Sprintf("127.%d.%d.2:9443", 1+os.Getpid()>>8&0x7f, os.Getpid()&0xff)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	seen, kills := make(journal), 0
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan struct{})
		go func() { defer close(left); b.come(ctx, t, "https://"+address, pin) }()
		killed, code, text := run(t, 1+random.IntN(60), "serve", "--dir", in("S"), "--listen", address)
		cancel()
		<-left
		if !killed {
			t.Fatalf("serve ended by itself with %d: %s", code, text)
		}
		kills++
		if round%20 == 19 {
			seen.follow(t, in("S"))
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Run("the rest", func(t *testing.T) { b.come(t.Context(), t, serving(t, dir), pin) })
	seen.follow(t, in("S"))
	must(t, "manifest", "--dir", in("S"), "--out", in("1.jws"))
	seen.listed(t, in("root/root.crt"), in("1.jws"))
	inLedger := make(map[string]bool)
	for _, entry := range seen {
		inLedger[entry.serial] = true
	}
	given := 0
	for i, serials := range b.serials {
		if len(serials) > 1 {
			t.Errorf("board %d was given the serial numbers %v", i, serials)
		}
		for serial := range serials {
			given++
			if !inLedger[serial] {
				t.Errorf("serial number %s of board %d is not in the ledger", serial, i)
			}
		}
	}
	t.Logf("killed %d times", kills)
	if given != pool || len(seen) != pool {
		t.Errorf("%d of %d boards were given a certificate, the ledger has %d devices", given, pool, len(seen))
	}
}
