package admin

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Sizes of a page of a list that is in memory as a whole. The lists in the store have the
// same.
const (
	defaultPage = 100
	maxPage     = 1000
)

// maxAfter bounds the place where a page begins, in octets.
const maxAfter = 512

// fixedTime is RFC 3339 with a fixed number of digits, so that the order of text is that of
// time.
const fixedTime = "2006-01-02T15:04:05.000000000Z"

// pageOf returns the page of a list that the request asks for, in order of key, and the after
// of the one that follows, empty on the last. Keys differ. An entry that is new or gone
// between two pages moves no other from one to the other.
func pageOf[T any](r *http.Request, list []T, key func(T) string) ([]T, string, error) {
	return paged(r, list, key, strings.Compare)
}

// newestFirst is pageOf in the reverse order.
func newestFirst[T any](r *http.Request, list []T, key func(T) string) ([]T, string, error) {
	return paged(r, list, key, func(a, b string) int { return strings.Compare(b, a) })
}

func paged[T any](r *http.Request, list []T, key func(T) string, order func(a, b string) int) ([]T, string, error) {
	after := r.FormValue("after")
	if len(after) > maxAfter {
		return nil, "", invalid("after=%.40q… is no place in this list", after)
	}
	limit, err := number(r, "limit")
	if err != nil {
		return nil, "", err
	}
	if limit == 0 {
		limit = defaultPage
	}
	rest := []T{}
	for _, one := range list {
		if after == "" || order(key(one), after) > 0 {
			rest = append(rest, one)
		}
	}
	slices.SortFunc(rest, func(a, b T) int { return order(key(a), key(b)) })
	size := int(min(limit, maxPage))
	if len(rest) <= size {
		return rest, "", nil
	}
	return rest[:size], key(rest[size-1]), nil
}

// all reads a list to its end, page by page.
func all[P, T any](ctx context.Context, c *Client, path string, query url.Values, take func(P) (page []T, next string)) ([]T, error) {
	list := []T{}
	query = maps.Clone(query)
	if query == nil {
		query = make(url.Values)
	}
	query.Set("limit", strconv.Itoa(maxPage))
	for {
		answer, err := get[P](ctx, c, path, query)
		if err != nil {
			return nil, err
		}
		page, next := take(answer)
		list = append(list, page...)
		if next == "" {
			return list, nil
		}
		query.Set("after", next)
	}
}

// optional is a number of which 0 stands for none.
func optional(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
