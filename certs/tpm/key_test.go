package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

func mustCreateKey(t testing.TB, d *TPM, pin []byte) *Key {
	t.Helper()
	k, err := d.CreateKey(pin)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// wantSigns signs with the key and verifies.
func wantSigns(t testing.TB, k *Key) {
	t.Helper()
	digest := sha256.Sum256([]byte("message"))
	signature, err := k.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Errorf("sign: %v", err)
		return
	}
	if !ecdsa.VerifyASN1(k.public, digest[:], signature) {
		t.Error("the signature is wrong")
	}
}

func signError(k *Key) error {
	_, err := k.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	return err
}

func TestKeySignsDigestsOfAtLeast256Bits(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	k := mustCreateKey(t, d, nil)
	message := []byte("message")
	d1, d256, d384, d512 := sha1.Sum(message), sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	for _, tt := range []struct {
		digest []byte
		hash   crypto.Hash
		signs  bool
	}{
		{d256[:], crypto.SHA256, true},
		{d384[:], crypto.SHA384, true},
		{d512[:], crypto.SHA512, true},
		{d1[:], crypto.SHA1, false},
		{d256[:], crypto.SHA384, false},
		{d256[:31], crypto.SHA256, false},
		{message, 0, false},
		{nil, crypto.SHA256, false},
	} {
		signature, err := k.Sign(rand.Reader, tt.digest, tt.hash)
		if (err == nil) != tt.signs {
			t.Errorf("%v of %d bytes: %v", tt.hash, len(tt.digest), err)
		}
		if err == nil && !ecdsa.VerifyASN1(k.public, tt.digest, signature) {
			t.Errorf("%v: the signature is wrong", tt.hash)
		}
	}
}

func TestKeyFileSurvivesPowerLossAndIsPrivate(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	path := filepath.Join(t.TempDir(), "device.key")
	k := mustCreateKey(t, d, nil)
	if err := k.Write(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if data, err := os.ReadFile(path); err != nil || !IsKeyFile(data) {
		t.Errorf("not recognized as a TPM's key: %v", err)
	}
	e.Restart()
	again, err := d.ReadKey(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !again.public.Equal(k.Public()) || again.TPM() != d {
		t.Error("another key was read")
	}
	wantSigns(t, again)
	wantSigns(t, k)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadKey(path, nil); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	if _, err := d.ReadKey(filepath.Dir(path), nil); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a folder: %v", err)
	}
	if _, err := d.ReadKey(path+".none", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestStorageKeyIsMadePersistentOnceAndLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	places := func(d *TPM) (taken []tpm2.TPMHandle) {
		command(t, d, func(c *conn) error {
			for _, handle := range []tpm2.TPMHandle{srkHandle, secondHandle} {
				if _, is, err := c.persistent(handle, tpm2.ECCSRKTemplate); err != nil {
					return err
				} else if is {
					taken = append(taken, handle)
				}
			}
			return nil
		})
		return taken
	}
	t.Run("nothing there", func(t *testing.T) {
		d, _ := open(t)
		one, two := mustCreateKey(t, d, nil), mustCreateKey(t, d, nil)
		if at := places(d); len(at) != 1 || at[0] != srkHandle || one.file.parent != srkHandle || two.file.parent != srkHandle {
			t.Errorf("persistent at %x, parents %x and %x", at, one.file.parent, two.file.parent)
		}
		command(t, d, ownerPassword) // which isn't needed any more
		wantSigns(t, mustCreateKey(t, d, nil))
		wantSigns(t, one)
	})
	t.Run("an RSA key there", func(t *testing.T) {
		d, _ := open(t)
		command(t, d, persist(tpm2.RSASRKTemplate))
		k := mustCreateKey(t, d, nil)
		if at := places(d); len(at) != 2 || k.file.parent != secondHandle {
			t.Errorf("persistent at %x, parent %x", at, k.file.parent)
		}
		loaded, err := d.LoadKey(k.PEM(), nil)
		if err != nil {
			t.Fatal(err)
		}
		wantSigns(t, loaded)
	})
	t.Run("removed since", func(t *testing.T) {
		d, _ := open(t)
		k := mustCreateKey(t, d, nil)
		command(t, d, evict(srkHandle))
		wantSigns(t, k)
	})
	t.Run("both taken", func(t *testing.T) {
		d, _ := open(t)
		command(t, d, persistAt(tpm2.RSASRKTemplate, srkHandle))
		command(t, d, persistAt(tpm2.ECCEKTemplate, secondHandle))
		if _, err := d.CreateKey(nil); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "0x81000002") {
			t.Errorf("%v", err)
		}
	})
	t.Run("owner password", func(t *testing.T) {
		d, _ := open(t)
		command(t, d, ownerPassword)
		if _, err := d.CreateKey(nil); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "0x81000001") {
			t.Errorf("%v", err)
		}
	})
}

func evict(handle tpm2.TPMHandle) func(*conn) error {
	return func(c *conn) error {
		reply, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     &tpm2.NamedHandle{Handle: handle, Name: reply.Name},
			PersistentHandle: handle,
		}.Execute(c)
		return err
	}
}

func TestPINIsNeededAndHidden(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	var heard bytes.Buffer
	tapped := &TPM{address: d.address}
	tapped.dial = func() (channel, error) {
		ch, err := d.dial()
		return tap{ch, &heard}, err
	}
	pin := []byte("correct horse battery")
	k := mustCreateKey(t, tapped, pin)
	wantSigns(t, k)
	pin[0] ^= 1 // the key has its own copy
	wantSigns(t, k)
	if heard.Len() == 0 || bytes.Contains(heard.Bytes(), []byte("orrect horse")) {
		t.Errorf("the PIN is among the %d bytes on the bus", heard.Len())
	}
	pin[0] ^= 1
	if again, err := d.LoadKey(k.PEM(), pin); err != nil {
		t.Error(err)
	} else {
		wantSigns(t, again)
	}
	if _, err := d.LoadKey(k.PEM(), nil); !errors.Is(err, ErrPIN) {
		t.Errorf("without PIN: %v", err)
	}
	wrong, err := d.LoadKey(k.PEM(), []byte("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	if err := signError(wrong); !errors.Is(err, ErrPIN) || strings.Contains(err.Error(), "wrong\"") {
		t.Errorf("wrong PIN: %v", err)
	}
	for _, bad := range [][]byte{{}, make([]byte, 33), []byte("a\x00b")} {
		if _, err := d.CreateKey(bad); err == nil {
			t.Errorf("the PIN %q was taken", bad)
		}
	}
}

func TestWrongPINsLockOutPINsOnly(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	free, guarded := mustCreateKey(t, d, nil), mustCreateKey(t, d, []byte("right"))
	wrong, err := d.LoadKey(guarded.PEM(), []byte("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err = signError(wrong); !errors.Is(err, ErrPIN) {
			break
		}
	}
	if !errors.Is(err, ErrLockedOut) || !strings.Contains(err.Error(), "tpm2_dictionarylockout") {
		t.Fatalf("the TPM isn't locked out: %v", err)
	}
	if err := signError(guarded); !errors.Is(err, ErrLockedOut) {
		t.Errorf("the right PIN: %v", err)
	}
	wantSigns(t, free)
	wantSigns(t, mustCreateKey(t, d, nil))
}

func TestLostKeySaysHowItWasLost(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	other, _ := open(t)
	k := mustCreateKey(t, d, nil)
	file := k.PEM()
	_, bare, _ := bytes.Cut(file, []byte("-----BEGIN"))
	bare = append([]byte("-----BEGIN"), bare...) // as others write it

	if _, err := other.LoadKey(file, nil); !errors.Is(err, ErrSwapped) || !errors.Is(err, ErrOtherTPM) || errors.Is(err, ErrCleared) {
		t.Errorf("swapped: %v", err)
	}
	if _, err := other.LoadKey(bare, nil); !errors.Is(err, ErrOtherTPM) || errors.Is(err, ErrSwapped) || errors.Is(err, ErrDamaged) {
		t.Errorf("swapped, and the file doesn't say of which TPM: %v", err)
	}
	if again, err := d.LoadKey(bare, nil); err != nil {
		t.Errorf("of which TPM need not be known: %v", err)
	} else {
		wantSigns(t, again)
	}
	command(t, d, clearTPM)
	for name, err := range map[string]error{
		"sign": signError(k),
		"load": func() error { _, err := d.LoadKey(file, nil); return err }(),
	} {
		if !errors.Is(err, ErrCleared) || !errors.Is(err, ErrOtherTPM) || errors.Is(err, ErrSwapped) {
			t.Errorf("%s with a cleared TPM: %v", name, err)
		}
	}
	wantSigns(t, mustCreateKey(t, d, nil))
}

func TestTPMSwappedUnderARunningProgramIsNoticed(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	other, _ := open(t)
	mustCreateKey(t, other, nil)
	swappable := &TPM{address: d.address, dial: d.dial}
	k := mustCreateKey(t, swappable, nil)
	swappable.dial = other.dial
	if err := signError(k); !errors.Is(err, ErrSwapped) {
		t.Errorf("%v", err)
	}
}

func TestDamagedKeyFileIsDamaged(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	k := mustCreateKey(t, d, nil)
	damaged := k.file
	damaged.private = bytes.Clone(damaged.private)
	damaged.private[40] ^= 1
	foreign := k.file
	foreign.public = tpm2.Marshal(keyTemplateOn(tpm2.TPMECCNistP384))
	parent := k.file
	parent.parent = 0x81000003
	for name, data := range map[string][]byte{
		"empty":          nil,
		"altered":        damaged.encode(),
		"P-384":          foreign.encode(),
		"another parent": parent.encode(),
		"two keys":       append(k.PEM(), k.PEM()...),
		"too large":      append(k.PEM(), make([]byte, maxKeyFile)...),
		"not of a TPM":   []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"no DER":         []byte("-----BEGIN TSS2 PRIVATE KEY-----\nAAAA\n-----END TSS2 PRIVATE KEY-----\n"),
		"a false name":   append([]byte(parentLine+"zz\n"), k.PEM()...),
	} {
		if _, err := d.LoadKey(data, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantSigns(t, k)
}

func keyTemplateOn(curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	public := keyTemplate(false)
	public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return public
}

func FuzzParseKeyFile(f *testing.F) {
	good := keyFile{parent: srkHandle, parentName: make([]byte, 34), ek: make([]byte, 32), public: tpm2.Marshal(keyTemplateOn(tpm2.TPMECCNistP256)), private: []byte("private")}
	f.Add(good.encode())
	good.hasPIN, good.ek = true, nil
	f.Add(good.encode())
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := parseKeyFile(data)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v", err)
			}
			return
		}
		if _, err := k.publicKey(); err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%v", err)
		}
		again, err := parseKeyFile(k.encode())
		if err != nil || !bytes.Equal(again.private, k.private) || !bytes.Equal(again.public, k.public) || again.hasPIN != k.hasPIN {
			t.Errorf("written and read again it is another: %v", err)
		}
	})
}

func TestConcurrentSignaturesTakeTurns(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	other := openAt(t, e) // as another process would
	k := mustCreateKey(t, d, nil)
	guarded := mustCreateKey(t, d, []byte("pin"))
	same, err := other.LoadKey(k.PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var users sync.WaitGroup
	for i := range 12 {
		users.Go(func() {
			for range 3 {
				wantSigns(t, []*Key{k, same, guarded}[i%3])
			}
		})
	}
	users.Wait()
}

// A TPM, or somebody on the bus, that signs something else is found out.
func TestWrongSignatureOfTheTPMIsAnError(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	k := mustCreateKey(t, d, nil)
	dial := d.dial
	d.dial = func() (channel, error) {
		ch, err := dial()
		return flip{ch}, err
	}
	if err := signError(k); err == nil || !strings.Contains(err.Error(), "wrong signature") {
		t.Errorf("%v", err)
	}
}

// flip alters the digest of each TPM2_Sign.
type flip struct{ channel }

func (f flip) exchange(command []byte) ([]byte, error) {
	if bytes.Equal(command[6:10], []byte{0, 0, 1, 0x5d}) { // TPM_CC_Sign
		if i := bytes.Index(command, make([]byte, 32)); i > 0 {
			command = bytes.Clone(command)
			command[i] = 1
		}
	}
	return f.channel.exchange(command)
}

func BenchmarkSign(b *testing.B) {
	for name, pin := range map[string][]byte{"without PIN": nil, "with PIN": []byte("pin")} {
		b.Run(name, func(b *testing.B) {
			d, _ := open(b)
			k := mustCreateKey(b, d, pin)
			for b.Loop() {
				wantSigns(b, k)
			}
		})
	}
}

func BenchmarkCreateKey(b *testing.B) {
	d, err := Open(tpmtest.Start(b).Address())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		mustCreateKey(b, d, nil)
	}
}
