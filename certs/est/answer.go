package est

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// token returns the password of HTTP authentication: of Basic whatever the user's name
// (RFC 7030 §3.2.3), or a Bearer's.
func token(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	const scheme = "bearer "
	if a := r.Header.Get("Authorization"); len(a) > len(scheme) && strings.EqualFold(a[:len(scheme)], scheme) {
		return strings.TrimSpace(a[len(scheme):])
	}
	return ""
}

// deliver answers with a certificate.
func (h *Handler) deliver(w http.ResponseWriter, a Answer) error {
	der, err := encodeCerts(a.Certificate)
	if err != nil {
		return err
	}
	h.answer(w, typeResponse, der)
	if a.Sent != nil && http.NewResponseController(w).Flush() == nil {
		a.Sent()
	}
	return nil
}

func (h *Handler) answer(w http.ResponseWriter, mediaType string, der []byte) {
	body := encodeBase64(der)
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Transfer-Encoding", "base64") // for clients from before RFC 8951
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body) // a client that is gone comes again
}

// fail answers with an error, and counts a refusal against the address.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, address string, err error) {
	refusal, ok := errors.AsType[*Refusal](err)
	switch {
	case ok:
	case errors.Is(err, errRequest), errors.Is(err, ErrMalformed):
		refusal = &Refusal{Status: http.StatusBadRequest, Reason: "request", Detail: err.Error()}
	default:
		h.config.Log.Error("enrolment failed", "address", r.RemoteAddr, "path", r.URL.Path, "error", err)
		refusal = &Refusal{Status: http.StatusInternalServerError, Reason: "internal", Detail: "the server could not do it; its log says why"}
	}
	if refusal.Status >= 400 && refusal.Status < 500 {
		h.refusals.spend(address)
	}
	h.refuse(w, r, refusal)
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, refusal *Refusal) {
	h.config.Log.Warn("enrolment request refused", "address", r.RemoteAddr, "method", r.Method, "path", fmt.Sprintf("%.120s", r.URL.Path), "status", refusal.Status, "reason", refusal.Reason, "detail", refusal.Detail)
	if refusal.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q, charset=\"UTF-8\"", h.config.Realm))
	}
	if refusal.RetryAfter > 0 {
		seconds := (refusal.RetryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // RFC 8951 §4
	w.WriteHeader(refusal.Status)
	io.WriteString(w, refusal.Detail+"\n")
}
