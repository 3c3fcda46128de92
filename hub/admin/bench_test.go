package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/boltstore"
)

// BenchmarkPost is a request that changes nothing, with and without an idempotency key that is
// kept durably: what a key costs.
func BenchmarkPost(b *testing.B) {
	store, err := boltstore.Open(filepath.Join(b.TempDir(), "answers.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	a := newAPI(Config{Answers: store}, b.Context())
	serve := a.once(route{pattern: "POST /x"}, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"changed":1}`) })
	for _, keyed := range []bool{false, true} {
		b.Run("key="+strconv.FormatBool(keyed), func(b *testing.B) {
			for i := range b.N {
				r := httptest.NewRequest(http.MethodPost, "/x", strings.NewReader(`{"labels":{"site":"north"}}`))
				r = r.WithContext(withCaller(r.Context(), caller{name: "spiffe://fleet.example/operator/ann"}))
				if keyed {
					r.Header.Set(keyHeader, strconv.Itoa(i))
				}
				answer := httptest.NewRecorder()
				if serve(answer, r); answer.Code != http.StatusOK {
					b.Fatal(answer.Code, answer.Body)
				}
			}
		})
	}
}
