package admin

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// route is one endpoint: who may use it, what it takes and gives, and what it does. The mux,
// the check of the role, the strictness about parameters and the OpenAPI document all come
// from it, so none of them can say something else than the others.
type route struct {
	pattern string // method and path, as http.ServeMux has it
	name    string // operationId: a verb and a noun
	group   string // what it is listed under
	summary string // one line
	detail  string // more of it
	role    Role   // that it takes

	query    []parameter // every one it knows; others are refused
	headers  []parameter // that mean something to it, beside those that mean the same everywhere
	problems []int       // statuses of its problems, beside those that follow from the rest
	example  any         // of the JSON body; nil: there is none

	tag  func(answer any) string // its entity tag; nil: of GET, the hash of the answer
	next func(answer any) string // the after of the following page; nil: there are no pages

	station   bool // a station may use it, too, for its own manifests
	elsewhere bool // it is served by another room and only described here

	work
}

// work is what an endpoint does, with the types that it does it with.
type work struct {
	request reflect.Type // of the JSON body; nil: none is taken
	answer  reflect.Type // of the JSON answer; nil: see gives
	takes   string       // media type of the body; "": JSON, or none
	gives   []string     // media types of the answer; nil: JSON
	max     int64        // octets of the body; 0: maxBody
	line    reflect.Type // of the JSON in each line of a stream; nil: there are no lines
	tagged  bool         // a stream that has an entity tag

	do     func(w http.ResponseWriter, r *http.Request) (any, error) // nil: see stream
	stream http.HandlerFunc                                          // answers by itself
}

// answers is the work of an endpoint that takes no body.
func answers[T any](do func(*http.Request) (T, error)) work {
	return work{answer: reflect.TypeFor[T](), do: func(_ http.ResponseWriter, r *http.Request) (any, error) { return do(r) }}
}

// takes is the work of an endpoint with a JSON body, which may be empty.
func takes[B, T any](do func(*http.Request, B) (T, error)) work {
	return work{request: reflect.TypeFor[B](), answer: reflect.TypeFor[T](), do: func(w http.ResponseWriter, r *http.Request) (any, error) {
		var body B
		if err := readJSON(w, r, &body); err != nil {
			return nil, err
		}
		return do(r, body)
	}}
}

// takesFile is the work of an endpoint whose body is a file of at most max octets.
func takesFile[T any](media string, most int64, do func(*http.Request, []byte) (T, error)) work {
	return work{takes: media, max: most, answer: reflect.TypeFor[T](), do: func(w http.ResponseWriter, r *http.Request) (any, error) {
		if err := contentType(r, media); err != nil {
			return nil, err
		}
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
		if err != nil {
			return nil, bodyProblem(err)
		}
		return do(r, data)
	}}
}

// streams is the work of an endpoint that writes its answer itself, in one of these media
// types.
func streams(serve http.HandlerFunc, media ...string) work { return work{gives: media, stream: serve} }

// streamsLines is the work of an endpoint that writes JSON, a T a line.
func streamsLines[T any](serve http.HandlerFunc) work {
	return work{gives: []string{streamMediaType}, line: reflect.TypeFor[T](), stream: serve}
}

// streamsTagged is streams of what has an entity tag.
func streamsTagged(serve http.HandlerFunc, media ...string) work {
	return work{gives: media, stream: serve, tagged: true}
}

// of lets a function of one type of answer stand in a route.
func of[T any](f func(T) string) func(any) string {
	return func(answer any) string { return f(answer.(T)) }
}

// parameter is one of a route's query, or one of its headers.
type parameter struct {
	name    string
	about   string
	kind    string   // integer, boolean or, if empty, string
	format  string   // of a string: date-time, duration
	values  []string // that it may have; nil: any
	example string

	required bool
}

// method and path of the pattern.
func (r route) method() string { method, _, _ := strings.Cut(r.pattern, " "); return method }
func (r route) path() string   { _, path, _ := strings.Cut(r.pattern, " "); return path }

// places are the names of the path's variables.
func (r route) places() (names []string) {
	for part := range strings.SplitSeq(r.path(), "/") {
		if len(part) > 1 && part[0] == '{' {
			names = append(names, strings.Trim(part, "{}"))
		}
	}
	return names
}

// add puts endpoints into the API. There is no other way to add one.
func (a *api) add(routes []route) {
	for _, r := range routes {
		a.routes = append(a.routes, r)
		if r.elsewhere {
			continue
		}
		serve := a.perform(r)
		if r.method() == http.MethodPost {
			serve = a.once(r, serve)
		}
		a.mux.HandleFunc(r.pattern, a.guard(r, serve))
	}
}

// guard lets callers of the route's role through whose query it knows.
func (a *api) guard(route route, serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r); c.role < route.role {
			a.config.Log.Warn("API request refused", "address", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "operator", c.name, "role", c.role.String(), "needs", route.role.String())
			writeProblem(w, problem(http.StatusForbidden, codeRole, fmt.Sprintf("this takes the role %s, and %s is %s by %s", route.role, c.short, c.role, c.means(route.role))))
			return
		}
		if err := route.checkQuery(r); err != nil {
			a.fail(w, r, err)
			return
		}
		serve(w, r)
	}
}

// checkQuery refuses what the route doesn't know: a mistyped selector must not pass for none.
func (route route) checkQuery(r *http.Request) error {
	if r.URL.RawQuery == "" {
		return nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return invalid("the query %.80q can't be read: %v", r.URL.RawQuery, err)
	}
	for name, values := range query {
		if !slices.ContainsFunc(route.query, func(p parameter) bool { return p.name == name }) {
			return invalid("there is no parameter %.40q here; /openapi.json has those there are", name)
		}
		if len(values) > 1 {
			return invalid("parameter %s is there %d times", name, len(values))
		}
	}
	return nil
}

// perform does the route's work and answers with what comes of it.
func (a *api) perform(route route) http.HandlerFunc {
	if route.stream != nil {
		return route.stream
	}
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := route.do(w, r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if w, ok := w.(*recorded); ok {
			w.rehearsal = rehearsed(answer)
		}
		a.answer(w, r, route, answer)
	}
}
