package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/manifest"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/hubtest"
	"github.com/fleethub/fleethub/hub/server"
)

// described is a running hub and what it says of its API, read by a library that is not ours.
type described struct {
	*hubtest.Hub
	t       *testing.T
	doc     *openapi3.T
	device  certtest.Credential     // of pi-1
	online  mqtt.Client             // likewise
	clients map[string]*http.Client // by whose certificate
	places  map[string]string       // of the path's variables, by operation, or by what the path begins with
	bodies  map[string][]byte       // of operations that take no JSON
}

func describe(t *testing.T, h *hubtest.Hub) *described {
	t.Helper()
	d := &described{Hub: h, t: t, device: h.Device("pi-1"), clients: make(map[string]*http.Client), places: make(map[string]string), bodies: make(map[string][]byte)}
	for who, credential := range map[string]certtest.Credential{
		"admin": h.Fleet.Operator("ann", certtest.WithOU("admin")), "operator": h.Fleet.Operator("oli", certtest.WithOU("operator")),
		"viewer": h.Fleet.Operator("vic", certtest.WithOU("viewer")), "device": d.device,
	} {
		credential.Roots = h.Fleet.Bundle()
		transport := &http.Transport{TLSClientConfig: credential.ClientConfig()}
		t.Cleanup(transport.CloseIdleConnections)
		d.clients[who] = &http.Client{Transport: transport}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.address("/openapi.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	status, _, content := d.send("viewer", request)
	if status != http.StatusOK {
		t.Fatalf("the document: %d %s", status, content)
	}
	if d.doc, err = openapi3.NewLoader().LoadFromData(content); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *described) address(path string) string { return "https://" + d.HTTPSAddr() + path }

// send returns the answer; of one that doesn't end, the first line.
func (d *described) send(who string, r *http.Request) (int, http.Header, []byte) {
	d.t.Helper()
	response, err := d.clients[who].Do(r)
	if err != nil {
		d.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer response.Body.Close()
	var content []byte
	if strings.HasSuffix(r.URL.Path, "/watch") && response.StatusCode == http.StatusOK {
		content, err = d.firstLine(response.Body)
	} else {
		content, err = io.ReadAll(response.Body)
	}
	if err != nil {
		d.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	return response.StatusCode, response.Header, content
}

// firstLine reads a line of a watch, while a device reports.
func (d *described) firstLine(stream io.Reader) ([]byte, error) {
	read, reported := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(reported)
		for i := 0; ; i++ {
			select {
			case <-read:
				return
			default:
				d.online.Publish("d/pi-1/tele/t", 1, false, fmt.Sprint(i)).WaitTimeout(patience)
			}
		}
	}()
	line, err := bufio.NewReader(stream).ReadBytes('\n')
	close(read)
	<-reported
	return line, err
}

// endpoint is one operation with its place in the document.
type endpoint struct {
	method, path string
	item         *openapi3.PathItem
	operation    *openapi3.Operation
}

func (d *described) endpoints() (list []endpoint) {
	for path, item := range d.doc.Paths.Map() {
		for method, operation := range item.Operations() {
			list = append(list, endpoint{method, path, item, operation})
		}
	}
	slices.SortFunc(list, func(a, b endpoint) int { return strings.Compare(a.operation.OperationID, b.operation.OperationID) })
	return list
}

// request is made of nothing but the document, and of names of what there is. Change may be nil.
func (d *described) request(e endpoint, change func(query url.Values, header http.Header)) *http.Request {
	d.t.Helper()
	path, query, header := e.path, url.Values{}, http.Header{}
	for _, p := range e.operation.Parameters {
		switch value := p.Value; value.In {
		case "path":
			path = strings.ReplaceAll(path, "{"+value.Name+"}", url.PathEscape(d.place(e)))
		case "query":
			if value.Example != nil {
				query.Set(value.Name, fmt.Sprint(value.Example))
			}
		case "header":
			if len(value.Schema.Value.Enum) > 0 {
				header.Set(value.Name, fmt.Sprint(value.Schema.Value.Enum[0]))
			}
		}
	}
	var body []byte
	if e.operation.RequestBody != nil {
		for media, content := range e.operation.RequestBody.Value.Content {
			header.Set("Content-Type", media)
			if body = d.bodies[e.operation.OperationID]; content.Example != nil {
				var err error
				if body, err = json.Marshal(content.Example); err != nil {
					d.t.Fatal(err)
				}
			}
		}
	}
	if change != nil {
		change(query, header)
	}
	target := d.address(path)
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	d.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, e.method, target, bytes.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Header = header
	return r
}

func (d *described) place(e endpoint) string {
	if place, ok := d.places[e.operation.OperationID]; ok {
		return place
	}
	for _, begin := range []string{"/v1/devices/", "/v1/proposals/", "/v1/receipts/", "/v1/consumers/", "/v1/issuers/", "/v1/crls/"} {
		if strings.HasPrefix(e.path, begin) {
			return d.places[begin]
		}
	}
	return ""
}

// judge holds an answer against what the document says of it.
func (d *described) judge(e endpoint, r *http.Request, status int, header http.Header, content []byte) {
	d.t.Helper()
	declared := e.operation.Responses.Status(status)
	if declared == nil {
		d.t.Errorf("%s: status %d is not in the document: %s", e.operation.OperationID, status, content)
		return
	}
	media, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	if status != http.StatusNotModified && declared.Value.Content[media] == nil {
		d.t.Errorf("%s: an answer %d of type %q is not in the document", e.operation.OperationID, status, media)
		return
	}
	for name := range declared.Value.Headers {
		if name == "ETag" && header.Get(name) == "" {
			d.t.Errorf("%s: no %s", e.operation.OperationID, name)
		}
	}
	if content := declared.Value.Content[media]; content != nil && content.Extensions["x-line-schema"] != nil {
		return // see lines
	}
	if !strings.HasSuffix(media, "json") {
		return
	}
	input := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, Route: &routers.Route{Spec: d.doc, Path: e.path, PathItem: e.item, Method: e.method, Operation: e.operation}},
		Status:                 status, Header: header, Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	}
	input.SetBodyBytes(content)
	if err := openapi3filter.ValidateResponse(d.t.Context(), input); err != nil {
		d.t.Errorf("%s: the answer is not what the document says: %v\n%.600s", e.operation.OperationID, err, content)
	}
}

// lines holds each line of a stream against the schema that the document has for it.
func (d *described) lines(e endpoint, content []byte) {
	d.t.Helper()
	extension, ok := e.operation.Responses.Status(200).Value.Content["application/x-ndjson"].Extensions["x-line-schema"].(map[string]any)
	if !ok {
		d.t.Errorf("%s: no schema of its lines", e.operation.OperationID)
		return
	}
	name := strings.TrimPrefix(fmt.Sprint(extension["$ref"]), "#/components/schemas/")
	schema := d.doc.Components.Schemas[name]
	if schema == nil {
		d.t.Fatalf("%s: no schema %s", e.operation.OperationID, name)
	}
	for line := range bytes.Lines(content) {
		var value any
		if err := json.Unmarshal(line, &value); err != nil {
			d.t.Errorf("%s: line %q: %v", e.operation.OperationID, line, err)
		} else if err := schema.Value.VisitJSON(value, openapi3.EnableJSONSchema2020()); err != nil {
			d.t.Errorf("%s: line %.200q: %v", e.operation.OperationID, line, err)
		}
	}
}

// furnish gives the hub one of everything that the API can show.
func (d *described) furnish() {
	t, ctx, ann := d.t, d.t.Context(), d.Operator()
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"pi-2", "pi-3", "pi-4", "pi-suspended", "pi-revoked", "pi-lost"} {
		d.Device(id)
	}
	do(ann.Suspend(ctx, "pi-suspended", "lost"))
	receipt, err := ann.Revoke(ctx, "pi-revoked", revocation.KeyCompromise)
	do(receipt, err)
	var proposals []string
	for range 3 {
		answer, err := ann.Order(ctx, fleet.VerbRetire, admin.SelectionRequest{Select: "id=pi-3|pi-4", Confirm: true, Count: 2})
		do(answer, err)
		proposals = append(proposals, answer.Proposal.ID)
	}
	do(ann.CreateConsumer(ctx, "billing", admin.ConsumerPlace{From: "start", Filter: "d/#"}))
	do(ann.CreateConsumer(ctx, "former", admin.ConsumerPlace{From: "start"}))
	var list string
	eventually(t, "the hub has signed a list", func() bool {
		lists, err := ann.Lists(ctx)
		do(lists, err)
		for _, l := range lists {
			if l.Own {
				list = l.Issuer
			}
		}
		return list != ""
	})
	d.online = online(t, d.Hub, d.device)
	report(t, d.online, "pi-1", 0, 3)
	m := manifest.Manifest{TrustDomain: certtest.TrustDomain, Station: certtest.StationName, Number: 99, CreatedAt: time.Now(),
		Devices: []manifest.Entry{{Certificate: d.Hub.Fleet.Device("pi-new").Leaf.Raw, Model: "pi4"}}}
	d.bodies["importManifest"], err = manifest.Sign(m, []*x509.Certificate{d.Fleet.Factory.Certificate()}, d.Fleet.FactoryKey)
	do(m, err)
	newcomer := d.Fleet.Device("pi-newcomer")
	_, err = d.Server().Fleet().Introduce(t.Context(), fleet.Introduction{Certificate: newcomer.Leaf, Issuer: newcomer.Issuer})
	do(nil, err)
	d.bodies["importCRL"] = (&publishing{d.Hub, t}).factoryList(5, time.Now().UTC().Truncate(time.Second))
	d.places = map[string]string{
		"/v1/devices/": "pi-1", "suspendDevice": "pi-lost", "resumeDevice": "pi-suspended", "reinstateDevice": "pi-revoked",
		"approveDevice":  "pi-newcomer",
		"/v1/receipts/":  receipt.ReceiptID,
		"/v1/proposals/": proposals[0], "approveProposal": proposals[1], "withdrawProposal": proposals[2],
		"/v1/consumers/": "billing", "deleteConsumer": "former", "putConsumer": "reports",
		"/v1/issuers/": certtest.StationName, "/v1/crls/": list,
	}
}

// startDescribed is a hub with its issuing key, so that it signs lists, and the rule of four eyes.
func startDescribed(t *testing.T) *described {
	t.Helper()
	h := hubtest.Start(t, func(c *server.Config) { c.Operations.FourEyesOver = 1 })
	if err := pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey); err != nil {
		t.Fatal(err)
	}
	h.Restart()
	return describe(t, h)
}

func TestAPIIsWhatItsDocumentSays(t *testing.T) {
	d := startDescribed(t)
	if d.doc.OpenAPI != "3.1.0" {
		t.Errorf("OpenAPI %s", d.doc.OpenAPI)
	}
	if err := d.doc.Validate(t.Context(), openapi3.EnableExamplesValidation(), openapi3.EnableSchemaFormatValidation(), openapi3.EnableSchemaPatternValidation()); err != nil {
		t.Errorf("it is no OpenAPI document: %v", err)
	}
	d.furnish()
	if n := len(d.endpoints()); n < 50 {
		t.Errorf("the document has %d operations", n)
	}
	for _, e := range d.endpoints() {
		id, who := e.operation.OperationID, "admin"
		if e.path == "/v1/why" {
			who = "device"
		}
		r := d.request(e, func(_ url.Values, header http.Header) { d.expect(e, header) })
		status, header, content := d.send(who, r)
		d.judge(e, r, status, header, content)
		if status != http.StatusOK {
			t.Errorf("%s: %d %s", id, status, content)
		}
		if strings.HasSuffix(header.Get("Content-Type"), "x-ndjson") {
			d.lines(e, content)
		}
		if tag := header.Get("ETag"); tag != "" && e.method == http.MethodGet && e.operation.Responses.Status(304) != nil {
			r := d.request(e, func(_ url.Values, header http.Header) { header.Set("If-None-Match", tag) })
			status, header, content := d.send(who, r)
			d.judge(e, r, status, header, content)
			if status != http.StatusNotModified || len(content) > 0 {
				t.Errorf("%s: asked again with %s: %d %s", id, tag, status, content)
			}
		}
	}
}

// expect sets the If-Match of an operation that knows it, to what is there.
func (d *described) expect(e endpoint, header http.Header) {
	d.t.Helper()
	if e.operation.Parameters.GetByInAndName("header", "If-Match") == nil || header.Get("If-None-Match") != "" {
		return
	}
	resource := e.path[:strings.Index(e.path, "}")+1]
	item := d.doc.Paths.Value(resource)
	r := d.request(endpoint{http.MethodGet, resource, item, item.Get}, nil)
	r.URL.Path = strings.ReplaceAll(resource, resource[strings.Index(resource, "{"):], d.place(e))
	status, answer, content := d.send("viewer", r)
	if status != http.StatusOK || answer.Get("ETag") == "" {
		d.t.Errorf("%s: %d %s, ETag %q", r.URL, status, content, answer.Get("ETag"))
	}
	header.Set("If-Match", answer.Get("ETag"))
}

func TestAPIRefusesInTheWordsOfItsDocument(t *testing.T) {
	d := startDescribed(t)
	d.furnish()
	for _, e := range d.endpoints() {
		if e.path == "/v1/why" {
			continue
		}
		id := e.operation.OperationID
		// The role that the document names, and the one below it.
		var role string
		if json.Unmarshal([]byte(fmt.Sprintf("%q", e.operation.Extensions["x-required-role"])), &role) != nil || !slices.Contains([]string{"viewer", "operator", "admin"}, role) {
			t.Errorf("%s: role %v", id, e.operation.Extensions["x-required-role"])
		}
		for who, want := range map[string]bool{"viewer": role == "viewer", "operator": role != "admin", "device": false} {
			if want {
				continue
			}
			r := d.request(e, nil)
			status, header, content := d.send(who, r)
			d.judge(e, r, status, header, content)
			if status != http.StatusForbidden {
				t.Errorf("%s by %s: %d %s", id, who, status, content)
			}
		}
		// What the document doesn't have.
		r := d.request(e, func(query url.Values, _ http.Header) { query.Set("frobnicate", "1") })
		status, header, content := d.send("admin", r)
		d.judge(e, r, status, header, content)
		if status != http.StatusBadRequest || !strings.Contains(string(content), "frobnicate") {
			t.Errorf("%s with an unknown parameter: %d %s", id, status, content)
		}
		if e.operation.RequestBody != nil {
			r := d.request(e, func(_ url.Values, header http.Header) { header.Set("Content-Type", "text/plain") })
			if r.ContentLength == 0 {
				r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
			}
			r.Header.Set("If-None-Match", "*")
			status, header, content := d.send("admin", r)
			d.judge(e, r, status, header, content)
			if status != http.StatusUnsupportedMediaType {
				t.Errorf("%s with text: %d %s", id, status, content)
			}
		}
		if strings.Contains(e.path, "}") {
			d.places[id] = "nobody"
			r := d.request(e, func(_ url.Values, header http.Header) { header.Set("If-Match", `"7"`) })
			r.Header.Del("If-None-Match")
			status, header, content := d.send("admin", r)
			d.judge(e, r, status, header, content)
			if status != http.StatusNotFound {
				t.Errorf("%s of nobody: %d %s", id, status, content)
			}
		}
	}
}
