package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	writerEnv    = "JOURNAL_TEST_WRITER"    // tells this test binary to be a program that appends to the journal there
	namespaceEnv = "JOURNAL_TEST_NAMESPACE" // tells a test that it runs in a mount namespace of its own
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		fmt.Println("! ", writer(dir))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// writer appends until it is killed, and prints a line for every record that is durable, "+ position text", and one
// before every checkpoint, "c position".
func writer(dir string) error {
	j, err := Open(killable(dir), func(Position, []byte) error { return nil })
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards a line of output
	for w := range 4 {
		go func() {
			told := make(signal, 1)
			for i := 0; ; i++ {
				text := fmt.Sprintf("%d/%d/%d/%s", os.Getpid(), w, i, strings.Repeat("x", rand.IntN(2000)))
				p, err := j.Append([]byte(text), told)
				if err == nil {
					err = <-told
				}
				mu.Lock()
				if err != nil {
					fmt.Println("!", err)
				}
				fmt.Println("+", p, text)
				if w == 0 && i%50 == 49 {
					fmt.Println("c", p)
				}
				mu.Unlock()
				if w == 0 && i%50 == 49 {
					if err := j.Checkpoint(p); err != nil {
						fmt.Println("!", err)
					}
				}
			}
		}()
	}
	select {}
}

func killable(dir string) Config {
	return Config{Dir: dir, SegmentSize: 64 << 10, Retain: Retain{Bytes: 128 << 10}}
}

func TestAKilledProcessLosesNothingThatItWasToldIsDurable(t *testing.T) {
	c := killable(filepath.Join(t.TempDir(), "j"))
	closed(t, created(t, c))
	promised := map[Position]string{}
	var checkpoint Position
	for round := range 15 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+c.Dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		for killAfter := rand.IntN(400); ; killAfter-- {
			if killAfter == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			line, err := lines.ReadString('\n')
			if err == io.EOF {
				break // half a line is no promise
			}
			var p Position
			switch {
			case strings.HasPrefix(line, "c "):
				fmt.Sscan(line[2:], &p)
				checkpoint = max(checkpoint, p)
			case strings.HasPrefix(line, "+ "):
				var text string
				fmt.Sscan(line[2:], &p, &text)
				promised[p] = text
			default:
				t.Fatalf("round %d: the writer says %q", round, line)
			}
		}
		_ = cmd.Wait()
		var last Position
		missing := len(promised)
		j, err := Open(c, func(p Position, b []byte) error {
			if p <= last {
				return fmt.Errorf("record %d comes after %d", p, last)
			}
			last = p
			if text, ok := promised[p]; ok {
				if text != string(b) {
					return fmt.Errorf("record %d is another one", p)
				}
				missing--
			}
			return nil
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for p := range promised {
			if p < j.Stats().Checkpoint && p < checkpoint {
				missing--
				delete(promised, p)
			}
		}
		if missing != 0 || len(promised) == 0 && round > 3 {
			t.Fatalf("round %d: %d of %d durable records are missing", round, missing, len(promised))
		}
		closed(t, j)
	}
}

// inNamespace runs the calling test again in a process with a mount namespace of its own, in which nothing is left behind
// whatever happens. There it returns the path of a fresh tmpfs of that many bytes; here it returns false when that is done.
func inNamespace(t *testing.T, size int) (dir string, inside bool) {
	t.Helper()
	if dir := os.Getenv(namespaceEnv); dir != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("journal", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			t.Fatal(err)
		}
		return dir, true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), namespaceEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	return "", false
}

func TestAFullDiskRefusesAndAcceptsAgainWhenThereIsSpace(t *testing.T) {
	disk, inside := inNamespace(t, 4<<20)
	if !inside {
		return
	}
	states := make(chan error, 100)
	c := Config{
		Dir: filepath.Join(disk, "j"), SegmentSize: 512 << 10, Retain: Retain{Bytes: -1},
		OnState: func(err error) { states <- err },
	}
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	j, l := created(t, c), &ledger{}
	fill := func() {
		t.Helper()
		for {
			err := l.append(j, 10_000)
			if errors.Is(err, ErrUnavailable) && errors.Is(err, unix.ENOSPC) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			l.wait(t)
		}
		if err := <-states; !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("OnState was told %v", err)
		}
	}
	accepts := func() {
		t.Helper()
		if err := <-states; err != nil { // within Retry, one second
			t.Fatalf("OnState was told %v", err)
		}
		if err := l.append(j, 10_000); err != nil || synced(t, j) != nil || l.last() != durable {
			t.Fatal(err)
		}
	}
	fill()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	accepts()
	fill()
	// The disk is full of the journal's own records. A checkpoint needs no space, and makes some.
	p := j.Last()
	if err := j.Checkpoint(p); err != nil {
		t.Fatal(err)
	}
	l.checkpoint = p
	accepts()
	fill()
	// A full disk is no reason not to close cleanly: there is room in the segment for the mark, or the process starts as
	// after a crash.
	_ = j.Close()
	if l.count(doubtful) != 0 {
		t.Fatal("a full disk left records in doubt")
	}
	j, found, err := opened(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settle(found); err != nil {
		t.Fatal(err)
	}
	closed(t, j)
}

func TestAReadOnlyDiskIsRefusedButCanBeChecked(t *testing.T) {
	disk, inside := inNamespace(t, 4<<20)
	if !inside {
		return
	}
	c := Config{Dir: filepath.Join(disk, "j"), SegmentSize: 64 << 10}
	j := created(t, c)
	appended(t, j, "one", "two")
	closed(t, j)
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := opened(c); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), c.Dir) {
		t.Fatalf("opened: %v", err)
	}
	if r, err := Check(c.Dir, nil); err != nil || r.Records != 2 || !r.Clean {
		t.Fatal(r, err)
	}
	other := c
	other.Dir = filepath.Join(disk, "other")
	if err := Create(other); !errors.Is(err, unix.EROFS) {
		t.Fatalf("created: %v", err)
	}
}

func TestSyncGivesUpWithItsContext(t *testing.T) {
	j := created(t, inMemory(newMemory()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Sync(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	closed(t, j)
}
