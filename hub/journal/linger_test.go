package journal

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestRecordsForWhichNobodyWaitsGather for linger, and go with the first that somebody
// waits for.
func TestRecordsForWhichNobodyWaitsGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := created(t, Config{Dir: filepath.Join(t.TempDir(), "journal")})
		defer closed(t, j)
		add := func(w Waiter) {
			if _, err := j.Append([]byte("x"), w); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			add(nil)
			time.Sleep(linger / 4)
			synctest.Wait()
			if s := j.Stats(); s.Committed != 0 {
				t.Fatalf("%d are committed though nobody waits", s.Committed)
			}
		}
		time.Sleep(linger / 4)
		synctest.Wait()
		if s := j.Stats(); s.Committed != 3 || s.Batches != 1 {
			t.Fatalf("after linger: %+v", s)
		}
		add(nil)
		began, told := time.Now(), make(signal, 1)
		add(told)
		if err := <-told; err != nil || time.Since(began) != 0 {
			t.Fatalf("somebody waited for %v: %v", time.Since(began), err)
		}
		if s := j.Stats(); s.Committed != 5 || s.Batches != 2 {
			t.Fatalf("with the one that somebody waits for: %+v", s)
		}
	})
}

// TestMuchForWhichNobodyWaitsIsWrittenAtOnce: it would fill the buffer.
func TestMuchForWhichNobodyWaitsIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := created(t, Config{Dir: filepath.Join(t.TempDir(), "journal"), Buffer: 64 << 10})
		defer closed(t, j)
		if _, err := j.Append(make([]byte, 16<<10), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := j.Stats(); s.Committed != 1 {
			t.Fatalf("%+v", s)
		}
	})
}
