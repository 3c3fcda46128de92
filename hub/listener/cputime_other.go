//go:build !linux

package listener

import "time"

// threadTime returns 0: nothing is measured here.
func threadTime() time.Duration { return 0 }
