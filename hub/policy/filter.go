package policy

import "strings"

// The hub's own limits on topics, far above what the product's need. They keep
// an index over levels shallow: 65,000 slashes fit into one MQTT string.
const (
	maxTopicBytes  = 1024
	maxTopicLevels = 16
)

// ValidName reports whether name may be published to: not empty, no wildcard,
// no NUL [MQTT-4.7.3-1, -2; MQTT-3.3.2-2], no other control character, and
// within the hub's limits on length and levels.
func ValidName(name string) bool {
	return withinLimits(name) && strings.IndexByte(name, '+') < 0 && strings.IndexByte(name, '#') < 0
}

// ValidFilter reports whether filter may be subscribed to: as a topic name,
// but '#' may be its whole last level and '+' any whole level [MQTT-4.7.1-2,
// -3], and a shared subscription has a share name without wildcards and a
// filter behind it [MQTT-4.8.2-1, -2]. mochi accepts "sport#", "a/b+/c" and
// "$share//x".
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

// withinLimits checks what names and filters have in common. Well-formed UTF-8
// is the packet decoder's business [MQTT-1.5.4-1].
func withinLimits(s string) bool {
	if s == "" || len(s) > maxTopicBytes {
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
	return levels <= maxTopicLevels
}
