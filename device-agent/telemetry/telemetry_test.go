package telemetry

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

// board is what a Raspberry Pi shows, cut to what is read.
func board() fstest.MapFS {
	return fstest.MapFS{
		"proc/loadavg": file("0.52 0.58 0.59 1/467 12345\n"),
		"proc/uptime":  file("350735.47 234388.90\n"),
		"proc/meminfo": file("MemTotal:         948304 kB\nMemFree:           57348 kB\nMemAvailable:     706112 kB\nBuffers:           47908 kB\n"),
		"proc/net/dev": file(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000000   10000    0    0    0     0          0         0 1000000   10000    0    0    0     0       0          0
  eth0: 5000      50       1    0    0     0          0         0 700       7       2    0    0     0       0          0
 wlan0:30         3        0    0    0     0          0         0 40        4       0    0    0     0       0          0
docker0: 900000   50       9    0    0     0          0         0 900000    7       9    0    0     0       0          0
`),
		"proc/sys/kernel/random/boot_id":        file("6f1f1c9a-0a3e-4f0c-9d0c-7a3d2f0f6b11\n"),
		"sys/class/net/eth0/device/vendor":      file("0x1d6a\n"),
		"sys/class/net/wlan0/device/vendor":     file("0x1d6b\n"),
		"sys/class/thermal/thermal_zone0/temp":  file("31000\n"),
		"sys/class/thermal/thermal_zone0/type":  file("acpitz\n"),
		"sys/class/thermal/thermal_zone1/temp":  file("48312\n"),
		"sys/class/thermal/thermal_zone1/type":  file("cpu-thermal\n"),
		"sys/class/thermal/cooling_device0/max": file("3\n"),
	}
}

func source(root fs.FS) *Source {
	return New(Config{
		Root: root,
		Disk: func() (uint64, uint64, error) { return 1000, 400, nil },
		Now:  func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 3600)) },
	})
}

func TestReadingHasWhatTheBoardShows(t *testing.T) {
	r := source(board()).Read()
	want := map[string]any{
		"cpu_celsius": 48.312, "load1": 0.52, "load5": 0.58, "load15": 0.59,
		"memory_total_bytes": uint64(948304 * 1024), "memory_used_bytes": uint64((948304 - 706112) * 1024),
		"disk_total_bytes": uint64(1000), "disk_used_bytes": uint64(600), "uptime_seconds": 350735.47,
		"network_received_bytes": uint64(5030), "network_sent_bytes": uint64(740),
		"network_receive_errors": uint64(1), "network_send_errors": uint64(2),
	}
	if !maps.Equal(r.Values, want) {
		t.Errorf("values are\n%v, want\n%v", r.Values, want)
	}
	if got := r.Time.Format(time.RFC3339); got != "2026-03-01T11:00:00Z" {
		t.Errorf("time is %s, want it in UTC", got)
	}
	if !regexp.MustCompile(`^6f1f1c9a-[0-9a-f]{8}$`).MatchString(r.Boot) {
		t.Errorf("boot is %q", r.Boot)
	}
}

func TestSequenceCountsFromOneAndRunsDiffer(t *testing.T) {
	root := board()
	a, b := source(root), source(root)
	for want := uint64(1); want <= 3; want++ {
		if got := a.Read().Seq; got != want || a.Seq() != want {
			t.Errorf("seq %d, want %d", got, want)
		}
	}
	if a.Boot() == b.Boot() {
		t.Error("two runs share the name of a boot")
	}
}

func TestAbsentSourcesLeaveValuesOut(t *testing.T) {
	s := New(Config{Root: fstest.MapFS{}, Disk: func() (uint64, uint64, error) { return 0, 0, errors.New("no disk") }})
	r := s.Read()
	if len(r.Values) != 0 {
		t.Errorf("values out of nothing: %v", r.Values)
	}
	if len(r.Boot) != 8 || r.Seq != 1 {
		t.Errorf("reading is %+v", r)
	}
}

func TestContainerWithoutHardwareCountsItsInterfaces(t *testing.T) {
	root := board()
	delete(root, "sys/class/net/eth0/device/vendor")
	delete(root, "sys/class/net/wlan0/device/vendor")
	if got := source(root).Read().Values["network_received_bytes"]; got != uint64(905030) {
		t.Errorf("received %v bytes, want everything but the loopback's", got)
	}
}

func TestWithoutACPUZoneTheFirstReadableOneCounts(t *testing.T) {
	root := board()
	root["sys/class/thermal/thermal_zone1/temp"] = file("not a number\n")
	if got := source(root).Read().Values["cpu_celsius"]; got != 31.0 {
		t.Errorf("cpu_celsius is %v, want 31", got)
	}
}

func TestMalformedFilesAreLeftOut(t *testing.T) {
	for _, tt := range []struct{ path, text, absent string }{
		{"proc/loadavg", "", "load1"},
		{"proc/loadavg", "0.1 0.2", "load1"},
		{"proc/loadavg", "NaN 0.2 0.3", "load1"},
		{"proc/loadavg", "-1 0.2 0.3", "load1"},
		{"proc/uptime", "Inf 1", "uptime_seconds"},
		{"proc/uptime", "\n", "uptime_seconds"},
		{"proc/meminfo", "MemTotal: 5 kB\n", "memory_total_bytes"},
		{"proc/meminfo", "MemTotal:\nMemAvailable:\n", "memory_total_bytes"},
		{"proc/meminfo", "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n", "memory_total_bytes"},
		{"proc/net/dev", "eth0: 1 2 3\n", "network_sent_bytes"},
		{"proc/net/dev", "eth0: a b c d e f g h i j k\n", "network_sent_bytes"},
	} {
		root := board()
		root[tt.path] = file(tt.text)
		if got, ok := source(root).Read().Values[tt.absent]; ok {
			t.Errorf("%s = %q gives %s = %v", tt.path, tt.text, tt.absent, got)
		}
	}
}

func TestThisMachineCanBeRead(t *testing.T) {
	r := New(Config{}).Read()
	for _, name := range []string{"load1", "memory_total_bytes", "disk_total_bytes", "uptime_seconds"} {
		if _, ok := r.Values[name]; !ok {
			t.Errorf("no %s in %v", name, r.Values)
		}
	}
}

// FuzzSources holds that no content of any file panics, and that what is read
// can be sent: finite numbers, and used never more than there is.
func FuzzSources(f *testing.F) {
	for _, m := range board() {
		f.Add(m.Data)
	}
	f.Add([]byte("eth0: 18446744073709551615 1 1 1 1 1 1 1 1 1 1\n../x: 1 2 3 4 5 6 7 8 9 10 11\n"))
	f.Add([]byte("MemTotal: 1 kB\nMemAvailable: 99 kB\n"))
	names := []string{
		"proc/loadavg", "proc/uptime", "proc/meminfo", "proc/net/dev", "proc/sys/kernel/random/boot_id",
		"sys/class/thermal/thermal_zone0/temp", "sys/class/thermal/thermal_zone0/type",
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		root := fstest.MapFS{}
		for _, name := range names {
			root[name] = &fstest.MapFile{Data: data}
		}
		r := source(root).Read()
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		for name, value := range r.Values {
			if v, ok := value.(float64); ok && (math.IsNaN(v) || math.IsInf(v, 0)) {
				t.Errorf("%s is %v", name, v)
			}
		}
		total, _ := r.Values["memory_total_bytes"].(uint64)
		if used, _ := r.Values["memory_used_bytes"].(uint64); used > total {
			t.Errorf("%d bytes of %d used", used, total)
		}
		if strings.ContainsAny(r.Boot, "\n ") || len(r.Boot) > 17 {
			t.Errorf("boot is %q", r.Boot)
		}
	})
}
