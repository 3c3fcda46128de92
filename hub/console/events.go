package console

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// writeDeadline is how long one write to a page may take.
const writeDeadline = 10 * time.Second

// events sends the numbers whenever they have changed, as server-sent events, until the page is
// left, its operator is one no more, or the hub stops.
func (c *console) events(w http.ResponseWriter, r *http.Request) {
	free := c.streams.take(operator(r))
	if free == nil {
		c.refuse(w, r, &refusal{Status: http.StatusServiceUnavailable, Title: "Service Unavailable", Detail: "too many pages are open; this one is not kept fresh"})
		return
	}
	defer free()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(c.drain, cancel)()
	control := http.NewResponseController(w)
	// The server's read deadline would end the request as if its reader had gone.
	if control.SetReadDeadline(time.Time{}) != nil {
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(c.config.Interval)
	defer tick.Stop()
	for last := ""; ; {
		if _, err := c.ask(r, request{method: http.MethodGet, path: "/v1/audit/head"}, nil); err != nil {
			return
		}
		text, err := json.Marshal(c.fresh())
		if err != nil || control.SetWriteDeadline(time.Now().Add(writeDeadline)) != nil {
			return
		}
		line := ": still here\n\n"
		if string(text) != last {
			last = string(text)
			line = "data: " + last + "\n\n"
		}
		if _, err := fmt.Fprint(w, line); err != nil || control.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// fresh is the numbers by the names that they have in pages.
func (c *console) fresh() map[string]int {
	n := c.numbers()
	all := map[string]int{"total": n.Total, "online": n.Online}
	for _, count := range n.Counts {
		all[string(count.State)] = count.N
	}
	return all
}
