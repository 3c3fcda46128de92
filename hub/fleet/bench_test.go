package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/boltstore"
	"github.com/fleethub/fleethub/hub/registry"
)

// scale is how many devices the benchmarks have, listed how many a manifest, and
// manifests how many of these are imported.
var (
	scale  = flag.Int("scale", 1_000_000, "devices in the benchmarks of the fleet")
	listed = flag.Int("listed", 20_000, "devices in a manifest of the benchmarks")

	manifests = flag.Int("manifests", 10, "manifests imported one after the other in the benchmarks")
)

// plain returns a device as a manifest would have registered it; one in ten is revoked.
func plain(i int, der []byte) registry.Device {
	at := time.Date(2026, 1, 1, 0, 0, i%100000, 0, time.UTC)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	d := registry.Device{
		ID: fmt.Sprintf("board-%08d", i), State: registry.StateActive, Model: "pi4", Batch: fmt.Sprintf("lot-%04d", i/5000), OU: []string{"pump"},
		Protection: []string{"software", "tpm"}[i%2], Station: fmt.Sprintf("bench-%d", i%4), Manifest: uint64(i / 50000), Created: at, Updated: at,
		Labels: map[string]string{"site": fmt.Sprintf("s%d", i%20), "line": string(rune('a' + i%3))},
		Certificates: []registry.Certificate{{
			Serial: fmt.Sprintf("%x", sum[:16]), Fingerprint: registry.Fingerprint(sum).String(), Issuer: fmt.Sprintf("4052140%d", i%4),
			NotBefore: at, NotAfter: at.AddDate(10, 0, 0), DER: der,
		}},
		History: []registry.Transition{{To: registry.StateRegistered, Cause: registry.Cause{Actor: "spiffe://fleet.example/operator/admin", Note: "manifest 1 of station bench-1", At: at}}},
	}
	if i%10 == 9 {
		d.Revoke(registry.Cause{Actor: "spiffe://fleet.example/operator/admin", Reason: "keyCompromise", At: at})
	}
	return d
}

func crowded(b *testing.B) (*Fleet, *certtest.Fleet) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "hub.db")
	bolt, err := boltstore.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bolt.Close() })
	pki := certtest.New(b)
	enlarge(b, pki)
	// One station has made them all: what it makes next lies among a million serial numbers.
	issuer := hex.EncodeToString(pki.Factory.Certificate().SubjectKeyId)
	der := make([]byte, 460)
	started := time.Now()
	for i := 0; i < *scale; {
		var change registry.Change
		for range min(20_000, *scale-i) {
			d := plain(i, der)
			d.Certificates[0].Issuer = issuer
			change.Devices = append(change.Devices, d)
			if i%3 > 0 {
				change.Sightings = append(change.Sightings, registry.Sighting{ID: d.ID, At: time.Now().Add(-time.Duration(i%90) * 24 * time.Hour)})
			}
			i++
		}
		if err := bolt.Commit(context.Background(), change); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("store of %d devices made in %v", *scale, time.Since(started).Round(time.Millisecond))
	settle()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	started = time.Now()
	f, err := Open(Config{Store: bolt, Sessions: &crowdSessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	took := time.Since(started)
	settle()
	runtime.ReadMemStats(&after)
	b.Logf("opened in %v, %.1f bytes of memory per device", took.Round(time.Millisecond), float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/float64(*scale))
	return f, pki
}

// settle collects garbage, what the first collection leaves to pools included.
func settle() {
	for range 3 {
		runtime.GC()
	}
}

// crowdSessions has one session of every device.
type crowdSessions struct{}

func (*crowdSessions) DisconnectMany(_ context.Context, ids []string, _ string) []Closed {
	closed := make([]Closed, len(ids))
	for i, id := range ids {
		closed[i] = Closed{ID: id, Sessions: 1, At: time.Now()}
	}
	return closed
}

// BenchmarkFleet is a fleet of -scale devices, a tenth of them revoked.
func BenchmarkFleet(b *testing.B) {
	f, pki := crowded(b)
	sums := make([]registry.Fingerprint, 4096)
	ids := make([]string, len(sums))
	for i := range sums {
		d := plain(i*(*scale/len(sums)), nil)
		ids[i] = d.ID
		sums[i], _ = registry.ParseFingerprint(d.Certificates[0].Fingerprint)
	}
	b.Run("admission", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			status, ok := f.Status(ids[i%len(ids)])
			if !ok || status.Admits(sums[i%len(ids)]) == (status.State == registry.StateRevoked) {
				b.Fatal(status)
			}
			i += 1009
		}
	})
	b.Run("admission-both-cores", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			i := 0
			for pb.Next() {
				f.Status(ids[i%len(ids)])
				i += 1009
			}
		})
	})
	b.Run("attributes-for-policy", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if a, known := f.Attributes(ids[i%len(ids)]); !known || a.Model != "pi4" {
				b.Fatal(a, known)
			}
			i += 1009
		}
	})
	list := func(name, text, after string, limit int) {
		b.Run(name, func(b *testing.B) {
			s, err := registry.ParseSelector(text)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				page, err := f.Devices(b.Context(), s, after, limit)
				if err != nil || len(page.Devices) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
	list("list-page-100", "", plain(*scale/2, nil).ID, 100)
	list("list-page-1000", "", plain(*scale/2, nil).ID, 1000)
	list("list-page-selected", "model=pi4,label.site=s7", plain(*scale/2, nil).ID, 100)
	for _, text := range []string{"batch=lot-0042,model=pi4,last-seen<30d", "protection=software", "id=board-*7", "label.site=s7,state=active,expires>30d"} {
		b.Run("selector/"+text, func(b *testing.B) {
			s, err := registry.ParseSelector(text)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				c, err := f.chooseFor(b.Context(), s, VerbRevoke, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(c.ids)), "devices")
			}
		})
	}
	b.Run("import", func(b *testing.B) { importMany(b, f, pki) })
	b.Run("revoke-one", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if _, err := f.Revoke(b.Context(), plain(i*10+1, nil).ID, revocation.KeyCompromise, ann); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	b.Run("revoke-10000", func(b *testing.B) {
		round := 0
		for b.Loop() {
			// 11,111 boards, a tenth of them revoked before.
			text := fmt.Sprintf("state=active,batch=lot-%04d|lot-%04d|lot-%04d", 100+3*round, 101+3*round, 102+3*round)
			s, err := registry.ParseSelector(text)
			if err != nil {
				b.Fatal(err)
			}
			c, err := f.chooseFor(b.Context(), s, VerbRevoke, nil)
			if err != nil {
				b.Fatal(err)
			}
			result, err := f.Execute(b.Context(), Order{Verb: VerbRevoke, Select: s, Count: len(c.ids), Reason: revocation.KeyCompromise}, ann)
			if err != nil {
				b.Fatal(err)
			}
			r := result.Receipt
			b.ReportMetric(float64(r.Count), "devices")
			b.ReportMetric(float64(r.EffectiveAt.Sub(r.RequestedAt).Milliseconds()), "ms-effective")
			b.ReportMetric(r.TimeToRevoke.Max, "ms-closed")
			round++
		}
	})
}

// BenchmarkImport imports manifests of -listed devices, -manifests of them one after the
// other into a store that is empty at first.
func BenchmarkImport(b *testing.B) {
	pki := certtest.New(b)
	enlarge(b, pki)
	bolt, err := boltstore.Open(filepath.Join(b.TempDir(), "hub.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer bolt.Close()
	f, err := Open(Config{Store: bolt, Sessions: &sessions{}, TrustDomain: certtest.TrustDomain, Roots: func() []*x509.Certificate { return pki.Trust().Roots }})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	importMany(b, f, pki)
}

// enlarge lets the station make as many devices as there are.
func enlarge(b *testing.B, pki *certtest.Fleet) {
	b.Helper()
	large, err := pki.Root.IssueCA(issuance.CARequest{
		Kind: identity.KindFactory, Name: certtest.StationName, TrustDomain: certtest.TrustDomain, PublicKey: pki.FactoryKey.Public(), MaxDevices: 1 << 30,
	})
	if err != nil {
		b.Fatal(err)
	}
	if pki.Factory, err = issuance.NewIssuer(large, pki.FactoryKey, nil); err != nil {
		b.Fatal(err)
	}
}

// hubGC is what `hub serve` sets for its garbage collector.
const hubGC = 400

// importMany imports -manifests manifests of -listed devices as one operation, and says
// how fast the first and the last of them went.
func importMany(b *testing.B, f *Fleet, pki *certtest.Fleet) {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(hubGC))
	var used, first, last time.Duration
	mint := newMint(b, pki)
	operations := 0
	for b.Loop() {
		operations++
		for i := range *manifests {
			b.StopTimer()
			data := mint.manifest(*listed)
			settle()
			processor, started := processorTime(b), time.Now()
			b.StartTimer()
			report, err := f.Import(b.Context(), data, ann)
			if err != nil || report.Registered != *listed {
				b.Fatal(report, err)
			}
			last = time.Since(started)
			used += processorTime(b) - processor
			if i == 0 && operations == 1 {
				first = last
			}
		}
	}
	devices := *manifests * *listed
	b.ReportMetric(float64(used.Microseconds())/float64(operations*devices), "cpu-µs/device")
	b.ReportMetric(float64(operations*devices)/b.Elapsed().Seconds(), "devices/s")
	b.ReportMetric(float64(*listed)/first.Seconds(), "devices/s-first")
	b.ReportMetric(float64(*listed)/last.Seconds(), "devices/s-last")
}

// processorTime is what this process has used, which a busy machine doesn't change.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
