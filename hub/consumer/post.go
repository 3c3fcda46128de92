package consumer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// The headers of a delivery.
const (
	// SignatureHeader is "t=UNIX,v1=HEX": when it was posted, and the HMAC-SHA256, under the sink's secret, of those digits, a
	// dot and the body.
	SignatureHeader = "Fleethub-Signature"
	// DeliveryHeader is the same for a delivery that is repeated, and for no other: its first and last position and the
	// beginning of its body's SHA-256, joined by "-". A receiver that keeps the last one can drop a repetition.
	DeliveryHeader = "Fleethub-Delivery"
	// GapHeader is "FROM-LAST" if the records from the one to the other, before this delivery, were removed before the sink
	// could read them.
	GapHeader = "Fleethub-Gap"
)

// Sign returns a SignatureHeader for a body that is posted at that time.
func Sign(secret, body []byte, at time.Time) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// refusal is an answer that isn't 2xx.
type refusal struct {
	status int
	after  time.Duration // Retry-After; 0: not said
}

// Error says the status, and what a person can do.
func (r *refusal) Error() string {
	text := fmt.Sprintf("it answered %d %s", r.status, http.StatusText(r.status))
	switch {
	case r.status >= 300 && r.status < 400:
		return text + ", and redirects aren't followed: put the address it means into hub.yaml"
	case r.configuration():
		return text + ": the same messages are posted until it takes them; correct the receiver or the sink's url and secret_file in hub.yaml, or move on with `hub consumer seek`"
	}
	return text
}

// configuration reports whether asking again alone won't help: 3xx, and 4xx but for those that mean later.
func (r *refusal) configuration() bool {
	switch r.status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return r.status >= 300 && r.status < 500
}

// post sends one delivery. Nil: the receiver has it.
func (s *sink) post(ctx context.Context, b *batch) error {
	ctx, cancel := context.WithTimeout(ctx, s.target.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target.url.String(), bytes.NewReader(b.body()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "fleethub")
	request.Header.Set(SignatureHeader, Sign(s.target.secret, b.body(), s.consumers.config.Now()))
	request.Header.Set(DeliveryHeader, b.id())
	if b.gap != nil {
		request.Header.Set(GapHeader, fmt.Sprintf("%d-%d", b.gap.From, b.gap.First-1))
	}
	response, err := s.client.Do(request)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok { // which quotes the URL
			err = e.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("no answer within %s", s.target.Timeout)
		}
		return err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 64<<10) // so that the connection can be used again; what it says is no matter
	if response.StatusCode >= 200 && response.StatusCode < 300 {
		return nil
	}
	r := &refusal{status: response.StatusCode}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		r.after = time.Duration(min(seconds, int(maxBackoff/time.Second))) * time.Second
	}
	return r
}
