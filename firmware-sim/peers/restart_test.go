package peers

import (
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// restartDevices is the fleet that finds its hub restarted.
const restartDevices = 5000

// BenchmarkRestart counts how many devices resume their TLS sessions with a hub that was restarted in between. It ignores
// b.N.
func BenchmarkRestart(b *testing.B) {
	for _, version := range []uint16{tls.VersionTLS13, tls.VersionTLS12} {
		s := newSite(b, restartDevices)
		first, stop := s.startHub(b)
		sessions := s.connectAll(b, first, kind{version, false}, nil)
		stop()
		second, stop := s.startHub(b)
		var resumed atomic.Int64
		var wait sync.WaitGroup
		for w := range workers {
			wait.Go(func() {
				for i := w; i < len(s.devices); i += workers {
					again, err := connect(second.addr, s.devices[i], version, sessions[i])
					if err != nil {
						b.Errorf("device %d after the restart: %v", i, err)
						return
					}
					if again {
						resumed.Add(1)
					}
				}
			})
		}
		wait.Wait()
		stop()
		share := 100 * float64(resumed.Load()) / restartDevices
		fmt.Printf("%s: %d of %d devices resumed after a restart of the hub, %.2f %%\n", tls.VersionName(version), resumed.Load(), restartDevices, share)
		b.ReportMetric(share, "%resumed-"+fmt.Sprintf("%x", version))
	}
	b.ReportMetric(0, "ns/op")
}
