package policy

import "github.com/fleethub/fleethub/hub/topic"

// ValidName reports whether name may be published to: see topic.ValidName.
func ValidName(name string) bool { return topic.ValidName(name) }

// ValidFilter reports whether filter may be subscribed to: see topic.ValidFilter.
func ValidFilter(filter string) bool { return topic.ValidFilter(filter) }
