// Package console is the operator's web pages, under /console/: the fleet at a glance, devices
// by selector, and one device with its certificates, its history, why its connections failed,
// and what can be done to it, each order rehearsed first.
//
// It decides nothing. Whatever it shows or does it asks of the API, by a request in the name of
// whoever asks the console: the API verifies the caller, demands the role, and audits; an
// order goes with the entity tag of the record as it was shown and with an idempotency
// key, so a page that is old or sent twice does no harm. The pages work without their script,
// which only keeps the numbers fresh; they load nothing from elsewhere and run nothing that
// is in them (Content-Security-Policy). An order is refused if the browser says that another
// site has made it.
package console

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// Prefix is where the console is.
const Prefix = "/console/"

// maxForm bounds an order, in octets.
const maxForm = 16 << 10

//go:embed page.html console.css console.js
var files embed.FS

// Config is what the console shows. API, Counts and Online are required.
type Config struct {
	API    http.Handler                  // the operators' API, which gets the console's requests with the caller's TLS state
	Counts func() map[registry.State]int // devices in each state, from memory
	Online func() int                    // connections

	Interval time.Duration // between two looks at the numbers; 0: two seconds
	Log      *slog.Logger  // nil: nothing is logged
}

// console is the handler. Its fields are set once.
type console struct {
	config  Config
	pages   *template.Template
	mux     *http.ServeMux
	handler http.Handler
	streams streams
	drain   context.Context // ends when the server shuts down
}

// New returns the console as a handler for everything below Prefix. Its streams end with drain.
func New(config Config, drain context.Context) (http.Handler, error) {
	if config.API == nil || config.Counts == nil || config.Online == nil {
		return nil, errors.New("the console needs the API and the numbers that it shows")
	}
	if config.Interval <= 0 {
		config.Interval = 2 * time.Second
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	pages, err := template.New("").Funcs(template.FuncMap{"moment": moment}).ParseFS(files, "page.html")
	if err != nil {
		return nil, err
	}
	c := &console{config: config, pages: pages, mux: http.NewServeMux(), drain: drain}
	c.mux.HandleFunc("GET /console/{$}", c.overview)
	c.mux.HandleFunc("GET /console/devices", c.devices)
	c.mux.HandleFunc("GET /console/devices/{id}", c.device)
	c.mux.HandleFunc("POST /console/devices/{id}/{verb}", c.order)
	c.mux.HandleFunc("GET /console/events", c.events)
	c.mux.HandleFunc("GET /console/console.css", c.file("console.css", "text/css; charset=utf-8"))
	c.mux.HandleFunc("GET /console/console.js", c.file("console.js", "text/javascript; charset=utf-8"))
	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.refuse(w, r, &refusal{Status: http.StatusForbidden, Title: "Forbidden", Detail: "this order comes from another web site; give it here"})
	}))
	c.handler = crossOrigin.Handler(c.mux)
	return c, nil
}

// ServeHTTP implements http.Handler.
func (c *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	if fromElsewhere(r) {
		c.refuse(w, r, &refusal{Status: http.StatusForbidden, Title: "Forbidden", Detail: "this was asked for by another web site; open the page here"})
		return
	}
	// Nobody gets any page without being an operator of some role; what it shows beyond that is
	// the API's to say.
	if _, err := c.ask(r, request{method: http.MethodGet, path: "/v1/audit/head"}, nil); err != nil {
		c.refuse(w, r, err)
		return
	}
	c.handler.ServeHTTP(w, r)
}

// fromElsewhere reports whether the browser says that another site asks, and not for a page that
// somebody is led to: only a page may be linked to. Orders are judged by
// http.CrossOriginProtection, which also knows browsers that don't say it.
func fromElsewhere(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "cross-site", "same-site":
	default:
		return false
	}
	led := r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	return !led || r.URL.Path != Prefix && r.URL.Path != Prefix+"devices" && !strings.HasPrefix(r.URL.Path, Prefix+"devices/")
}

// file serves one of ours.
func (c *console) file(name, media string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := fs.ReadFile(files, name)
		if err != nil {
			c.refuse(w, r, err)
			return
		}
		w.Header().Set("Content-Type", media)
		w.Write(data) // a browser that is gone needs no answer
	}
}

// view is what every page has.
type view struct {
	Title string
	Page  any
}

// show writes a page, or that it can't be made.
func (c *console) show(w http.ResponseWriter, r *http.Request, status int, name string, v view) {
	var page bytes.Buffer
	if err := c.pages.ExecuteTemplate(&page, name, v); err != nil {
		c.config.Log.Error("console page failed", "page", name, "path", r.URL.Path, "error", err)
		http.Error(w, "the page can't be made; the hub's log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(page.Bytes()) // a browser that is gone needs no answer
}

// refuse shows why not.
func (c *console) refuse(w http.ResponseWriter, r *http.Request, err error) {
	why, ok := errors.AsType[*refusal](err)
	if !ok {
		c.config.Log.Error("console request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		why = &refusal{Status: http.StatusInternalServerError, Title: "Internal Server Error", Detail: err.Error()}
	}
	c.show(w, r, why.Status, "refused", view{Title: why.Title, Page: why})
}

// moment is a time as pages show it.
func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
