package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
)

// request is one of the console's to the API.
type request struct {
	method, path string
	body         any               // in JSON; nil: none
	header       map[string]string // empty values are left out
}

// refusal is a problem (RFC 9457) that the API answers with.
type refusal struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// Error returns the detail: one sentence for a person.
func (r *refusal) Error() string { return r.Detail }

// ask makes a request to the API in the name of whoever asks the console, by their connection,
// and reads the answer into answer unless that is nil. An error is a *refusal if the API
// doesn't do it.
func (c *console) ask(from *http.Request, q request, answer any) (http.Header, error) {
	var body bytes.Buffer
	if q.body != nil {
		if err := json.NewEncoder(&body).Encode(q.body); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(from.Context(), q.method, q.path, &body)
	if err != nil {
		return nil, err
	}
	r.TLS, r.RemoteAddr, r.Host = from.TLS, from.RemoteAddr, from.Host
	if q.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	// A token is as good as a certificate, and the API says which of the two it takes.
	if token := from.Header.Values("Authorization"); len(token) > 0 {
		r.Header["Authorization"] = token
	}
	for name, value := range q.header {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	got := &received{header: make(http.Header), status: http.StatusOK}
	c.config.API.ServeHTTP(got, r)
	if got.status != http.StatusOK {
		why := refusal{Status: got.status, Title: http.StatusText(got.status)}
		if err := json.Unmarshal(got.body.Bytes(), &why); err != nil || why.Detail == "" {
			return nil, fmt.Errorf("%s %s: the API answers %d", q.method, q.path, got.status)
		}
		return nil, &why
	}
	if answer == nil {
		return got.header, nil
	}
	if err := json.Unmarshal(got.body.Bytes(), answer); err != nil {
		return nil, fmt.Errorf("%s %s: %w", q.method, q.path, err)
	}
	return got.header, nil
}

// received is an answer of the API.
type received struct {
	header http.Header
	status int
	body   bytes.Buffer
	begun  bool
}

func (w *received) Header() http.Header { return w.header }

func (w *received) WriteHeader(status int) {
	if !w.begun {
		w.status, w.begun = status, true
	}
}

func (w *received) Write(p []byte) (int, error) {
	w.begun = true
	return w.body.Write(p)
}
