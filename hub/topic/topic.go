// Package topic knows MQTT's topic names and filters: which are well formed, which filter matches which name, who
// subscribes to a name (Index), and which retained message a filter asks for (Retained).
//
// The package holds no message and knows no connection: it does no I/O, starts no goroutine, and imports nothing of ours.
package topic

import "strings"

// The hub's own limits on topics, far above what the product's need. They keep everything that walks over levels shallow:
// 65,000 slashes fit into one MQTT string.
const (
	maxBytes  = 1024
	maxLevels = 16
)

// ValidName reports whether name may be published to: not empty, no wildcard, no NUL [MQTT-4.7.3-1, -2; MQTT-3.3.2-2], no
// other control character, and within the hub's limits of 1,024 bytes and 16 levels.
func ValidName(name string) bool {
	return withinLimits(name) && strings.IndexByte(name, '+') < 0 && strings.IndexByte(name, '#') < 0
}

// ValidFilter reports whether filter may be subscribed to: as a topic name, but '#' may be its whole last level and '+' any
// whole level [MQTT-4.7.1-1, -2], and a shared subscription has a share name without wildcards and a filter behind it
// [MQTT-4.8.2-1, -2]. The limits are those of ValidName, the share's part included.
func ValidFilter(filter string) bool {
	if !withinLimits(filter) {
		return false
	}
	if rest, shared := strings.CutPrefix(filter, "$share/"); shared {
		name, behind, ok := strings.Cut(rest, "/")
		if !ok || name == "" || behind == "" || strings.ContainsAny(name, "+#") {
			return false
		}
		filter = behind
	} else if filter == "$share" {
		return false
	}
	for {
		level, rest, more := strings.Cut(filter, "/")
		if len(level) > 1 && (strings.IndexByte(level, '+') >= 0 || strings.IndexByte(level, '#') >= 0) {
			return false
		}
		if level == "#" && more {
			return false
		}
		if !more {
			return true
		}
		filter = rest
	}
}

// withinLimits checks what names and filters have in common. Well-formed UTF-8 is the packet decoder's business
// [MQTT-1.5.4-1].
func withinLimits(s string) bool {
	if s == "" || len(s) > maxBytes {
		return false
	}
	levels := 1
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/':
			levels++
		case c < 0x20, c == 0x7f:
			return false
		}
	}
	return levels <= maxLevels
}

// CutShare takes the share name off the filter of a shared subscription: "$share/workers/d/+/tele/#" is "workers" and
// "d/+/tele/#" [MQTT-4.8.2]. Any other filter is returned as rest. Filter is one that ValidFilter accepts.
func CutShare(filter string) (share, rest string, shared bool) {
	behind, ok := strings.CutPrefix(filter, "$share/")
	if !ok {
		return "", filter, false
	}
	share, rest, ok = strings.Cut(behind, "/")
	if !ok {
		return "", filter, false
	}
	return share, rest, true
}

// Match reports whether filter, its share taken off, matches name, level by level, byte by byte [MQTT-4.7.3-4]. A wildcard
// at the first level matches no name that begins with '$' [MQTT-4.7.2-1]; "a/#" matches "a" too [MQTT-4.7.1.2]. It allocates
// nothing.
func Match(filter, name string) bool {
	if name != "" && name[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		want, wantRest, wantMore := strings.Cut(filter, "/")
		if want == "#" && !wantMore {
			return true
		}
		got, gotRest, gotMore := strings.Cut(name, "/")
		if want != "+" && want != got {
			return false
		}
		if !gotMore {
			return !wantMore || wantRest == "#"
		}
		if !wantMore {
			return false
		}
		filter, name = wantRest, gotRest
	}
}

// subtree returns the first two levels of a name or a filter. Whether a filter that has no wildcard in them matches a name
// is decided first by whether they are equal.
func subtree(s string) string {
	first := strings.IndexByte(s, '/')
	if first < 0 {
		return s
	}
	second := strings.IndexByte(s[first+1:], '/')
	if second < 0 {
		return s
	}
	return s[:first+1+second]
}

// wild reports whether a part of a valid filter contains a wildcard.
func wild(part string) bool {
	return strings.IndexByte(part, '+') >= 0 || strings.IndexByte(part, '#') >= 0
}
