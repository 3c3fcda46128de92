package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

// answer writes what a route has to say: its entity tag (RFC 9110 §8.8.3), the link to the
// next page (RFC 8288), and the JSON, or only that it is what the caller has already.
func (a *api) answer(w http.ResponseWriter, r *http.Request, route route, answer any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(answer); err != nil {
		a.fail(w, r, err)
		return
	}
	if route.next != nil {
		if next := route.next(answer); next != "" {
			w.Header().Set("Link", "<"+following(r.URL, next)+`>; rel="next"`)
		}
	}
	switch {
	case route.tag != nil:
		w.Header().Set("ETag", route.tag(answer))
	case route.method() == http.MethodGet:
		w.Header().Set("ETag", hashTag(body.Bytes()))
	}
	if route.method() == http.MethodGet && matches(r.Header.Get("If-None-Match"), w.Header().Get("ETag"), weakly) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body.Bytes()) // a client that is gone needs no answer
}

// following is the same request for the page after a place.
func following(u *url.URL, after string) string {
	query := u.Query()
	query.Set("after", after)
	return (&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: query.Encode()}).String()
}

// hashTag is a strong entity tag of content: the same in every run of the hub.
func hashTag(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:18]) + `"`
}

func etag[T ~uint64](n T) string { return `"` + strconv.FormatUint(uint64(n), 10) + `"` }

// comparison is one of the two of RFC 9110 §8.8.3.2.
type comparison bool

const (
	strongly comparison = false
	weakly   comparison = true
)

// matches reports whether a list of entity tags, as If-Match and If-None-Match have it, names
// tag. One that can't be read names nothing.
func matches(list, tag string, how comparison) bool {
	if tag == "" {
		return false
	}
	list = textproto.TrimString(list)
	if list == "*" {
		return true
	}
	for list != "" {
		one, rest, ok := nextTag(list)
		if !ok {
			return false
		}
		if how == weakly {
			one = strings.TrimPrefix(one, "W/")
		}
		if one == tag {
			return true
		}
		list = rest
	}
	return false
}

// nextTag takes the first entity tag from a list.
func nextTag(list string) (tag, rest string, ok bool) {
	start := 0
	if strings.HasPrefix(list, "W/") {
		start = 2
	}
	if len(list) <= start || list[start] != '"' {
		return "", "", false
	}
	end := strings.IndexByte(list[start+1:], '"')
	if end < 0 {
		return "", "", false
	}
	end += start + 2
	rest = textproto.TrimString(list[end:])
	if rest != "" {
		if rest[0] != ',' {
			return "", "", false
		}
		rest = strings.TrimLeft(rest, ", \t")
	}
	return list[:end], rest, true
}
