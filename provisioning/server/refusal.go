package server

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// maxDetail bounds what an event repeats of an answer, in bytes.
const maxDetail = 500

// told is where refuse leaves the reason of a request's refusal.
type told struct{ reason string }

type toldKey struct{}

// watched reports every refused request as an Event, also those that package est refuses
// by itself: a board without a token must not be a board that nobody hears of.
func (s *Server) watched(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var t told
		answer := &answerWriter{ResponseWriter: w}
		next.ServeHTTP(answer, r.WithContext(context.WithValue(r.Context(), toldKey{}, &t)))
		if answer.status < http.StatusBadRequest {
			return
		}
		if t.reason == "" {
			t.reason = reasonOf(answer.status)
		}
		s.config.OnEvent(Event{At: time.Now(), Address: r.RemoteAddr, Reason: t.reason, Detail: strings.TrimSpace(string(answer.detail))})
	})
}

// reasonOf is the reason of a refusal by package est, which only has a status here.
func reasonOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "no-credential"
	case http.StatusTooManyRequests:
		return "rate"
	case http.StatusServiceUnavailable:
		return "busy"
	case http.StatusInternalServerError:
		return "internal"
	}
	return "request"
}

// answerWriter keeps the status and the beginning of a refusal's text.
type answerWriter struct {
	http.ResponseWriter
	status int
	detail []byte
}

func (w *answerWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(p []byte) (int, error) {
	if w.status >= http.StatusBadRequest {
		w.detail = append(w.detail, p[:min(len(p), maxDetail-len(w.detail))]...)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
