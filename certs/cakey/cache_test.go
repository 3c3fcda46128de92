package cakey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/youmark/pkcs8"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// cheap returns the file of a key encrypted at a cost that a test can bear many times.
func cheap(t *testing.T, key crypto.Signer, passphrase string) []byte {
	t.Helper()
	der, err := pkcs8.MarshalPrivateKey(key.(*ecdsa.PrivateKey), []byte(passphrase), &pkcs8.Opts{
		Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 1, HMACHash: crypto.SHA256},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeEncrypted, Bytes: der})
}

// counting is a cache whose openings are counted, over a clock of its own.
type counting struct {
	Cache
	opened atomic.Int64
	answer atomic.Pointer[string]
	now    atomic.Int64 // in nanoseconds
}

func newCounting(passphrase string) *counting {
	c := &counting{}
	c.answer.Store(&passphrase)
	c.Cache = Cache{
		Opener: Opener{Passphrase: func(string) ([]byte, error) { c.opened.Add(1); return []byte(*c.answer.Load()), nil }},
		Now:    func() time.Time { return time.Unix(0, c.now.Load()) },
	}
	return c
}

// replace puts a file in the place of another as the commands do.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := pemfile.Write(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCacheOpensAKeyOnceForAll(t *testing.T) {
	key := newKey(t)
	path := write(t, cheap(t, key, passphrase), 0o600)
	c := newCounting(passphrase)
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			got, err := c.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			signs(t, got, key.Public())
		})
	}
	wait.Wait()
	if n := c.opened.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

func TestCacheFollowsTheFile(t *testing.T) {
	first, second := newKey(t), newKey(t)
	path := write(t, cheap(t, first, passphrase), 0o600)
	c := newCounting(passphrase)
	opens := func(want crypto.Signer) {
		t.Helper()
		got, err := c.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, got, want.Public())
	}
	opens(first)
	replace(t, path, cheap(t, second, passphrase))
	opens(second)

	// Others may read it now: it counts as known to them, open or not.
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(path); err == nil || !strings.Contains(err.Error(), "read by others") {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}

	// A key that was put away is not used any more, and once it is back is opened anew.
	away := path + ".away"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that it does not exist", err)
	}
	before := c.opened.Load()
	if err := os.Rename(away, path); err != nil {
		t.Fatal(err)
	}
	opens(second)
	if c.opened.Load() != before+1 {
		t.Error("a key that was away was still in memory")
	}
}

func TestCacheDoesNotGuessAgainAndAgain(t *testing.T) {
	key := newKey(t)
	path := write(t, cheap(t, key, passphrase), 0o600)
	c := newCounting("wrong")
	fails := func(tries int64) {
		t.Helper()
		if _, err := c.Open(path); !errors.Is(err, ErrPassphrase) {
			t.Errorf("got %v", err)
		}
		if n := c.opened.Load(); n != tries {
			t.Errorf("tried %d times, want %d", n, tries)
		}
	}
	fails(1)
	fails(1)
	c.now.Store(int64(failurePause))
	fails(2)
	c.now.Store(0) // the clock was set back
	fails(3)
	right := passphrase
	c.answer.Store(&right)
	fails(3)
	c.Forget()
	if _, err := c.Open(path); err != nil {
		t.Error(err)
	}
	c.answer.Store(new("wrong"))
	c.Forget()
	fails(5)
	c.answer.Store(&right)
	replace(t, path, cheap(t, key, passphrase)) // another file is another matter
	if _, err := c.Open(path); err != nil {
		t.Error(err)
	}
}

// Whoever asks while a file is being replaced gets one of the two keys, and who asks
// afterwards the new one.
func TestCacheUnderReplacement(t *testing.T) {
	keys := []crypto.Signer{newKey(t), newKey(t)}
	files := [][]byte{cheap(t, keys[0], passphrase), cheap(t, keys[1], passphrase)}
	path := write(t, files[0], 0o600)
	c := newCounting(passphrase)
	done := make(chan struct{})
	var wait sync.WaitGroup
	defer wait.Wait()
	defer close(done)
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got, err := c.Open(path); err != nil {
					t.Error(err)
				} else if !got.Public().(*ecdsa.PublicKey).Equal(keys[0].Public()) && !got.Public().(*ecdsa.PublicKey).Equal(keys[1].Public()) {
					t.Error("a third key")
				}
			}
		})
	}
	for i := range 100 {
		replace(t, path, files[i%2])
		got, err := c.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Public().(*ecdsa.PublicKey).Equal(keys[i%2].Public()) {
			t.Fatal("the former key after its file was replaced")
		}
	}
}

func TestMakeKeepsAKeyAsItIsTold(t *testing.T) {
	asked := 0
	source := func(path string) ([]byte, error) {
		asked++
		if path != "/ca/operational.key" {
			t.Errorf("asked for the passphrase of %s", path)
		}
		return []byte(passphrase), nil
	}
	for keep, want := range map[Keep]Kind{KeepInFile: File, KeepEncrypted: Encrypted} {
		key, file, err := Opener{}.Make("/ca/operational.key", keep, source)
		if err != nil {
			t.Fatal(err)
		}
		path := write(t, file, 0o600)
		if kind, err := KindOf(path); err != nil || kind != want {
			t.Errorf("%s: %s %v", keep, kind, err)
		}
		got, err := with(passphrase).Open(path)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, got, key.Public())
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	for _, wrong := range []Keep{"", "File", "pkcs11", "tpm2", "encrypted"} {
		if _, _, err := (Opener{}).Make("x", wrong, source); err == nil {
			t.Errorf("%q was taken", wrong)
		}
	}
}

func TestPassphraseIsSetAndRemoved(t *testing.T) {
	key := newKey(t)
	plain, err := pemfile.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, plain, 0o600)
	if err := (Opener{}).SetPassphrase(path, []byte("too short")); err == nil {
		t.Error("a short passphrase was taken")
	}
	if data, _ := os.ReadFile(path); !bytes.Equal(data, plain) {
		t.Error("a refused passphrase changed the file")
	}
	given := []byte(passphrase)
	if err := (Opener{}).SetPassphrase(path, given); err != nil {
		t.Fatal(err)
	}
	if string(given) != passphrase {
		t.Error("the caller's passphrase was overwritten")
	}
	if kind, err := KindOf(path); err != nil || kind != Encrypted {
		t.Errorf("%s %v", kind, err)
	}
	if err := with("another passphrase").SetPassphrase(path, nil); !errors.Is(err, ErrPassphrase) {
		t.Errorf("got %v", err)
	}
	if err := with(passphrase).SetPassphrase(path, nil); err != nil {
		t.Fatal(err)
	}
	got, err := Opener{}.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, got, key.Public())
	token := write(t, []byte("pkcs11:token=a;object=b?module-path=/m.so\n"), 0o600)
	if err := (Opener{}).SetPassphrase(token, given); err == nil || !strings.Contains(err.Error(), "never lets it out") {
		t.Errorf("got %v", err)
	}
}

func TestKeysMayShareACredential(t *testing.T) {
	dir := t.TempDir()
	credential := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	credential("shared", "for all")
	s := Source{Credentials: dir, Others: []string{"missing", "shared"}}
	if got, err := s.Passphrase("/ca/former.key"); err != nil || string(got) != "for all" {
		t.Errorf("%q %v", got, err)
	}
	credential("former.key"+CredentialSuffix, "its own")
	if got, err := s.Passphrase("/ca/former.key"); err != nil || string(got) != "its own" {
		t.Errorf("%q %v", got, err)
	}
}

// What a use of an encrypted key costs without a cache, and with it.
func BenchmarkOpen(b *testing.B) {
	file, err := Encrypt(newKey(b), []byte(passphrase))
	if err != nil {
		b.Fatal(err)
	}
	path := write(b, file, 0o600)
	opener := with(passphrase)
	for name, open := range map[string]func(string) (crypto.Signer, error){"anew": opener.Open, "cached": (&Cache{Opener: opener}).Open} {
		b.Run(name, func(b *testing.B) {
			if _, err := open(path); err != nil { // the first use is what the others are spared
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := open(path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestDamagedFileKeepsNobodyWaiting: the library panics on a ciphertext that is no whole number of
// blocks, and on an initialization vector that is no block. That must be an error, for everybody
// who asks.
func TestDamagedFileKeepsNobodyWaiting(t *testing.T) {
	block, _ := pem.Decode(cheap(t, newKey(t), passphrase))
	for name, damage := range map[string]func(*encrypted){
		"ciphertext": func(e *encrypted) { e.Data = e.Data[:len(e.Data)-1] },
		"vector": func(e *encrypted) {
			e.Algorithm.PBES2.Cipher.Parameters.FullBytes = append([]byte{4, 8}, e.Algorithm.PBES2.Cipher.Parameters.Bytes[:8]...)
		},
	} {
		var e encrypted
		if _, err := asn1.Unmarshal(block.Bytes, &e); err != nil {
			t.Fatal(err)
		}
		damage(&e)
		der, err := asn1.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		path := write(t, pem.EncodeToMemory(&pem.Block{Type: typeEncrypted, Bytes: der}), 0o600)
		c := newCounting(passphrase)
		for range 2 {
			if key, err := c.Open(path); err == nil || key != nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("%s: %v, %v", name, key, err)
			}
		}
	}
}

// TestOpeningThatNeverReturnsKeepsNobodyWaiting: whoever asks for the passphrase may end its
// goroutine.
func TestOpeningThatNeverReturnsKeepsNobodyWaiting(t *testing.T) {
	path := write(t, cheap(t, newKey(t), passphrase), 0o600)
	c := Cache{Opener: Opener{Passphrase: func(string) ([]byte, error) { runtime.Goexit(); return nil, nil }}}
	var first sync.WaitGroup
	first.Go(func() { c.Open(path) })
	first.Wait()
	if key, err := c.Open(path); err == nil || key != nil {
		t.Errorf("%v, %v", key, err)
	}
}
