package peers

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/mtls"
)

// bystanderFile, in the environment of the test's own program, makes it the bystanders that the file describes.
const bystanderFile = "PEERS_BYSTANDERS"

// bystanderPause is how often each of them sends something.
const bystanderPause = 500 * time.Millisecond

// bystanderPlan is what is in the file.
type bystanderPlan struct {
	Addr    string
	Folders []string // of credentials
	Out     string   // where the samples go
}

// sample is one exchange: when its packet was due, and how long its answer took.
type sample struct {
	At     time.Time
	Took   time.Duration
	Stored bool // it was a PUBLISH: its answer waits for the hub's disk
}

// span is what was seen from one time on and before another.
type span struct{ all, pings, publishes []time.Duration }

func within(samples []sample, from, to time.Time) (w span) {
	for _, s := range samples {
		if s.At.Before(from) || !s.At.Before(to) {
			continue
		}
		w.all = append(w.all, s.Took)
		if s.Stored {
			w.publishes = append(w.publishes, s.Took)
		} else {
			w.pings = append(w.pings, s.Took)
		}
	}
	return w
}

// String says the figures of people's interest.
func (w span) String() string {
	say := func(took []time.Duration) string {
		return fmt.Sprintf("p50 %v p99 %v most %v", quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1))
	}
	return fmt.Sprintf("%d exchanges, %s (PINGREQ %s; PUBLISH %s)", len(w.all), say(w.all), say(w.pings), say(w.publishes))
}

// watch starts the bystanders in a process of their own, waits until they are connected, and returns what ends them and
// returns all that they have seen.
func (s *site) watch(b *testing.B, p peer, folders []string) func() []sample {
	b.Helper()
	plan := bystanderPlan{Addr: p.addr, Folders: folders, Out: filepath.Join(b.TempDir(), "samples.json")}
	file := filepath.Join(b.TempDir(), "plan.json")
	data, err := json.Marshal(plan)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), bystanderFile+"="+file), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatalf("the bystanders didn't come: %v", err)
	}
	return func() (samples []sample) {
		b.Helper()
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatalf("the bystanders: %v", err)
		}
		data, err := os.ReadFile(plan.Out)
		if err == nil {
			err = json.Unmarshal(data, &samples)
		}
		if err != nil {
			b.Fatal(err)
		}
		return samples
	}
}

// serveBystanders connects them, prints a line, and has each of them send PINGREQ and PUBLISH with QoS 1 in turn until the
// standard input ends.
func serveBystanders(file string) error {
	var plan bystanderPlan
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &plan)
	}
	if err != nil {
		return err
	}
	clients, ids := make([]*client, len(plan.Folders)), make([]string, len(plan.Folders))
	var connecting errgroup.Group
	connecting.SetLimit(workers)
	for i, folder := range plan.Folders {
		connecting.Go(func() error {
			who, err := mtls.LoadCredentials(folder, "device")
			if err != nil {
				return err
			}
			ids[i] = who.Identity.ID
			clients[i], err = dial(peer{addr: plan.Addr}, who, ids[i], true)
			return err
		})
	}
	if err := connecting.Wait(); err != nil {
		return err
	}
	fmt.Println("connected")
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	var (
		all     errgroup.Group
		mu      sync.Mutex // guards samples
		samples []sample
	)
	runtime.GC()
	debug.SetGCPercent(-1) // a pause here is none of the server's
	began := time.Now()
	for i, c := range clients {
		c.conn.SetDeadline(time.Time{})
		all.Go(func() error {
			mine, err := c.exchange(ids[i], began.Add(time.Duration(i)*bystanderPause/time.Duration(len(clients))), stop)
			mu.Lock()
			defer mu.Unlock()
			samples = append(samples, mine...)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if data, err = json.Marshal(samples); err != nil {
		return err
	}
	return os.WriteFile(plan.Out, data, 0o600)
}

// exchange sends a packet at each pause, the first at due, and notes how long its answer takes. One that falls due while the
// answer to the one before is still awaited has waited since then; that this process woke up late is not the server's doing.
func (c *client) exchange(id string, due time.Time, stop <-chan struct{}) (samples []sample, err error) {
	m := newMessage("d/"+id+"/tele/x", 1, payload)
	ready := time.Now()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return samples, nil
		case <-time.After(time.Until(due)):
		}
		began := due
		if ready.Before(due) {
			began = time.Now()
		}
		if n%2 == 0 {
			err = c.barrier()
		} else if err = c.publishAcknowledged(func(int) message { return m }, 1, 1); errors.Is(err, io.EOF) {
			err = fmt.Errorf("a bystander was cut off: %w", err)
		}
		if err != nil {
			return samples, err
		}
		ready = time.Now()
		samples = append(samples, sample{began, ready.Sub(began), n%2 == 1})
		due = due.Add(bystanderPause)
	}
}
