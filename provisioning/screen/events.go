package screen

import (
	"bytes"
	"errors"
	"html/template"
	"net/http"
	"strings"
	"time"
)

// Times of a stream of events.
const (
	drawEvery    = 250 * time.Millisecond // at most; what happens in between is drawn together
	refreshAfter = 5 * time.Second        // at least: orders change without an event, and a dead connection must show
	writeTimeout = 10 * time.Second
)

// events keeps one page up to date until it goes or Close is called: server-sent events
// (HTML Living Standard §9.2) named "live", each with the whole changing part.
func (s *Screen) events(w http.ResponseWriter, r *http.Request, pages *template.Template) {
	if !s.viewers.TryAcquire(1) {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many pages are open: close one", http.StatusServiceUnavailable)
		return
	}
	defer s.viewers.Release(1)
	// The server's deadlines are for boards, which ask and go. To net/http a read deadline
	// that passes is a client that went.
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		s.fault(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	var shown []byte
	for {
		changed := s.change()
		frame, err := s.draw(pages)
		if err != nil {
			s.config.Log.Error("the station's page can't be shown", "error", err)
			return
		}
		message := []byte(":\n\n") // a comment, so that both ends know the other is there
		if !bytes.Equal(frame, shown) {
			message, shown = []byte("event: live\ndata: "+strings.ReplaceAll(strings.TrimSpace(string(frame)), "\n", "\ndata: ")+"\n\n"), frame
		}
		if err := errors.Join(control.SetWriteDeadline(time.Now().Add(writeTimeout)), write(w, message), control.Flush()); err != nil {
			return
		}
		if !s.pause(r, drawEvery, nil) || !s.pause(r, refreshAfter, changed) {
			return
		}
	}
}

func write(w http.ResponseWriter, message []byte) error {
	_, err := w.Write(message)
	return err
}

// change returns a channel that the next change closes.
func (s *Screen) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// pause waits that long, or until changed is closed. It returns false if the page is
// gone or the screen closed.
func (s *Screen) pause(r *http.Request, d time.Duration, changed <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-changed:
		return true
	case <-r.Context().Done():
		return false
	case <-s.done:
		return false
	}
}

// draw returns the changing part of the page, drawn for all pages together.
func (s *Screen) draw(pages *template.Template) ([]byte, error) {
	s.drawing.Lock()
	defer s.drawing.Unlock()
	if s.frame != nil && time.Since(s.drawn) < drawEvery/2 {
		return s.frame, nil
	}
	v, err := s.look()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := pages.ExecuteTemplate(&out, "live", v); err != nil {
		return nil, err
	}
	s.frame, s.drawn = out.Bytes(), time.Now()
	return s.frame, nil
}
