package cakey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/youmark/pkcs8"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const passphrase = "correct horse battery"

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := issuance.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t testing.TB, data []byte, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.key")
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func with(passphrase string) Opener {
	return Opener{Passphrase: func(string) ([]byte, error) { return []byte(passphrase), nil }}
}

func signs(t testing.TB, key crypto.Signer, pub crypto.PublicKey) {
	t.Helper()
	digest := sha256.Sum256([]byte("x"))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], sig) {
		t.Errorf("the key doesn't sign as it did: %v", err)
	}
}

func TestEncryptedKeyOpensWithItsPassphraseOnly(t *testing.T) {
	key := newKey(t)
	file, err := Encrypt(key, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := pemfile.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(file, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")) || bytes.Contains(file, plain[40:80]) {
		t.Errorf("%s", file)
	}
	path := write(t, file, 0o600)
	got, err := with(passphrase).Open(path)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, got, key.Public())
	for _, wrong := range []string{"", "correct horse batter", passphrase + "\n"} {
		if _, err := with(wrong).Open(path); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if _, err := (Opener{}).Open(path); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Error(err)
	}
	if kind, err := KindOf(path); err != nil || kind != Encrypted {
		t.Errorf("%s %v", kind, err)
	}
	for _, short := range []string{"", "12345678901", strings.Repeat("x", maxPassphrase+1)} {
		if _, err := Encrypt(key, []byte(short)); err == nil {
			t.Errorf("a passphrase of %d bytes", len(short))
		}
	}
}

func TestOpensslAndWeReadEachOthersEncryptedKeys(t *testing.T) {
	key := newKey(t)
	file, err := Encrypt(key, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, file, 0o600)
	plain := openssl(t, "pkey", "-in", path, "-passin", "env:PASS")
	if got, err := (Opener{}).Open(write(t, plain, 0o600)); err != nil {
		t.Error(err)
	} else {
		signs(t, got, key.Public())
	}
	for _, kdf := range [][]string{{"-scrypt"}, {"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256", "-iter", "100000"}} {
		theirs := openssl(t, append([]string{"pkcs8", "-topk8", "-in", write(t, plain, 0o600), "-passout", "env:PASS"}, kdf...)...)
		got, err := with(passphrase).Open(write(t, theirs, 0o600))
		if err != nil {
			t.Fatalf("%v: %v", kdf, err)
		}
		signs(t, got, key.Public())
	}
}

func openssl(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Env = append(os.Environ(), "PASS="+passphrase)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v", args, err)
	}
	return out
}

func TestKeyInTheTPMSignsAndIsNowhereElse(t *testing.T) {
	o := Opener{TPM: tpmtest.Start(t).Address()}
	key, file, err := o.Create()
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, file, 0o600)
	got, err := o.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, got, key.Public())
	if kind, err := KindOf(path); err != nil || kind != TPM {
		t.Errorf("%s %v", kind, err)
	}
	other := Opener{TPM: tpmtest.Start(t).Address()}
	if _, err := other.Open(path); err == nil {
		t.Error("another TPM opens the key")
	}
	if _, err := Encrypt(key, []byte(passphrase)); err == nil {
		t.Error("a key came out of the TPM")
	}
}

func TestFilesThatAreNoSafeKeysAreRefused(t *testing.T) {
	key := newKey(t)
	file, err := Encrypt(key, []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"readable by others": write(t, file, 0o644),
		"empty":              write(t, nil, 0o600),
		"huge":               write(t, make([]byte, maxFile+1), 0o600),
		"cut":                write(t, file[:len(file)/2], 0o600),
		"damaged":            write(t, bytes.Replace(file, []byte("M"), []byte("N"), 1), 0o600),
		"missing":            filepath.Join(t.TempDir(), "none"),
	} {
		if _, err := with(passphrase).Open(path); err == nil {
			t.Error(name)
		} else if (name == "missing") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nothing in the file can crash the station, whatever somebody wrote there.
func FuzzOpenNeverPanics(f *testing.F) {
	file, err := Encrypt(newKey(f), []byte(passphrase))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := write(t, data, 0o600)
		if key, err := with("another passphrase").Open(path); err == nil && key == nil {
			t.Error("neither a key nor an error")
		}
	})
}

func TestTokenIsNamedByItsURI(t *testing.T) {
	const uri = "pkcs11:token=fleet%20ca;object=station;type=private?module-path=/m.so"
	got, err := parseToken([]byte(" " + uri + "\n"))
	if err != nil || got != (token{"fleet ca", "station", "/m.so"}) {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{
		"pkcs11:", "pkcs11:token=a;object=b", "pkcs11:token=a?module-path=/m.so", "pkcs11:object=b?module-path=/m.so", uri + "&module-path=/n.so",
		uri + "&pin-value=1234", uri + "&pin-source=/pin", "pkcs11:token=%zz;object=b?module-path=/m.so", "pkcs11:token=a;object=b;id=%01?module-path=/m.so",
	} {
		if got, err := parseToken([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, got)
		}
	}
}

func TestFileCannotMakeItsReaderComputeForEver(t *testing.T) {
	key := newKey(t).(*ecdsa.PrivateKey)
	for name, kdf := range map[string]pkcs8.KDFOpts{
		"scrypt": pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 1},
		"PBKDF2": pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 0x4000, HMACHash: crypto.SHA256},
	} {
		der, err := pkcs8.MarshalPrivateKey(key, []byte(passphrase), &pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: kdf})
		if err != nil {
			t.Fatal(err)
		}
		if err := affordable(der); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// 0x4000 as an INTEGER, and the same length with 0x7fffffff in place of what follows is
		// no DER any more: so the salt gives up two bytes.
		i := bytes.Index(der, []byte{2, 2, 0x40, 0})
		salt := bytes.LastIndex(der[:i], []byte{4, 16})
		if i < 0 || salt < 0 {
			t.Fatal(name)
		}
		costly := bytes.Clone(der)
		costly[salt+1] = 14
		copy(costly[salt+16:], []byte{2, 4, 0x7f, 0xff, 0xff, 0xff})
		if err := affordable(costly); !errors.Is(err, errCost) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCredentialComesBeforeTheTerminal(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.key"+CredentialSuffix), []byte(passphrase+"\r\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	got, err := Source{Credentials: dir}.Passphrase("/some/where/ca.key")
	if err != nil || string(got) != passphrase {
		t.Errorf("%q %v", got, err)
	}
	if got, err := (Source{Credentials: dir}).New("/some/where/ca.key"); err != nil || string(got) != passphrase {
		t.Errorf("%q %v", got, err)
	}
	_, err = Source{Credentials: dir}.Passphrase("other.key")
	if err == nil || !strings.Contains(err.Error(), "other.key.passphrase") {
		t.Error(err)
	}
}

// terminal is a pseudo-terminal: what a person types at one end is read at the other.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	var n int
	err = control(person, func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		var err error
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// read returns what the terminal shows, up to and with until.
func shown(t *testing.T, person *os.File, until string) string {
	t.Helper()
	var text []byte
	for one := make([]byte, 1); !bytes.HasSuffix(text, []byte(until)); {
		if _, err := person.Read(one); err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		text = append(text, one[0])
	}
	return string(text)
}

func TestTypedPassphraseIsNotShown(t *testing.T) {
	person, program := terminal(t)
	type answer struct {
		text []byte
		err  error
	}
	for second, fails := range map[string]bool{passphrase: false, "something else": true} {
		got := make(chan answer, 1)
		go func() {
			text, err := Source{Terminal: program}.New("ca.key")
			got <- answer{text, err}
		}()
		text := shown(t, person, "Passphrase of ca.key: ")
		fmt.Fprintln(person, passphrase)
		text += shown(t, person, "Once more: ")
		fmt.Fprintln(person, second)
		text += shown(t, person, "\n")
		if strings.Contains(text, "horse") || strings.Contains(text, "else") {
			t.Errorf("the terminal shows %q", text)
		}
		if a := <-got; (a.err != nil) != fails || !fails && string(a.text) != passphrase {
			t.Errorf("%q %v", a.text, a.err)
		}
	}
	err := control(program, func(fd int) error {
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && state.Lflag&unix.ECHO == 0 {
			err = errors.New("the terminal shows nothing any more")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInterruptedPromptGivesTheTerminalBack(t *testing.T) {
	person, program := terminal(t)
	interrupted, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := Source{Terminal: program, Interrupted: interrupted}.Passphrase("ca.key")
		ended <- err
	}()
	shown(t, person, ": ")
	close(interrupted)
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if err := control(program, func(fd int) error {
		state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && state.Lflag&unix.ECHO == 0 {
			err = errors.New("the terminal shows nothing any more")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
