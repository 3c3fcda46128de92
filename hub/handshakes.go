package main

import (
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/admin"
)

// writeHandshakes adds the account of a device's handshakes to hub device show.
func writeHandshakes(row func(name, format string, args ...any), a *admin.Handshakes) {
	if a == nil {
		row("handshakes", "none since the hub started")
		return
	}
	row("handshakes", "%d full, %d resumed, %d refused since %s; %d bytes up, %d down", a.Full, a.Resumed, a.Refused, when(a.Since), a.BytesUp, a.BytesDown)
	if a.CPUSampled > 0 {
		row("", "hub CPU %s each, in %d measured", seconds(a.CPUSeconds/float64(a.CPUSampled)), a.CPUSampled)
	}
	if l := a.Last; l != nil {
		kind := "full"
		if l.Resumed {
			kind = "resumed"
		}
		row("last handshake", "%s, %s, %s, %d bytes up, %d down, %s", when(l.At), kind, strings.Join([]string{l.TLS, l.Suite, l.Curve}, " "), l.BytesUp, l.BytesDown, seconds(l.Seconds))
	}
	if r := a.LastRefusal; r != nil {
		row("last refusal", "%s, %s, from %s under this name", when(r.At), r.Reason, r.Address)
	}
}

// seconds writes a short time as people read it.
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Microsecond).String()
}
