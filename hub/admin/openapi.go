package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/fleethub/fleethub/certs/command"
)

// document is the part of OpenAPI 3.1 that describes this API.
type document struct {
	OpenAPI    string                          `json:"openapi"`
	Info       map[string]any                  `json:"info"`
	Servers    []map[string]string             `json:"servers"`
	Tags       []map[string]string             `json:"tags"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components components                      `json:"components"`
}

type components struct {
	Schemas         map[string]*jsonschema.Schema `json:"schemas"`
	Responses       map[string]response           `json:"responses"`
	Parameters      map[string]described          `json:"parameters"`
	Headers         map[string]described          `json:"headers"`
	SecuritySchemes map[string]map[string]any     `json:"securitySchemes"`
}

type operation struct {
	OperationID string                `json:"operationId"`
	Tags        []string              `json:"tags"`
	Summary     string                `json:"summary"`
	Description string                `json:"description,omitempty"`
	Role        string                `json:"x-required-role,omitempty"`
	Parameters  []any                 `json:"parameters,omitempty"`
	RequestBody *body                 `json:"requestBody,omitempty"`
	Responses   map[string]any        `json:"responses"`
	Security    []map[string][]string `json:"security"`
}

type body struct {
	Required bool             `json:"required,omitempty"`
	Content  map[string]media `json:"content"`
}

type media struct {
	Schema  *jsonschema.Schema `json:"schema"`
	Line    *jsonschema.Schema `json:"x-line-schema,omitempty"` // of each line, where the whole is a stream of them
	Example any                `json:"example,omitempty"`
}

type response struct {
	Description string               `json:"description"`
	Headers     map[string]reference `json:"headers,omitempty"`
	Content     map[string]media     `json:"content,omitempty"`
}

type reference struct {
	Ref string `json:"$ref"`
}

// described is a parameter, or a header, which has neither name nor in.
type described struct {
	Name        string             `json:"name,omitempty"`
	In          string             `json:"in,omitempty"`
	Description string             `json:"description,omitempty"`
	Required    bool               `json:"required,omitempty"`
	Schema      *jsonschema.Schema `json:"schema"`
	Example     any                `json:"example,omitempty"`
}

// The names of the security schemes.
const (
	byOperator = "operatorCertificate"
	byStation  = "stationCertificate"
	byDevice   = "deviceCertificate"
	byToken    = "oidc"
)

// groups say what is under each tag.
var groups = []map[string]string{
	{"name": "devices", "description": "The registry: what is known of each device, and what is done to one."},
	{"name": "orders", "description": "What is done to many, the proposals that wait for a second operator, and the receipts of all that was done."},
	{"name": "audit", "description": "Who did what, hash-chained."},
	{"name": "messages", "description": "What devices send."},
	{"name": "trust", "description": "Issuing CAs, revocation lists, TLS tickets."},
	{"name": "hub", "description": "The hub itself: its policy and its backup."},
	{"name": "description", "description": "What you read."},
}

const aboutAPI = `What operators can do with a hub. The command line is a client of this API and of nothing else.

Every answer but a success is a problem (RFC 9457). A query parameter or member of a body that is not described here is refused.
A list comes in pages: take ` + "`after`" + ` of the next one from ` + "`next`" + ` of the body, or the whole address from the Link header (RFC 8288).
An answer to a GET has a strong entity tag; If-None-Match with it is answered by 304 while nothing has changed.
A POST may have an Idempotency-Key: within 24 hours, the same request under the same key gets the same answer, and is carried out once.`

// describe serves the document.
func (a *api) describe(w http.ResponseWriter, r *http.Request) {
	content, err := a.description()
	if err != nil {
		a.fail(w, r, err)
		return
	}
	tag := hashTag(content)
	w.Header().Set("ETag", tag)
	if matches(r.Header.Get("If-None-Match"), tag, weakly) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(content) // a client that is gone needs no answer
}

// describeRoutes makes the document of the routes that there are.
func (a *api) describeRoutes() ([]byte, error) {
	roots := []reflect.Type{reflect.TypeFor[Problem]()}
	for _, r := range a.routes {
		for _, t := range []reflect.Type{r.request, r.answer, r.line} {
			if t != nil {
				roots = append(roots, t)
			}
		}
	}
	s := newSchemas(roots)
	made, err := s.components()
	if err != nil {
		return nil, err
	}
	d := document{
		OpenAPI: "3.1.0",
		Info: map[string]any{"title": "Fleethub", "version": command.Commit(), "description": aboutAPI,
			"license": map[string]string{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		Servers: []map[string]string{{"url": "/"}}, Tags: groups, Paths: make(map[string]map[string]operation),
		Components: a.sharedParts(made),
	}
	for _, r := range a.routes {
		o, err := a.operation(r, s)
		if err != nil {
			return nil, fmt.Errorf("describe %s: %w", r.pattern, err)
		}
		if d.Paths[r.path()] == nil {
			d.Paths[r.path()] = make(map[string]operation)
		}
		d.Paths[r.path()][strings.ToLower(r.method())] = o
	}
	return json.MarshalIndent(d, "", " ")
}

// sharedParts are the components that operations refer to.
func (a *api) sharedParts(made map[string]*jsonschema.Schema) components {
	text := &jsonschema.Schema{Type: "string"}
	c := components{
		Schemas: made,
		Responses: map[string]response{"Problem": {
			Description: "Why not, RFC 9457",
			Content:     map[string]media{problemMediaType: {Schema: &jsonschema.Schema{Ref: schemaPrefix + "Problem"}}},
		}},
		Parameters: map[string]described{
			"IdempotencyKey": {Name: keyHeader, In: "header", Schema: text, Example: `"8e03978e-40d5-43e8-bc93-6894a57f9324"`,
				Description: "a string that no other request of this caller has; the same request under it is carried out once and gets the same answer for 24 hours"},
			"IfNoneMatch": {Name: "If-None-Match", In: "header", Schema: text, Description: "the entity tag of what the caller has"},
		},
		Headers: map[string]described{
			"ETag": {Description: "a strong entity tag, RFC 9110 §8.8.3", Schema: text},
			"Link": {Description: `the following page, rel="next", RFC 8288`, Schema: text},
		},
		SecuritySchemes: map[string]map[string]any{
			byOperator: {"type": "mutualTLS", "description": "An operator's certificate of this fleet; its organizational unit is its role: viewer, operator or admin."},
			byStation:  {"type": "mutualTLS", "description": "A factory station's certificate, for its own manifests."},
			byDevice:   {"type": "mutualTLS", "description": "A device's certificate, whatever its state."},
		},
	}
	if t := a.config.Tokens; t != nil {
		c.SecuritySchemes[byToken] = map[string]any{
			"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
			"description": fmt.Sprintf("A token of %s for %s, without a certificate beside it; its claim %s says the role.", t.config.Issuer, t.config.Audience, t.config.RoleClaim),
		}
	}
	return c
}

func (a *api) operation(r route, s *schemas) (operation, error) {
	o := operation{OperationID: r.name, Tags: []string{r.group}, Summary: r.summary, Description: r.detail, Responses: make(map[string]any), Security: a.security(r)}
	if !r.elsewhere {
		o.Role = r.role.String()
	}
	for _, name := range r.places() {
		o.Parameters = append(o.Parameters, described{Name: name, In: "path", Required: true, Schema: &jsonschema.Schema{Type: "string"}})
	}
	for _, p := range r.query {
		o.Parameters = append(o.Parameters, p.described("query"))
	}
	for _, p := range r.headers {
		o.Parameters = append(o.Parameters, p.described("header"))
	}
	if r.method() == http.MethodPost {
		o.Parameters = append(o.Parameters, reference{"#/components/parameters/IdempotencyKey"})
	}
	if r.method() == http.MethodGet && r.answer != nil && !r.elsewhere {
		o.Parameters = append(o.Parameters, reference{"#/components/parameters/IfNoneMatch"})
	}
	if err := r.describeBody(&o, s); err != nil {
		return o, err
	}
	good, err := r.success(s)
	if err != nil {
		return o, err
	}
	o.Responses["200"] = good
	if r.method() == http.MethodGet && good.Headers["ETag"].Ref != "" {
		o.Responses["304"] = response{Description: "What the caller has is still good", Headers: map[string]reference{"ETag": {"#/components/headers/ETag"}}}
	}
	for _, status := range a.statuses(r) {
		o.Responses[strconv.Itoa(status)] = reference{"#/components/responses/Problem"}
	}
	return o, nil
}

func (r route) describeBody(o *operation, s *schemas) error {
	if r.takes != "" {
		o.RequestBody = &body{Required: true, Content: map[string]media{r.takes: {Schema: &jsonschema.Schema{Type: "string", Format: "binary"}}}}
	}
	if r.request == nil {
		return nil
	}
	schema, err := s.of(r.request)
	o.RequestBody = &body{Content: map[string]media{"application/json": {Schema: schema, Example: r.example}}}
	return err
}

// success describes the answer of status 200.
func (r route) success(s *schemas) (response, error) {
	good := response{Description: r.summary, Content: make(map[string]media), Headers: make(map[string]reference)}
	var err error
	var line *jsonschema.Schema
	if r.line != nil {
		if line, err = s.of(r.line); err != nil {
			return good, err
		}
	}
	for _, kind := range r.gives {
		schema := &jsonschema.Schema{Type: "string"}
		switch kind {
		case "application/json":
			schema = &jsonschema.Schema{Type: "object"}
		case backupMediaType:
			schema.Format = "binary"
		}
		good.Content[kind] = media{Schema: schema, Line: line}
	}
	if r.answer != nil {
		schema, err := s.of(r.answer)
		if err != nil {
			return good, err
		}
		good.Content["application/json"] = media{Schema: schema}
	}
	if !r.elsewhere && (r.answer != nil && r.method() == http.MethodGet || r.tag != nil || r.tagged) {
		good.Headers["ETag"] = reference{"#/components/headers/ETag"}
	}
	if r.next != nil {
		good.Headers["Link"] = reference{"#/components/headers/Link"}
	}
	return good, nil
}

// statuses are those of the problems that the route may answer with.
func (a *api) statuses(r route) []int {
	list := append([]int{http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError, http.StatusServiceUnavailable}, r.problems...)
	if a.config.Tokens != nil && !r.elsewhere {
		list = append(list, http.StatusUnauthorized)
	}
	if len(r.places()) > 0 || r.elsewhere {
		list = append(list, http.StatusNotFound)
	}
	if r.request != nil || r.takes != "" {
		list = append(list, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	if r.method() == http.MethodPost {
		list = append(list, http.StatusConflict, http.StatusUnprocessableEntity)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// security says who may: any one of the list.
func (a *api) security(r route) []map[string][]string {
	if r.elsewhere {
		return []map[string][]string{{byDevice: {}}}
	}
	who := []map[string][]string{{byOperator: {r.role.String()}}}
	if a.config.Tokens != nil {
		who = append(who, map[string][]string{byToken: {r.role.String()}})
	}
	if r.station {
		who = append(who, map[string][]string{byStation: {}})
	}
	return who
}

func (p parameter) described(in string) described {
	d := described{Name: p.name, In: in, Required: p.required, Description: p.about, Schema: &jsonschema.Schema{Type: "string", Format: p.format}}
	if p.kind != "" {
		d.Schema.Type = p.kind
	}
	if p.kind == "integer" {
		d.Schema.Minimum = new(float64)
	}
	for _, value := range p.values {
		d.Schema.Enum = append(d.Schema.Enum, value)
	}
	if p.example == "" {
		return d
	}
	d.Example = p.example
	if n, err := strconv.Atoi(p.example); err == nil && p.kind == "integer" {
		d.Example = n
	}
	return d
}
