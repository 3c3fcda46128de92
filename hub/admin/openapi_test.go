package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// TestMuxAndDocumentHaveTheSameRoutes compares what the mux answers to with what the document
// says, in both directions. Whether the answers are as described, a test of package server
// finds out at a whole hub.
func TestMuxAndDocumentHaveTheSameRoutes(t *testing.T) {
	h := everything(t)
	a := newAPI(h.config, t.Context())
	content, err := a.description()
	h.must(err)
	doc, err := openapi3.NewLoader().LoadFromData(content)
	h.must(err)
	methods := []string{"GET", "POST", "PUT", "DELETE", "PATCH"}
	names := make(map[string]bool)
	found := 0
	for path, item := range doc.Paths.Map() {
		for _, method := range methods {
			_, pattern := a.mux.Handler(httptest.NewRequest(method, strings.NewReplacer("{id}", "x", "{name}", "x").Replace(path), nil))
			operation := item.GetOperation(method)
			if operation == nil {
				if pattern != "" {
					t.Errorf("the mux serves %s %s as %s, and the document has no such operation", method, path, pattern)
				}
				continue
			}
			found++
			if path == "/v1/why" { // another room's
				found--
				continue
			}
			if pattern != method+" "+path {
				t.Errorf("the document has %s %s, and the mux serves %q", method, path, pattern)
			}
			if operation.Summary == "" || operation.OperationID == "" || names[operation.OperationID] || len(operation.Tags) != 1 || doc.Tags.Get(operation.Tags[0]) == nil {
				t.Errorf("%s %s is not well described: %q, %q, %v", method, path, operation.OperationID, operation.Summary, operation.Tags)
			}
			names[operation.OperationID] = true
			for _, p := range operation.Parameters {
				if p.Value.In == "query" && p.Value.Description == "" && p.Value.Schema.Value.Enum == nil {
					t.Errorf("%s %s: parameter %s is not described", method, path, p.Value.Name)
				}
			}
		}
	}
	if found != len(a.routes)-1 || found != len(demanded) {
		t.Errorf("the document has %d operations, the API %d routes, and %d are demanded", found, len(a.routes), len(demanded))
	}
}

func TestDocumentIsTheSameEachTime(t *testing.T) {
	h := everything(t)
	first, err := newAPI(h.config, t.Context()).describeRoutes()
	h.must(err)
	second, err := newAPI(h.config, t.Context()).describeRoutes()
	h.must(err)
	if string(first) != string(second) || !json.Valid(first) {
		t.Error("two documents of one API differ")
	}
}

// TestWhatIsOffIsNotDescribed: a hub without consumers has no routes for them, and says so.
func TestWhatIsOffIsNotDescribed(t *testing.T) {
	h := newHub(t, operatorsOnly, nil)
	content, err := newAPI(h.config, t.Context()).description()
	h.must(err)
	var d document
	h.must(json.Unmarshal(content, &d))
	if d.Paths["/v1/consumers"] != nil || d.Paths["/v1/devices"][strings.ToLower(http.MethodGet)].OperationID != "listDevices" {
		t.Error("the document doesn't fit the hub")
	}
	if d.Components.Schemas["ConsumerList"] != nil {
		t.Error("the document has schemas that nothing refers to")
	}
}
