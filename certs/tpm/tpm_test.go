package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"

	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a TPM on a fresh emulator. The test's end fails it if a handle is left
// in the TPM's memory.
func open(t testing.TB) (*TPM, *tpmtest.Emulator) {
	t.Helper()
	e := tpmtest.Start(t)
	return openAt(t, e), e
}

func openAt(t testing.TB, e *tpmtest.Emulator) *TPM {
	t.Helper()
	d, err := Open(e.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := loaded(t, d); len(left) > 0 {
			t.Errorf("left in the TPM: %x", left)
		}
	})
	return d
}

// loaded returns the transient objects and sessions in the TPM.
func loaded(t testing.TB, d *TPM) (handles []tpm2.TPMHandle) {
	t.Helper()
	command(t, d, func(c *conn) error {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} { // transient objects, loaded sessions, saved sessions
			reply, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 100}.Execute(c)
			if err != nil {
				return err
			}
			some, err := reply.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			handles = append(handles, some.Handle...)
		}
		return nil
	})
	return handles
}

// command does to the TPM what an administrator or another program would.
func command(t testing.TB, d *TPM, f func(*conn) error) {
	t.Helper()
	if err := d.use("prepare", f); err != nil {
		t.Fatal(err)
	}
}

func clearTPM(c *conn) error {
	_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(c)
	return err
}

// persist puts a primary by that template where an SRK belongs.
func persist(template tpm2.TPMTPublic) func(*conn) error { return persistAt(template, srkHandle) }

func persistAt(template tpm2.TPMTPublic, handle tpm2.TPMHandle) func(*conn) error {
	return func(c *conn) error {
		created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(c)
		if err != nil {
			return err
		}
		defer c.flush(created.ObjectHandle)
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     &tpm2.NamedHandle{Handle: created.ObjectHandle, Name: created.Name},
			PersistentHandle: handle,
		}.Execute(c)
		return err
	}
}

func ownerPassword(c *conn) error {
	_, err := tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("secret")},
	}.Execute(c)
	return err
}

func mustSeal(t testing.TB, d *TPM, data []byte) []byte {
	t.Helper()
	sealed, err := d.Seal(data)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantUnsealed(t testing.TB, d *TPM, sealed, want []byte) {
	t.Helper()
	if got, err := d.Unseal(sealed); err != nil || !bytes.Equal(got, want) {
		t.Errorf("unsealed %d bytes, %v; sealed were %d", len(got), err, len(want))
	}
}

func TestSealedDataOfAnySizeSurvivesPowerLoss(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	sizes := []int{0, 1, 128, 129, 4096, maxData}
	sealed := make(map[int][]byte)
	for _, size := range sizes {
		data := bytes.Repeat([]byte{'s'}, size)
		sealed[size] = mustSeal(t, d, data)
		if size >= 128 && bytes.Contains(sealed[size], data[:100]) {
			t.Errorf("%d bytes were sealed in the clear", size)
		}
		wantUnsealed(t, d, sealed[size], data)
	}
	e.Restart()
	for _, size := range sizes {
		wantUnsealed(t, d, sealed[size], bytes.Repeat([]byte{'s'}, size))
	}
	if again := mustSeal(t, d, nil); bytes.Equal(again, sealed[0]) {
		t.Error("sealing twice gave the same")
	}
	if _, err := d.Seal(make([]byte, maxData+1)); err == nil || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("too much: %v", err)
	}
}

func TestOneTPMDoesNotOpenWhatAnotherSealed(t *testing.T) {
	t.Parallel()
	one, _ := open(t)
	two, _ := open(t)
	sealed := mustSeal(t, one, []byte("s"))
	if _, err := two.Unseal(sealed); !errors.Is(err, ErrOtherTPM) || errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	// Nor when the blob claims to be its own.
	other, err := parseBlob(mustSeal(t, two, []byte("s")))
	if err != nil {
		t.Fatal(err)
	}
	mixed, err := parseBlob(sealed)
	if err != nil {
		t.Fatal(err)
	}
	mixed.parent = other.parent
	if _, err := two.Unseal(append(mixed.header(), mixed.sealed...)); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

func TestClearedTPMSaysThatItIsAnother(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	command(t, d, persist(tpm2.ECCSRKTemplate))
	sealed := mustSeal(t, d, []byte("s"))
	command(t, d, clearTPM)
	if _, err := d.Unseal(sealed); !errors.Is(err, ErrOtherTPM) {
		t.Errorf("%v", err)
	}
	wantUnsealed(t, d, mustSeal(t, d, []byte("new")), []byte("new"))
}

func TestPersistentPrimaryAndTransientOneAreTheSame(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	before := mustSeal(t, d, []byte("before"))
	command(t, d, persist(tpm2.ECCSRKTemplate))
	wantUnsealed(t, d, before, []byte("before"))
	since := mustSeal(t, d, []byte("since"))
	command(t, d, ownerPassword)
	wantUnsealed(t, d, before, []byte("before"))
	wantUnsealed(t, d, since, []byte("since"))
	wantUnsealed(t, d, mustSeal(t, d, []byte("now")), []byte("now"))
}

func TestOtherKeyInItsPlaceIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, template := range []tpm2.TPMTPublic{tpm2.ECCEKTemplate, tpm2.RSASRKTemplate} {
		d, _ := open(t)
		command(t, d, persist(template))
		wantUnsealed(t, d, mustSeal(t, d, []byte("s")), []byte("s"))
	}
}

func TestOwnerPasswordIsNoAccess(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	sealed := mustSeal(t, d, []byte("s"))
	command(t, d, ownerPassword)
	_, err := d.Seal(nil)
	if !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "0x81000001") {
		t.Errorf("seal: %v", err)
	}
	if _, err := d.Unseal(sealed); !errors.Is(err, ErrAccess) {
		t.Errorf("unseal: %v", err)
	}
}

func TestLockedOutTPMStillSeals(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	sealed := mustSeal(t, d, []byte("s"))
	guess := func(c *conn) error {
		parent, err := c.primary(nil)
		if err != nil {
			return err
		}
		defer parent.flush()
		public := sealedTemplate
		public.ObjectAttributes.NoDA = false
		created, err := tpm2.CreateLoaded{
			ParentHandle: parent.as(tpm2.PasswordAuth(nil)),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("s")}),
			}},
			InPublic: tpm2.New2BTemplate(&public),
		}.Execute(c)
		if err != nil {
			return err
		}
		defer c.flush(created.ObjectHandle)
		for range 100 {
			_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: created.ObjectHandle, Name: created.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))}}.Execute(c)
			if !errors.Is(err, tpm2.TPMRCAuthFail) {
				break
			}
		}
		return err
	}
	if err := d.use("guess with", guess); !errors.Is(err, ErrLockedOut) {
		t.Fatalf("the TPM isn't locked out: %v", err)
	}
	wantUnsealed(t, d, sealed, []byte("s"))
	wantUnsealed(t, d, mustSeal(t, d, []byte("now")), []byte("now"))
}

func TestMemoryFullOfOthersObjectsIsBusy(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	var others []tpm2.TPMHandle
	command(t, d, func(c *conn) error {
		for {
			created, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(c)
			if errors.Is(err, tpm2.TPMRCObjectMemory) {
				return nil
			}
			if err != nil {
				return err
			}
			others = append(others, created.ObjectHandle)
		}
	})
	// With no, one and two places free; a sealed blob needs the primary's and its own.
	sealed := []byte(nil)
	for len(others) > 0 {
		if _, err := d.Seal(nil); err == nil {
			sealed = mustSeal(t, d, []byte("s"))
		} else if !errors.Is(err, ErrBusy) {
			t.Errorf("seal with %d objects of others: %v", len(others), err)
		}
		if _, err := d.Unseal(sealed); sealed != nil && err != nil && !errors.Is(err, ErrBusy) {
			t.Errorf("unseal with %d objects of others: %v", len(others), err)
		}
		command(t, d, func(c *conn) error { c.flush(others[0]); return nil })
		others = others[1:]
	}
	wantUnsealed(t, d, mustSeal(t, d, []byte("s")), []byte("s"))
}

func TestConcurrentUseTakesTurns(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	other := openAt(t, e) // as another process would
	var users sync.WaitGroup
	for i := range 8 {
		users.Go(func() {
			secret := fmt.Appendf(nil, "secret %d", i)
			one := []*TPM{d, other}[i%2]
			sealed, err := one.Seal(secret)
			if err != nil {
				t.Error(err)
				return
			}
			wantUnsealed(t, one, sealed, secret)
		})
	}
	users.Wait()
}
