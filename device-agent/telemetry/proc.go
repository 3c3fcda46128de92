package telemetry

import (
	"bytes"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// parseLoad reads /proc/loadavg: the averages of 1, 5 and 15 minutes first.
func parseLoad(data []byte) (load [3]float64, ok bool) {
	fields := bytes.Fields(data)
	if len(fields) < len(load) {
		return load, false
	}
	for i := range load {
		if load[i], ok = number(fields[i]); !ok {
			return [3]float64{}, false
		}
	}
	return load, true
}

// parseUptime reads /proc/uptime: seconds since boot first.
func parseUptime(data []byte) (seconds float64, ok bool) {
	fields := bytes.Fields(data)
	if len(fields) == 0 {
		return 0, false
	}
	return number(fields[0])
}

// number accepts what a JSON number can be and a counter is: finite and not
// negative.
func number(field []byte) (float64, bool) {
	f, err := strconv.ParseFloat(string(field), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
		return 0, false
	}
	return f, true
}

// memory is in bytes; available is at most total.
type memory struct{ total, available uint64 }

// parseMemory reads /proc/meminfo. Available memory is what the kernel says
// it could give out without swapping, which free memory alone is not.
func parseMemory(data []byte) (m memory, ok bool) {
	var hasTotal, hasAvailable bool
	for line := range bytes.Lines(data) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "MemTotal":
			m.total, hasTotal = kibibytes(rest)
		case "MemAvailable":
			m.available, hasAvailable = kibibytes(rest)
		}
	}
	m.available = min(m.available, m.total)
	return m, hasTotal && hasAvailable && m.total > 0
}

func kibibytes(field []byte) (uint64, bool) {
	fields := bytes.Fields(field)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil || n > math.MaxUint64/1024 {
		return 0, false
	}
	return n * 1024, true
}

// counters are of one network interface, or of several together.
type counters struct{ rxBytes, rxErrors, txBytes, txErrors uint64 }

func (c *counters) add(o counters) {
	c.rxBytes += o.rxBytes
	c.rxErrors += o.rxErrors
	c.txBytes += o.txBytes
	c.txErrors += o.txErrors
}

// The columns of /proc/net/dev after the interface's name.
const (
	columnRxBytes  = 0
	columnRxErrors = 2
	columnTxBytes  = 8
	columnTxErrors = 10
)

// parseNetwork reads /proc/net/dev into counters by interface. Lines that
// aren't an interface's are skipped.
func parseNetwork(data []byte) map[string]counters {
	found := make(map[string]counters)
	for line := range bytes.Lines(data) {
		name, rest, cut := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(rest)
		if !cut || len(fields) <= columnTxErrors {
			continue
		}
		var c counters
		good := true
		for column, to := range map[int]*uint64{
			columnRxBytes: &c.rxBytes, columnRxErrors: &c.rxErrors,
			columnTxBytes: &c.txBytes, columnTxErrors: &c.txErrors,
		} {
			n, err := strconv.ParseUint(string(fields[column]), 10, 64)
			*to, good = n, good && err == nil
		}
		if id := string(bytes.TrimSpace(name)); good && id != "" {
			found[id] = c
		}
	}
	return found
}

// network adds up the interfaces that are hardware, so that traffic through a
// bridge or tunnel isn't counted twice. A container has none: there, every
// interface but the loopback counts.
func (s *Source) network() (total counters, ok bool) {
	all := parseNetwork(s.read("proc/net/dev"))
	delete(all, "lo")
	hardware := false
	for name := range all {
		if s.isHardware(name) {
			hardware = true
		}
	}
	for name, c := range all {
		if !hardware || s.isHardware(name) {
			total.add(c)
		}
	}
	return total, len(all) > 0
}

func (s *Source) isHardware(name string) bool {
	device := path.Join("sys/class/net", name, "device")
	if !fs.ValidPath(device) || strings.Contains(name, "/") {
		return false
	}
	_, err := fs.Stat(s.root, device)
	return err == nil
}

// cpuCelsius returns the temperature of the thermal zone that is most likely
// the CPU's: by its type if one says so, else the first that can be read.
func (s *Source) cpuCelsius() (float64, bool) {
	zones, err := fs.Glob(s.root, "sys/class/thermal/thermal_zone*")
	if err != nil {
		return 0, false
	}
	slices.Sort(zones)
	var (
		first float64
		found bool
	)
	for _, zone := range zones {
		celsius, ok := parseCelsius(s.read(zone + "/temp"))
		if !ok {
			continue
		}
		kind := strings.ToLower(strings.TrimSpace(string(s.read(zone + "/type"))))
		if strings.Contains(kind, "cpu") || strings.Contains(kind, "soc") || kind == "x86_pkg_temp" {
			return celsius, true
		}
		if !found {
			first, found = celsius, true
		}
	}
	return first, found
}

// parseCelsius reads a thermal zone's temp, in thousandths of a degree. What
// no silicon survives is a sensor that isn't there.
func parseCelsius(data []byte) (float64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || n < -100_000 || n > 250_000 {
		return 0, false
	}
	return float64(n) / 1000, true
}
