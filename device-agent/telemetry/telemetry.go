// Package telemetry reads this machine's own state from /proc and /sys: CPU
// temperature, load, memory, disk, uptime and network counters. A source that
// is absent or malformed leaves its values out; nothing in those files makes
// a reading fail or the program stop.
package telemetry

import (
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/fleethub/fleethub/hub/protocol"
)

// Channel is the telemetry channel of a machine's own readings.
const Channel = "machine"

// maxFile bounds what is read of one file; the largest, /proc/net/dev, has
// 120 bytes a network interface.
const maxFile = 64 << 10

// Config is what a [Source] reads from. The zero value is this machine.
type Config struct {
	// Root is the file system that has proc and sys. Nil is the machine's.
	Root fs.FS

	// Disk returns size and free space in bytes of the file system to report.
	// Nil is the one at /.
	Disk func() (size, free uint64, err error)

	// Now is the clock. Nil is time.Now.
	Now func() time.Time

	// Boot names this run in every reading. Empty takes a new [BootID].
	Boot string
}

// Source takes readings. It is safe for concurrent use.
type Source struct {
	root fs.FS
	disk func() (size, free uint64, err error)
	now  func() time.Time
	boot string
	seq  atomic.Uint64
}

// New returns a source whose first reading has sequence number 1.
func New(config Config) *Source {
	s := &Source{root: config.Root, disk: config.Disk, now: config.Now, boot: config.Boot}
	if s.root == nil {
		s.root = os.DirFS("/")
	}
	if s.disk == nil {
		s.disk = func() (uint64, uint64, error) { return diskSpace("/") }
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.boot == "" {
		s.boot = BootID(s.root)
	}
	return s
}

// Boot returns what names this run.
func (s *Source) Boot() string { return s.boot }

// Seq returns the sequence number of the last reading, 0 before the first.
func (s *Source) Seq() uint64 { return s.seq.Load() }

// Read takes a reading.
func (s *Source) Read() protocol.Reading {
	return protocol.Reading{
		Time:   s.now().UTC(),
		Boot:   s.boot,
		Seq:    s.seq.Add(1),
		Values: s.values(),
	}
}

func (s *Source) values() map[string]any {
	v := make(map[string]any, 16)
	if celsius, ok := s.cpuCelsius(); ok {
		v["cpu_celsius"] = celsius
	}
	if l, ok := parseLoad(s.read("proc/loadavg")); ok {
		v["load1"], v["load5"], v["load15"] = l[0], l[1], l[2]
	}
	if m, ok := parseMemory(s.read("proc/meminfo")); ok {
		v["memory_total_bytes"], v["memory_used_bytes"] = m.total, m.total-m.available
	}
	if size, free, err := s.disk(); err == nil && size > 0 {
		v["disk_total_bytes"], v["disk_used_bytes"] = size, size-min(free, size)
	}
	if up, ok := parseUptime(s.read("proc/uptime")); ok {
		v["uptime_seconds"] = up
	}
	if n, ok := s.network(); ok {
		v["network_received_bytes"], v["network_sent_bytes"] = n.rxBytes, n.txBytes
		v["network_receive_errors"], v["network_send_errors"] = n.rxErrors, n.txErrors
	}
	return v
}

// read returns the start of a file, or nil.
func (s *Source) read(name string) []byte { return readFile(s.root, name) }

func readFile(root fs.FS, name string) []byte {
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return data
}
