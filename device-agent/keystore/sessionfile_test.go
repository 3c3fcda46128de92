package keystore

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// openTPM returns a TPM of its own, and the emulator behind it.
func openTPM(t testing.TB) (*tpm.TPM, *tpmtest.Emulator) {
	t.Helper()
	e := tpmtest.Start(t)
	d, err := tpm.Open(e.Address())
	if err != nil {
		t.Fatal(err)
	}
	return d, e
}

// sealed is saved, with the session sealed by sealer.
func sealed(t *testing.T, version uint16, sealer Sealer) *board {
	t.Helper()
	b := newBoard(t, certtest.New(t), version)
	b.config.Sealer = sealer
	b.connect(b.boot(), false)
	return b
}

// counting counts what a TPM is asked.
type counting struct {
	Sealer
	seals, unseals int
}

func (c *counting) Seal(data []byte) ([]byte, error)   { c.seals++; return c.Sealer.Seal(data) }
func (c *counting) Unseal(data []byte) ([]byte, error) { c.unseals++; return c.Sealer.Unseal(data) }

func TestSealedSessionSurvivesARebootOfBoardAndTPM(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, version uint16) {
		d, e := openTPM(t)
		asked := &counting{Sealer: d}
		b := sealed(t, version, asked)
		for range 2 {
			e.Restart()
			s := b.boot()
			b.connect(s, true)
			b.connect(s, true)
			if stats := s.Stats(); stats.Protection != ProtectionSealed || stats.Stored != 2 {
				t.Errorf("%+v", stats)
			}
			b.wantLogLines(0)
		}
		if asked.seals != 1 || asked.unseals != 2 {
			t.Errorf("in three lives of the agent and five connects, sealed %d times and unsealed %d", asked.seals, asked.unseals)
		}
		if offered, repeated := b.hub.tickets(); offered != 4 || repeated != 0 {
			t.Errorf("%d tickets offered, %d of them twice", offered, repeated)
		}
		file, err := os.ReadFile(b.config.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(file, []byte(sealedMark)) || bytes.Contains(file, b.cred.Roots[0].Raw) || len(file) > 4096 {
			t.Errorf("%d bytes, %.40q...", len(file), file)
		}
	})
}

func TestUnusableTPMCostsOnlyAFullHandshake(t *testing.T) {
	t.Parallel()
	t.Run("another TPM", func(t *testing.T) {
		t.Parallel()
		one, _ := openTPM(t)
		two, _ := openTPM(t)
		b := sealed(t, tls.VersionTLS13, one)
		b.config.Sealer = two
		b.connect(b.boot(), false)
		b.wantLogLines(1)
		if !strings.Contains(b.log.String(), tpm.ErrOtherTPM.Error()) {
			t.Error(b.log)
		}
		b.connect(b.boot(), true)
	})
	t.Run("TPM gone", func(t *testing.T) {
		t.Parallel()
		d, e := openTPM(t)
		b := sealed(t, tls.VersionTLS13, d)
		e.Stop()
		s := b.boot()
		b.connect(s, false)
		b.wantFile(true) // that of before, for when the TPM is back
		b.connect(s, true)
		b.connect(s, true)
		b.wantLogLines(2) // that it wasn't read, and that none will be stored
		if stats := s.Stats(); stats.Stored != 0 || stats.NotStored != 3 || !stats.Ready || stats.Protection != ProtectionMemory {
			t.Errorf("%+v", stats)
		}
		b.wantFile(false)
	})
	t.Run("TPM back", func(t *testing.T) {
		t.Parallel()
		d, e := openTPM(t)
		b := sealed(t, tls.VersionTLS13, d)
		e.Stop()
		if s := b.boot(); s.Stats().Ready {
			t.Errorf("%+v", s.Stats())
		}
		e.Restart()
		b.connect(b.boot(), true)
	})
}

// A stolen or planted file must not get by with less protection than is in force.
func TestFileOfTheOtherProtectionIsNotBelieved(t *testing.T) {
	t.Parallel()
	d, _ := openTPM(t)
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	b.config.Sealer = d
	b.connect(b.boot(), false)
	b.wantLogLines(1)
	b.connect(b.boot(), true)
	b.config.Sealer = nil
	b.connect(b.boot(), false)
	b.wantLogLines(1)
	b.connect(b.boot(), true)
}

func TestDamagedFileIsNoSession(t *testing.T) {
	t.Parallel()
	d, _ := openTPM(t)
	for name, b := range map[string]*board{
		"plain":  saved(t, certtest.New(t), tls.VersionTLS13),
		"sealed": sealed(t, tls.VersionTLS12, d),
	} {
		file, err := os.ReadFile(b.config.Path)
		if err != nil {
			t.Fatal(err)
		}
		end := bytes.IndexByte(file, '\n') + 1
		end = int(binary.BigEndian.Uint32(file[end:])) // where the padding begins
		check := func(what string, at int, data []byte) {
			t.Helper()
			if err := os.WriteFile(b.config.Path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			s := b.boot()
			if _, ok := s.Get("127.0.0.1"); ok {
				t.Errorf("%s, %s %d: offered", name, what, at)
			}
			b.wantLogLines(1)
		}
		for i := 0; i < len(file); i += 1 + i/8 { // closer at the start, where the fields are
			flipped := slices.Clone(file)
			flipped[i] ^= 0x04
			check("bit flipped in byte", i, flipped)
			check("cut to", i, file[:min(i, end-1)])
		}
		check("end wiped from", len(file)/2, append(slices.Clone(file[:len(file)/2]), make([]byte, len(file)-len(file)/2)...))
		check("longer than", len(file), append(slices.Clone(file), 1))
		check("twice", len(file), append(slices.Clone(file), file...))
		torn := slices.Clone(file)
		clear(torn[:len(torn)/2])
		if err := os.WriteFile(b.config.Path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		b.connect(b.boot(), false)
		b.wantLogLines(0) // a power cut in the wipe is nothing to report
		b.connect(b.boot(), true)
	}
}

func TestUnreadableFileIsNoSession(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func(path string) error
		says  string
	}{
		"readable by others": {func(path string) error { return os.Chmod(path, 0o640) }, "0640"},
		"too large":          {func(path string) error { return os.Truncate(path, maxSessionFile+1) }, "larger"},
		"a pipe":             {func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }, "regular"},
		"a folder":           {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "regular"},
		"dangling link":      {func(path string) error { return errors.Join(os.Remove(path), os.Symlink(path, path)) }, "symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := saved(t, certtest.New(t), tls.VersionTLS13)
			if err := tt.spoil(b.config.Path); err != nil {
				t.Fatal(err)
			}
			s := b.boot()
			if !strings.Contains(s.Stats().Problem, tt.says) {
				t.Errorf("%+v", s.Stats())
			}
			b.wantLogLines(1)
			b.connect(s, false)
			b.connect(s, true) // from memory at least
		})
	}
}

// A file that can't be wiped keeps its session from being offered, but no other.
func TestSessionThatCannotBeWipedIsNotOffered(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	s := b.boot()
	stuck := func() error {
		return errors.Join(os.Remove(b.config.Path), os.MkdirAll(filepath.Join(b.config.Path, "full"), 0o700))
	}
	if err := stuck(); err != nil {
		t.Fatal(err)
	}
	b.connect(s, false)
	b.wantLogLines(2) // not wiped, and not stored
	for range 3 {
		b.connect(s, true) // what was never on the disk
	}
	b.wantLogLines(2)
	if stats := s.Stats(); stats.Withheld != 1 || stats.Stored != 0 || stats.Offered != 3 {
		t.Errorf("%+v", stats)
	}
	if err := os.RemoveAll(b.config.Path); err != nil {
		t.Fatal(err)
	}
	b.connect(s, true)
	if stats := s.Stats(); stats.Stored != 1 || stats.Problem != "" {
		t.Errorf("%+v", stats)
	}
	b.connect(b.boot(), true)
}

func TestFolderThatIsGoneKeepsSessionsInMemory(t *testing.T) {
	t.Parallel()
	b := newBoard(t, certtest.New(t), tls.VersionTLS12)
	b.config.Path = filepath.Join(b.config.Path, "nowhere", "tls-session")
	s := b.boot()
	b.connect(s, false)
	b.connect(s, true)
	b.connect(s, true)
	b.wantLogLines(1)
}

func TestOpenRemovesWhatAPowerCutLeft(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	dir := filepath.Dir(b.config.Path)
	for _, name := range []string{".tls-session.123.tmp", ".other.123.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half a session"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.connect(b.boot(), true)
	var names []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if !slices.Equal(names, []string{".other.123.tmp", "tls-session"}) {
		t.Error(names)
	}
}

func TestSessionsOfOneSizeShareAFile(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	stat := func() os.FileInfo {
		t.Helper()
		info, err := os.Stat(b.config.Path)
		if err != nil || info.Mode().Perm() != 0o600 || info.Size()%sessionBlock != 0 {
			t.Fatalf("%v, %v", info, err)
		}
		return info
	}
	first := stat()
	s := b.boot()
	b.connect(s, true)
	b.connect(s, true)
	if !os.SameFile(first, stat()) {
		t.Error("the file was replaced")
	}
	state, _ := s.Get("127.0.0.1")
	_, inner, err := state.ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	for _, blocks := range []int{3, 2, 2, 1, 5, 4} {
		size := blocks*sessionBlock - 3*sessionBlock/4
		if blocks == 1 {
			size = 1
		}
		larger, err := tls.NewResumptionState(make([]byte, size), inner)
		if err != nil {
			t.Fatal(err)
		}
		s.mayWrite = true // as a full handshake leaves it, which doesn't wipe what it didn't offer
		s.Put("127.0.0.1", larger)
		again := b.boot()
		if got := again.current; got == nil {
			t.Fatalf("a ticket of %d bytes: %+v", size, again.Stats())
		} else if ticket, _, err := got.state.ResumptionState(); err != nil || len(ticket) != size {
			t.Errorf("a ticket of %d bytes has become one of %d, %v", size, len(ticket), err)
		}
		stat()
	}
}

func TestHugeSessionIsNotStored(t *testing.T) {
	t.Parallel()
	b := saved(t, certtest.New(t), tls.VersionTLS13)
	s := b.boot()
	state, _ := s.Get("127.0.0.1")
	_, inner, err := state.ResumptionState()
	if err != nil {
		t.Fatal(err)
	}
	huge, err := tls.NewResumptionState(make([]byte, maxSessionFile), inner)
	if err != nil {
		t.Fatal(err)
	}
	s.Put("127.0.0.1", huge)
	b.wantFile(false)
	if stats := s.Stats(); stats.NotStored != 1 || !stats.Ready {
		t.Errorf("%+v", stats)
	}
}

// FuzzParseSession fuzzes what is inside the file, behind the seal or the checksum.
func FuzzParseSession(f *testing.F) {
	fleet := certtest.New(f)
	server := fleet.Server()
	client := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for _, root := range server.Roots {
		client.RootCAs.AddCert(root)
	}
	for _, version := range versions {
		client.MaxVersion = version
		one, two := pipe(f)
		done := make(chan error, 1)
		go func() { // until the client is done
			done <- exchange(tls.Server(one, &tls.Config{Certificates: []tls.Certificate{server.Certificate}}), (*tls.Conn).Write, (*tls.Conn).Read)
		}()
		if err := errors.Join(exchange(tls.Client(two, client), (*tls.Conn).Read, (*tls.Conn).Write), <-done); err != nil {
			f.Fatal(err)
		}
		state, ok := client.ClientSessionCache.Get("localhost")
		if !ok {
			f.Fatal("no session")
		}
		file, err := new(envelope).seal(&session{state: state, at: time.Unix(1, 0)}, [32]byte{})
		if err != nil {
			f.Fatal(err)
		}
		inside, err := new(envelope).unwrap(file, [32]byte{})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(inside)
	}
	f.Add([]byte{})
	f.Add(make([]byte, 12))
	f.Fuzz(func(t *testing.T, inside []byte) {
		s, err := parseSession(inside)
		if err != nil {
			return
		}
		ticket, state, err := s.state.ResumptionState()
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := state.Bytes()
		if err != nil || !bytes.HasPrefix(inside[12:], ticket) || len(ticket) == 0 || !bytes.HasPrefix(inside[12+len(ticket):], encoded) {
			t.Errorf("parsed and encoded again it is %d and %d bytes, %v", len(ticket), len(encoded), err)
		}
	})
}

// crypto/tls takes the first certificate of whatever a cache returns.
func TestStateOfAServerIsNoSession(t *testing.T) {
	t.Parallel()
	server := []byte{3, 4, 1, 0x13, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 's', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if _, err := tls.ParseSessionState(server); err != nil {
		t.Fatalf("not one: %v", err)
	}
	if _, err := parseSession(append([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 't'}, server...)); !errors.Is(err, errDamagedSession) {
		t.Errorf("%v", err)
	}
}
