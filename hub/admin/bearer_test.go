package admin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What a header says is a token, or a key, is checked before anything is done with it.
func FuzzTokenHasNothingButATokensCharacters(f *testing.F) {
	for _, seed := range []string{"Bearer a.b.c", "bearer x", "Bearer", "Bearer  a", "Basic YTpi", "Bearer a b", "Bearer a\x00", "", "Bearer {}", "BEARER ü"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Authorization"] = []string{header}
		raw, present, err := tokenOf(r)
		if !present {
			t.Fatal("the header is overlooked: a certificate would count beside it")
		}
		if err == nil && (raw == "" || strings.Trim(raw, compact) != "") {
			t.Fatalf("%q is taken for the token %q", header, raw)
		}
	})
}

func FuzzKeyIsPrintableAndBounded(f *testing.F) {
	for _, seed := range []string{`"k"`, "k", `""`, `"`, `"a\"b"`, strings.Repeat("k", 300), "a,b", "\x7f", "ü", `"a";x=1`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header[keyHeader] = []string{header}
		key, err := keyOf(r)
		if (key == "") != (err != nil) {
			t.Fatalf("%q is the key %q, %v: a key that is there and isn't read would not protect", header, key, err)
		}
		if err == nil && (len(key) > maxKey || strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' })) {
			t.Fatalf("%q is taken for the key %q", header, key)
		}
	})
}
