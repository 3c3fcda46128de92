package ticket

import (
	"encoding/hex"
	"time"
)

// KeyInfo is what may be told of a key: everything but the key.
type KeyInfo struct {
	ID      string // hex
	Created time.Time
}

// Keys returns the ring's keys, newest first: the first seals, all open.
func (r *Ring) Keys() []KeyInfo {
	var keys []KeyInfo
	for _, k := range r.current.Load().keys {
		keys = append(keys, KeyInfo{ID: hex.EncodeToString(k.id[:]), Created: k.created})
	}
	return keys
}
