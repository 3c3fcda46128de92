package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// keyHeader is the header of an idempotency key (draft-ietf-httpapi-idempotency-key-header).
const keyHeader = "Idempotency-Key"

// maxKey bounds a key, in octets.
const maxKey = 255

// maxKept bounds the body of an answer that is kept, in octets. An order whose answer is longer is
// given again under the ID that it had, and gets its receipt again.
const maxKept = 64 << 10

// orderKey is the context key of the ID that an order under an idempotency key has.
type orderKey struct{}

// orderID is the ID of an order: the caller's own, or that of its idempotency key, so that
// a request that a crash of the hub has interrupted is the same order when it is repeated. Empty
// if there is neither.
func orderID(r *http.Request, own string) string {
	if id, ok := r.Context().Value(orderKey{}).(string); ok && own == "" {
		return id
	}
	return own
}

// once carries a request out once under its idempotency key, if it has one:
//
//  1. The key is known: the same request gets the same answer, another one a refusal.
//  2. It is being carried out: the caller is told to wait.
//  3. Else the key, the request's fingerprint and an order ID are written down, durably.
//  4. The request is carried out, and its answer written down; only then is it sent.
//
// A crash between 3 and 4 leaves a key without an answer. The request is carried out again then,
// under the same order ID: an order that was done has a receipt under it, and is not repeated.
// So is one that the hub has failed to carry out (5xx), and a rehearsal, whose answer isn't kept
// since it changes nothing. A store that can't be written keeps
// nobody from cutting a device off: the key is only remembered in memory then.
func (a *api) once(route route, serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key, err := keyOf(r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if key == "" {
			serve(w, r)
			return
		}
		most := int64(maxBody)
		if route.max > 0 {
			most = route.max
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
		if err != nil {
			a.fail(w, r, bodyProblem(err))
			return
		}
		caller := callerOf(r).name
		id := digest(caller, key)
		known, err := a.keys.begin(r.Context(), caller, id, fingerprint(r, body))
		if err != nil {
			if p, ok := errors.AsType[*Problem](err); ok && p.Type == problemType+codeInProgress {
				w.Header().Set("Retry-After", "1")
			}
			a.fail(w, r, err)
			return
		}
		if known.Status != 0 {
			known.write(w)
			return
		}
		defer a.keys.end(id)
		r = r.WithContext(context.WithValue(r.Context(), orderKey{}, known.Order))
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		answer := &recorded{header: w.Header().Clone()}
		serve(answer, r)
		known.Status, known.Body, known.Header = answer.status(), answer.body.Bytes(), answer.header
		if !answer.rehearsal && known.Status < http.StatusInternalServerError && len(known.Body) <= maxKept {
			a.keys.keep(r.Context(), id, known)
		}
		known.write(w)
	}
}

// keyOf reads the request's key: a string as structured fields have it (RFC 8941 §3.3.3), or
// the bare word that most clients send.
func keyOf(r *http.Request) (string, error) {
	list := r.Header.Values(keyHeader)
	if len(list) == 0 {
		return "", nil
	}
	key := list[0]
	if quoted, ok := strings.CutPrefix(key, `"`); ok {
		inner, whole := strings.CutSuffix(quoted, `"`)
		if !whole || strings.ContainsAny(inner, `"\`) {
			key = ""
		} else {
			key = inner
		}
	}
	printable := strings.IndexFunc(key, func(c rune) bool { return c < ' ' || c > '~' }) < 0
	if len(list) > 1 || key == "" || len(key) > maxKey || !printable {
		return "", invalid("%s: send one string of 1 to %d printable ASCII characters, without quotes or backslashes in it", keyHeader, maxKey)
	}
	return key, nil
}

// fingerprint tells one request from another under the same key.
func fingerprint(r *http.Request, body []byte) string {
	return digest(r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), r.Header.Get("If-Match"), string(body))
}

// digest is a hash of parts, however they are cut.
func digest(parts ...string) string {
	sum := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// recorded is an answer that is not sent yet.
type recorded struct {
	header http.Header
	code   int
	body   bytes.Buffer

	rehearsal bool // it says what would be done
}

// rehearsed reports whether an answer only says what would be done.
func rehearsed(answer any) bool {
	switch a := answer.(type) {
	case Revocation:
		return a.Plan != nil
	case SelectionAnswer:
		return a.Plan != nil
	case IssuerRemoval:
		return a.Plan != nil
	case Reinstatement:
		return a.DryRun
	case LabelAnswer:
		return a.DryRun
	}
	return false
}

func (w *recorded) Header() http.Header { return w.header }

func (w *recorded) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
}

func (w *recorded) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

func (w *recorded) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}
