package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/fleethub/fleethub/hub/console"
)

// withConsole puts the operators' pages before the API, which they are a client of.
func (h *Hub) withConsole(api http.Handler) (http.Handler, error) {
	drain, stop := context.WithCancel(context.Background())
	h.api.RegisterOnShutdown(stop)
	pages, err := console.New(console.Config{
		API: api, Counts: h.fleet.Count, Log: h.log,
		Online: func() int {
			n := h.broker.Stats()
			return n.Devices + n.Services
		},
	}, drain)
	if err != nil {
		stop()
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path+"/" == console.Prefix:
			http.Redirect(w, r, console.Prefix, http.StatusPermanentRedirect)
		case strings.HasPrefix(r.URL.Path, console.Prefix):
			pages.ServeHTTP(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	}), nil
}
