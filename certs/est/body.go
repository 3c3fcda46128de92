package est

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"
)

// bodyTime is how long a request's body may take: it is small, and comes with its headers
// from whoever means it.
const bodyTime = 10 * time.Second

// body reads the body of a request to that operation. It has no turn yet: whoever lets a
// body dribble in keeps a connection of his own from being used, and nobody else's.
func (o operation) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != o.media {
		return nil, &Refusal{Status: http.StatusUnsupportedMediaType, Reason: "media-type", Detail: "the content type must be " + o.media}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, o.limit))
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &Refusal{Status: http.StatusRequestEntityTooLarge, Reason: "size", Detail: fmt.Sprintf("a request has at most %d bytes", large.Limit)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &Refusal{Status: http.StatusRequestTimeout, Reason: "slow", Detail: fmt.Sprintf("the request didn't come within %s", bodyTime)}
	}
	if err != nil {
		return nil, &Refusal{Status: http.StatusBadRequest, Reason: "cut-short", Detail: "the request was cut short"}
	}
	return body, nil
}

// readUntil bounds the reading of a request, by the wall clock, as connections count; the
// zero time ends that. A writer that can't is one of a test.
func readUntil(w http.ResponseWriter, at time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(at) // of a connection that is gone, reading says so
}
