package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// On a real disk: appenders, a reader, checkpoints, trimming and backups at once.
func TestEverythingAtOnceKeepsEachAppendersOrder(t *testing.T) {
	const appenders, each = 8, 400
	root := t.TempDir()
	c := Config{Dir: filepath.Join(root, "j"), SegmentSize: 64 << 10, Retain: Retain{Bytes: 1 << 20}}
	j := created(t, c)
	var working, others sync.WaitGroup
	for a := range appenders {
		working.Go(func() {
			told := make(signal, 1)
			for i := range each {
				p, err := j.Append(fmt.Appendf(nil, "%d %d %0*d", a, i, i, 0), told)
				if err == nil {
					err = <-told
				}
				if err == nil && j.Last() < p {
					err = errors.New("it is told of before it is committed")
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// in checks the order in which records come.
	in := func(seen *[appenders]int, b []byte) error {
		var a, i int
		if _, err := fmt.Sscanf(string(b), "%d %d ", &a, &i); err != nil {
			return err
		}
		if i < seen[a] {
			return fmt.Errorf("record %d of appender %d comes after %d", i, a, seen[a]-1)
		}
		seen[a] = i + 1
		return nil
	}
	others.Go(func() {
		r := j.Read(0)
		defer r.Close()
		var seen [appenders]int
		for n := range appenders * each {
			p, b, err := r.Next(context.Background())
			if err == nil {
				err = in(&seen, b)
			}
			if err != nil || p != Position(n+1) {
				t.Errorf("reading record %d: %d, %v", n+1, p, err)
				return
			}
		}
	})
	stop := make(chan struct{})
	others.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := j.Sync(context.Background()); err != nil {
				t.Error(err)
			}
			copied := Config{Dir: filepath.Join(root, fmt.Sprint("copy", n))}
			if err := (disk{}).Mkdir(copied.Dir); err != nil {
				t.Error(err)
			}
			before := j.Last()
			if err := j.Backup(context.Background(), 0, func(name string, size int64, content io.Reader) error {
				return PutFile(copied.Dir, name, size, content)
			}); err != nil {
				t.Error(err)
			}
			if r, err := Check(copied.Dir, nil); err != nil || !r.Clean || r.Last < before {
				t.Errorf("the backup after record %d: %+v, %v", before, r, err)
			}
			var seen [appenders]int
			k, err := Open(copied, func(_ Position, b []byte) error { return in(&seen, b) })
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := k.Append([]byte("0 9999 "), nil); err != nil {
				t.Error(err)
			}
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			if err := j.Checkpoint(max(before, 1)); err != nil {
				t.Error(err)
			}
		}
	})
	working.Wait()
	close(stop)
	others.Wait()
	if s := j.Stats(); s.Committed != appenders*each || s.Appended != s.Committed || s.Waiting != 0 || s.Batches == 0 || s.Bytes == 0 {
		t.Errorf("%+v", s)
	}
	closed(t, j)
}

func TestABackupReplaysFromWhereItsOtherStoreWants(t *testing.T) {
	c := inMemory(newMemory())
	j := created(t, c)
	for i := range 40 {
		appended(t, j, fmt.Sprint(i, " ", string(make([]byte, 1000))))
	}
	if err := j.Checkpoint(30); err != nil {
		t.Fatal(err)
	}
	oldest := j.First()
	if oldest < 3 || oldest > 30 {
		t.Fatalf("the oldest record is %d", oldest)
	}
	for _, from := range []Position{0, oldest, 35, 41} {
		copied := t.TempDir()
		if err := j.Backup(t.Context(), from, func(name string, size int64, content io.Reader) error {
			return PutFile(copied, name, size, content)
		}); err != nil {
			t.Fatal(err)
		}
		k, found, err := opened(Config{Dir: copied})
		if err != nil {
			t.Fatal(err)
		}
		if from == 0 {
			from = 30
		}
		if len(found) != 41-int(from) || len(found) > 0 && found[0].position != from {
			t.Fatalf("from %d: %d records", from, len(found))
		}
		closed(t, k)
	}
	none := func(string, int64, io.Reader) error { return nil }
	var gone *GoneError
	if err := j.Backup(t.Context(), oldest-1, none); !errors.As(err, &gone) {
		t.Fatal(err)
	}
	var ahead *AheadError
	if err := j.Backup(t.Context(), 42, none); !errors.As(err, &ahead) {
		t.Fatal(err)
	}
	if err := j.Backup(done(), 0, func(_ string, _ int64, content io.Reader) error {
		_, err := io.Copy(io.Discard, content)
		return err
	}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := PutFile(t.TempDir(), "../control", 0, nil); err == nil {
		t.Fatal("a backup's file was put outside its folder")
	}
	closed(t, j)
	if err := j.Backup(t.Context(), 0, none); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

// slowDisk is a disk whose syncs wait until they are let through, from when it is told to.
type slowDisk struct {
	*memory
	slow   atomic.Bool
	begun  chan struct{} // a sync waits
	finish chan struct{} // it may go on
}

type slowFile struct {
	File
	disk *slowDisk
}

func newSlowDisk() *slowDisk {
	return &slowDisk{memory: newMemory(), begun: make(chan struct{}), finish: make(chan struct{})}
}

func (d *slowDisk) Open(name string, flag int) (File, error) {
	f, err := d.memory.Open(name, flag)
	if err != nil {
		return nil, err
	}
	return slowFile{f, d}, nil
}

func (f slowFile) Sync() error {
	if f.disk.slow.Load() {
		f.disk.begun <- struct{}{}
		<-f.disk.finish
	}
	return f.File.Sync()
}

func TestAppendNeverWaitsForTheDiskAndItsBufferIsBounded(t *testing.T) {
	d := newSlowDisk()
	c := inMemory(d.memory)
	c.FS, c.Buffer = d, 10_000
	j, l := created(t, c), &ledger{}
	d.slow.Store(true)
	size := 0
	for len(l.entries) < 1000 {
		err := l.append(j, 500)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if size += recordHeader + len(l.entries[len(l.entries)-1].text); size > c.Buffer {
			t.Fatalf("%d bytes wait", size)
		}
	}
	if w := j.Stats().Waiting; w != size || w < c.Buffer-1000 {
		t.Fatalf("%d bytes wait, and the journal says %d", size, w)
	}
	if _, err := j.Append(make([]byte, c.Buffer), nil); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	<-d.begun
	d.slow.Store(false)
	close(d.finish)
	l.wait(t)
	if err := l.append(j, 500); err != nil {
		t.Fatal(err)
	}
	closed(t, j)
	if n := l.count(durable); n != len(l.entries) {
		t.Fatalf("%d of %d records are durable", n, len(l.entries))
	}
}

func TestWhatGatheredBehindAFailedCommitFailsWithIt(t *testing.T) {
	d := newSlowDisk()
	c := inMemory(d.memory)
	c.FS = d
	j, l := created(t, c), &ledger{}
	if err := l.append(j, 1); err != nil || synced(t, j) != nil {
		t.Fatal(err)
	}
	d.slow.Store(true)
	if err := l.append(j, 2); err != nil {
		t.Fatal(err)
	}
	<-d.begun
	for range 3 {
		if err := l.append(j, 3); err != nil {
			t.Fatal(err)
		}
	}
	d.slow.Store(false)
	d.arm(fault{at: 1, effect: true}) // it is on the disk, and the disk says no
	close(d.finish)
	l.wait(t)
	if l.count(durable) != 1 || l.count(failed) != 4 {
		t.Fatalf("%d are durable and %d failed", l.count(durable), l.count(failed))
	}
	for l.append(j, 4) != nil {
		runtime.Gosched()
	}
	l.wait(t)
	d.kill()
	_ = j.Close()
	c.FS = d.survivor()
	j, found, err := opened(c)
	if err != nil || len(found) != 2 || found[1].position != 6 {
		t.Fatal(found, err)
	}
	if err := l.settle(found); err != nil {
		t.Fatal(err)
	}
	closed(t, j)
}
