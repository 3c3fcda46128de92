package peers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fleethub/fleethub/certs/mtls"
)

const (
	revokeLive       = 10_000 // sessions, all revoked in the end by one order
	revokeOne        = 300    // sessions more that are revoked one by one
	revokeBystanders = 500    // sessions more whose latency is watched
	revokeWatch      = 5 * time.Second
)

// BenchmarkRevoke measures, at the clients, how fast a hub that has 10,000 sessions cuts devices off: a hub process, a
// process with the sessions (this one) and one with 500 bystanders that exchange 1,000 packets a second with the hub, PINGREQ
// and QoS 1 PUBLISH in turn. Every session is a stored one with a subscription, so that there is something to purge.
//
//   - One: 300 orders, one after the other. From the moment at which the order is sent until the device's read returns the
//     end of its connection, and from the receipt's durable_at until then (one machine, one clock).
//   - A selector of 10,000: from the order until the last of their reads has ended, and the bystanders' p99 meanwhile against
//     their p99 before; that until the receipt is there, too: the hub writes the records when the sessions are closed.
//
// All three processes share the machine's processors. It ignores b.N.
func BenchmarkRevoke(b *testing.B) {
	s := emptySite(b, revokeLive+revokeOne)
	bystanders := s.further(b, "s-", revokeBystanders)
	hub, _ := s.startHub(b)
	s.loadAll(b)
	operator := s.operator(b)
	watch := s.watch(b, hub, bystanders)
	ends := newEnds()
	clients, err := s.idleStored(hub)
	b.Cleanup(func() { closeAll(clients) })
	if err != nil {
		b.Fatal(err)
	}
	for i, c := range clients {
		go ends.await(i, c)
	}
	time.Sleep(revokeWatch) // until the hub has written what connecting left to write

	var posted, durable []time.Duration
	for i := revokeLive; i < revokeLive+revokeOne; i++ {
		began := time.Now()
		var answer revocation
		if _, err := operator.post("/v1/devices/"+s.devices[i].Identity.ID+"/revoke", order{Reason: "keyCompromise", Confirm: true}, &answer); err != nil {
			b.Fatal(err)
		}
		at, err := ends.of(i)
		if err != nil {
			b.Fatal(err)
		}
		posted, durable = append(posted, at.Sub(began)), append(durable, at.Sub(answer.Receipt.DurableAt))
	}
	// Of the devices' work on these processors, only what the order makes is wanted here.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	ones := time.Now()
	time.Sleep(revokeWatch)

	began, cpu := time.Now(), hub.cpu(b)
	var answer revocation
	receipt, err := operator.post("/v1/selections/revoke", order{Select: "id=d-*", Reason: "keyCompromise", Confirm: true, Count: revokeLive}, &answer)
	if err != nil {
		b.Fatal(err)
	}
	last := began
	var each []time.Duration
	for i := range revokeLive {
		at, err := ends.of(i)
		if err != nil {
			b.Fatal(err)
		}
		each = append(each, at.Sub(began))
		if at.After(last) {
			last = at
		}
	}
	if answer.Receipt.SessionsClosed != revokeLive {
		b.Errorf("the receipt says that %d sessions were closed, not %d", answer.Receipt.SessionsClosed, revokeLive)
	}
	spent := hub.cpu(b) - cpu
	time.Sleep(revokeWatch)
	samples := watch()
	before, during, records, after := within(samples, ones, began), within(samples, began, last), within(samples, last, receipt), within(samples, receipt, time.Now())
	fmt.Printf("the selector's order: durable after %v, receipt after %v, %.2f s of the hub's processor time until the last session had ended and the receipt was there\n",
		answer.Receipt.DurableAt.Sub(began).Round(time.Millisecond), receipt.Sub(began).Round(time.Millisecond), spent.Seconds())
	fmt.Printf("bystanders before: %v\n           during: %v\nuntil the receipt: %v\n            after: %v\n", before, during, records, after)
	ms := func(d time.Duration) map[string]float64 {
		return map[string]float64{"hub": float64(d.Microseconds()) / 1e3}
	}
	ratio := func(w span) map[string]float64 {
		return map[string]float64{"hub": float64(quantile(w.all, 0.99)) / float64(quantile(before.all, 0.99))}
	}
	printFigures(b, "revocation", []peer{hub}, []figure{
		{name: fmt.Sprintf("one of %d sessions: order to end of connection, p50", revokeLive), unit: "ms-p50", format: "%.1f ms", values: ms(quantile(posted, 0.5))},
		{name: "p99", unit: "ms-p99", format: "%.1f ms", values: ms(quantile(posted, 0.99)), limit: 20},
		{name: "durable to end of connection, p99", unit: "ms-durable-p99", format: "%.1f ms", values: ms(quantile(durable, 0.99)), limit: 20},
		{name: fmt.Sprintf("selector of %d: order to the last end of a connection", revokeLive), unit: "ms-all", format: "%.0f ms", values: ms(last.Sub(began)), limit: 3000},
		{name: "to the median end", unit: "ms-median", format: "%.0f ms", values: ms(quantile(each, 0.5))},
		{name: fmt.Sprintf("p99 of %d others meanwhile ÷ before", revokeBystanders), unit: "p99-ratio", format: "%.2f",
			values: ratio(during), limit: 2},
		{name: "then, until the receipt ÷ before", unit: "p99-records-ratio", format: "%.2f", values: ratio(records)},
	})
}

// further makes devices of another prefix, and the manifest that names them, and returns their folders.
func (s *site) further(b *testing.B, prefix string, n int) []string {
	b.Helper()
	station, out, manifest := filepath.Join(s.dir, "station"), filepath.Join(s.dir, "further-"+prefix), filepath.Join(s.dir, "manifest-"+prefix)
	s.run(b, "provisioning", "batch", "--dir", station, "--prefix", prefix, "--count", fmt.Sprint(n), "--out", out)
	s.run(b, "provisioning", "manifest", "--dir", station, "--out", manifest)
	s.manifests = append(s.manifests, manifest)
	folders, err := filepath.Glob(filepath.Join(out, prefix+"*"))
	if err != nil || len(folders) != n {
		b.Fatalf("%d of %d devices: %v", len(folders), n, err)
	}
	return folders
}

// loadAll reads the devices' credentials.
func (s *site) loadAll(b *testing.B) {
	b.Helper()
	for _, f := range s.folders {
		s.devices = append(s.devices, s.load(b, f, "device"))
	}
}

// idleStored connects all devices with a stored session each, which has a subscription.
func (s *site) idleStored(p peer) ([]*client, error) {
	clients := make([]*client, len(s.devices))
	var all errgroup.Group
	for w := range workers {
		all.Go(func() (err error) {
			for i := w; i < len(clients); i += workers {
				d := s.devices[i]
				if clients[i], err = dial(p, d, d.Identity.ID, false); err != nil {
					return err
				}
				if err := clients[i].subscribe("d/"+d.Identity.ID+"/cmd/#", 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := all.Wait()
	return clients, err
}

// ends knows when connections ended.
type ends struct {
	mu   sync.Mutex // guards at
	at   map[int]time.Time
	some *sync.Cond // of mu: at has grown
}

func newEnds() *ends {
	e := &ends{at: make(map[int]time.Time)}
	e.some = sync.NewCond(&e.mu)
	return e
}

// await reads until the server ends the connection.
func (e *ends) await(i int, c *client) {
	c.conn.SetDeadline(time.Time{})
	_, err := c.in.ReadByte()
	at := time.Now()
	if err == nil || errors.Is(err, net.ErrClosed) {
		return // a packet, or the end of the benchmark: nobody was cut off
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at[i] = at
	e.some.Broadcast()
}

// of waits for the end of a connection.
func (e *ends) of(i int) (time.Time, error) {
	late := time.AfterFunc(patience, e.some.Broadcast)
	defer late.Stop()
	began := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.at[i].IsZero() {
		if time.Since(began) >= patience {
			return time.Time{}, fmt.Errorf("connection %d is still there", i)
		}
		e.some.Wait()
	}
	return e.at[i], nil
}

// operatorClient gives orders, over one connection.
type operatorClient struct {
	http http.Client
	base string
}

// order is a revocation as the API takes it, of one device or of those that a selector picks.
type order struct {
	Select  string `json:"select,omitempty"`
	Reason  string `json:"reason"`
	Confirm bool   `json:"confirm"`
	Count   int    `json:"count,omitempty"`
}

// revocation is what is looked at of the answer.
type revocation struct {
	Receipt struct {
		DurableAt      time.Time `json:"durable_at"`
		SessionsClosed int       `json:"sessions_closed"`
	} `json:"receipt"`
}

func (s *site) operator(b *testing.B) *operatorClient {
	b.Helper()
	who := s.load(b, filepath.Join(s.dir, "hub", "operator"), "operator")
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: who.Certificate, Roots: who.Roots, ServerName: "127.0.0.1"})
	c := &operatorClient{http: http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: patience}, base: "https://" + s.endpoint(b, "https")}
	b.Cleanup(c.http.CloseIdleConnections)
	return c
}

// post gives an order and reads the answer, which was there at the time that it returns.
func (c *operatorClient) post(path string, body, answer any) (at time.Time, err error) {
	data, err := json.Marshal(body)
	if err != nil {
		return at, err
	}
	r, err := c.http.Post(c.base+path, "application/json", bytes.NewReader(data))
	if err != nil {
		return at, err
	}
	defer r.Body.Close()
	if data, err = io.ReadAll(r.Body); err != nil {
		return at, err
	}
	at = time.Now()
	if r.StatusCode != http.StatusOK {
		return at, fmt.Errorf("%s: %s: %.500s", path, r.Status, data)
	}
	return at, json.Unmarshal(data, answer)
}

// quantile returns the value that a share of the values doesn't exceed, 0 of none.
func quantile(values []time.Duration, share float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))].Round(10 * time.Microsecond)
}
