package screen

import (
	"bytes"
	"crypto/x509"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/provisioning/label"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/report"
)

//go:embed page.html screen.css screen.js
var files embed.FS

// policy lets the page have its own style, script, labels and events, and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// reportPolicy is of the shift report, which brings its style with it so that it can be
// saved as one file, and has no script.
const reportPolicy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"

// maxReportHours bounds the time of a report that the page makes; the command makes longer ones.
const maxReportHours = 7 * 24

// Handler returns what a browser on the bench sees. It only tells: no request changes
// anything.
func (s *Screen) Handler() (http.Handler, error) {
	pages, err := template.New("").Funcs(template.FuncMap{
		"hour":  func(at time.Time) string { return at.Format("15:04") },
		"clock": func(at time.Time) string { return at.In(s.config.Zone).Format("15:04:05") },
	}).ParseFS(files, "page.html")
	if err != nil {
		return nil, fmt.Errorf("read the station's page: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { s.page(w, pages) })
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) { s.events(w, r, pages) })
	mux.HandleFunc("GET /screen.css", file("screen.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /screen.js", file("screen.js", "text/javascript; charset=utf-8"))
	mux.HandleFunc("GET /label/{file}", s.few(s.label))
	mux.HandleFunc("GET /report.html", s.few(s.report))
	mux.HandleFunc("GET /report.csv", s.few(s.report))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		mux.ServeHTTP(w, r)
	}), nil
}

func file(name, contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		http.ServeFileFS(w, r, files, name)
	}
}

// few holds the requests that cost work to a number at a time.
func (s *Screen) few(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.readers.TryAcquire(1) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "the station is busy with other readers: try again in a moment", http.StatusServiceUnavailable)
			return
		}
		defer s.readers.Release(1)
		next(w, r)
	}
}

// page writes the whole page. Its pieces are drawn to the end first: half a page would
// be a page that says something else.
func (s *Screen) page(w http.ResponseWriter, pages *template.Template) {
	s.drawing.Lock()
	v, err := s.look()
	s.drawing.Unlock()
	var out bytes.Buffer
	if err == nil {
		err = pages.ExecuteTemplate(&out, "page", v)
	}
	if err != nil {
		s.fault(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(out.Bytes()) // a browser that is gone asks again
}

func (s *Screen) fault(w http.ResponseWriter, err error) {
	s.config.Log.Error("the station's page can't be shown", "error", err)
	http.Error(w, "the station has a fault; its log says which", http.StatusInternalServerError)
}

// label writes the label of a device as ID.svg, ID.png or ID.zpl.
func (s *Screen) label(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		http.NotFound(w, r)
		return
	}
	id, format := name[:dot], label.Format(name[dot+1:])
	if identity.ValidID(id) != nil || !format.Valid() {
		http.NotFound(w, r)
		return
	}
	l, err := Label(s.config.Ledger, id)
	if errors.Is(err, ledger.ErrNotFound) {
		http.NotFound(w, r)
		return
	}
	var out bytes.Buffer
	if err == nil {
		err = l.Write(&out, format)
	}
	if err != nil {
		s.fault(w, err)
		return
	}
	w.Header().Set("Content-Type", format.ContentType())
	w.Write(out.Bytes())
}

// Label returns the label of a device's newest certificate. A device without one is
// ledger.ErrNotFound.
func Label(l *ledger.Ledger, id string) (*label.Label, error) {
	_, der, err := l.Device(id)
	if err != nil {
		return nil, err
	}
	if der == nil {
		return nil, fmt.Errorf("a certificate of %s is %w", id, ledger.ErrNotFound)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the ledger's certificate of %s is damaged (%w): restore the ledger from a backup", id, err)
	}
	return label.New(id, identity.Fingerprint(cert))
}

// report writes the shift report of the last hours.
func (s *Screen) report(w http.ResponseWriter, r *http.Request) {
	hours, err := strconv.Atoi(r.FormValue("hours"))
	if err != nil || hours < 1 || hours > maxReportHours {
		http.Error(w, fmt.Sprintf("give hours, from 1 to %d", maxReportHours), http.StatusBadRequest)
		return
	}
	now := s.config.Now()
	shift, err := report.Collect(s.config.Ledger, report.Shift{Station: s.config.Ledger.Station(), From: now.Add(-time.Duration(hours) * time.Hour), To: now, Zone: s.config.Zone})
	if err != nil {
		s.fault(w, err)
		return
	}
	shift.AddRefusals(s.Refusals())
	write, contentType, name := shift.WriteHTML, "text/html; charset=utf-8", ""
	if strings.HasSuffix(r.URL.Path, ".csv") {
		write, contentType, name = shift.WriteCSV, "text/csv; charset=utf-8", "shift-"+now.In(s.config.Zone).Format("20060102-1504")+".csv"
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Security-Policy", reportPolicy)
	if name != "" {
		w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	}
	if err := write(w); err != nil {
		s.config.Log.Debug("a report was not sent to its end", "error", err)
	}
}
