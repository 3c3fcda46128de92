package status

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/registry"
)

// Where the handler serves what.
const (
	ListPath = "/crl/" // and KeyID(issuer) + ".crl"
	OCSPPath = "/ocsp" // POST; GET with the request in base64 behind a slash
)

const (
	listMediaType     = "application/pkix-crl"      // RFC 2585 §4.2
	requestMediaType  = "application/ocsp-request"  // RFC 6960 appendix A
	responseMediaType = "application/ocsp-response" // likewise
	signingPatience   = 500 * time.Millisecond      // of an OCSP request when many are signed
)

// Serves reports whether a path is the handler's.
func Serves(path string) bool {
	return strings.HasPrefix(path, ListPath) || path == OCSPPath || strings.HasPrefix(path, OCSPPath+"/")
}

// ServeHTTP serves lists and OCSP to anybody: both are signed, and secret to nobody.
// It looks at the path itself, since http.ServeMux would clean a base64 text.
func (p *Publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	path := r.URL.EscapedPath()
	switch {
	case strings.HasPrefix(path, ListPath) && read:
		p.serveList(w, r, strings.TrimPrefix(path, ListPath))
	case path == OCSPPath && r.Method == http.MethodPost:
		if r.Header.Get("Content-Type") != requestMediaType {
			http.Error(w, "send "+requestMediaType, http.StatusUnsupportedMediaType)
			return
		}
		der, err := io.ReadAll(http.MaxBytesReader(w, r.Body, revocation.MaxRequestSize))
		if err != nil {
			http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
			return
		}
		p.serveOCSP(w, r, der)
	case strings.HasPrefix(path, OCSPPath+"/") && read:
		der, err := decodePath(strings.TrimPrefix(path, OCSPPath+"/"))
		if err != nil {
			p.fail(w, revocation.MalformedRequest)
			return
		}
		p.serveOCSP(w, r, der)
	case Serves(path):
		http.Error(w, "use GET, or POST for OCSP", http.StatusMethodNotAllowed)
	default:
		http.NotFound(w, r)
	}
}

// decodePath reads a request from a URL, RFC 6960 appendix A.1.
func decodePath(escaped string) ([]byte, error) {
	if len(escaped) > 2*revocation.MaxRequestSize {
		return nil, errors.New("too long")
	}
	text, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(text)
}

// serveList serves a list, and none that is out of date: its reader would have to
// refuse it, and might not.
func (p *Publisher) serveList(w http.ResponseWriter, r *http.Request, file string) {
	id, ok := strings.CutSuffix(file, ".crl")
	a := p.find(id)
	if !ok || a == nil {
		http.NotFound(w, r)
		return
	}
	now := p.config.Now()
	if a.der == nil || !now.Before(a.list.NextUpdate) {
		http.Error(w, "the revocation list is not up to date; the hub's log says why", http.StatusServiceUnavailable)
		return
	}
	h := w.Header()
	h.Set("Content-Type", listMediaType)
	h.Set("ETag", `"`+a.list.Number.String()+`"`)
	// Until the next is signed on schedule; one that is signed on a change comes sooner.
	fresh := min(max(a.list.NextUpdate.Sub(now), 0), p.config.AnswerLifetime)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(fresh.Seconds())))
	http.ServeContent(w, r, "", a.list.ThisUpdate, bytes.NewReader(a.der))
}

func (p *Publisher) fail(w http.ResponseWriter, f revocation.Failure) {
	p.failed.Add(1)
	w.Header().Set("Content-Type", responseMediaType)
	w.Header().Set("Cache-Control", "no-store")
	w.Write(f.DER())
}

func (p *Publisher) serveOCSP(w http.ResponseWriter, r *http.Request, request []byte) {
	in, err := revocation.ReadInquiry(request)
	if err != nil {
		p.config.Log.Debug("OCSP request refused", "remote", r.RemoteAddr, "error", err)
		p.fail(w, revocation.MalformedRequest)
		return
	}
	now := p.config.Now().UTC().Truncate(time.Second)
	window := revocation.Window{This: now, Next: now.Add(p.config.AnswerLifetime)}
	der, err := p.answer(r.Context(), in, window)
	if f, ok := errors.AsType[failure](err); ok {
		p.fail(w, f.Failure)
		return
	}
	if err != nil {
		p.config.Log.Error("OCSP request not answered", "error", err)
		p.fail(w, revocation.InternalError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", responseMediaType)
	if in.Nonced() || r.Method == http.MethodPost {
		h.Set("Cache-Control", "no-store")
	} else { // RFC 5019 §6.2
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d, no-transform, must-revalidate", int(p.config.AnswerLifetime.Seconds())))
		h.Set("Last-Modified", window.This.Format(http.TimeFormat))
		h.Set("Expires", window.Next.Format(http.TimeFormat))
	}
	w.Write(der)
}

// failure is an error that the asker is told as an OCSP failure.
type failure struct{ revocation.Failure }

func (f failure) Error() string { return fmt.Sprintf("OCSP failure %d", f.Failure) }

// answer signs the answer to an inquiry about certificates of one of our issuers. What
// the registry can't tell is no answer: nothing here guesses "good".
func (p *Publisher) answer(ctx context.Context, in revocation.Inquiry, w revocation.Window) ([]byte, error) {
	a := p.asked(in)
	if a == nil {
		return nil, failure{revocation.Unauthorized}
	}
	if a.responder == nil || !w.This.Before(a.until) {
		return nil, failure{revocation.TryLater}
	}
	if a.until.Before(w.Next) {
		w.Next = a.until
	}
	answers := make([]revocation.Answer, 0, len(in.Questions))
	for _, q := range in.Questions {
		entry, revoked, err := p.config.Registry.Lookup(ctx, a.issuer, q.Serial)
		answer := revocation.Answer{Question: q}
		switch {
		case errors.Is(err, registry.ErrUnknown):
		case err != nil:
			return nil, err
		case revoked:
			answer.Status, answer.At, answer.Reason = revocation.Revoked, entry.At, entry.Reason
		default:
			answer.Status = revocation.Good
		}
		answers = append(answers, answer)
	}
	// A signature takes some 30 µs. Those who ask can be anybody, and may not take the
	// processor from the devices.
	patience := time.NewTimer(signingPatience)
	defer patience.Stop()
	select {
	case p.signing <- struct{}{}:
		defer func() { <-p.signing }()
	case <-patience.C:
		return nil, failure{revocation.TryLater}
	case <-ctx.Done():
		return nil, failure{revocation.TryLater}
	}
	der, err := a.responder.Respond(in, answers, w)
	if err == nil {
		p.answered.Add(uint64(len(answers)))
	}
	return der, err
}

// asked returns the authority that every question is about, nil if there is none: a
// signer speaks for the CA that certified it and no other.
func (p *Publisher) asked(in revocation.Inquiry) *authority {
	for _, a := range *p.current.Load() {
		if in.Questions[0].Asks(a.name) {
			for _, q := range in.Questions[1:] {
				if !q.Asks(a.name) {
					return nil
				}
			}
			return a
		}
	}
	return nil
}
