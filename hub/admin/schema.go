package admin

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/consumer"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// schemas derives the JSON schemas of the document from the Go types that the handlers take
// and give: every struct with a name becomes a component, and others refer to it.
type schemas struct {
	names map[reflect.Type]string             // of the components
	refs  map[reflect.Type]*jsonschema.Schema // what stands for each type where it is used
}

const schemaPrefix = "#/components/schemas/"

// scalars are types with a form in JSON of their own.
func scalars() map[reflect.Type]*jsonschema.Schema {
	return map[reflect.Type]*jsonschema.Schema{
		reflect.TypeFor[time.Time]():          {Type: "string", Format: "date-time"},
		reflect.TypeFor[[]byte]():             {Type: "string", ContentEncoding: "base64"},
		reflect.TypeFor[json.RawMessage]():    {Type: "object"}, // an audit record as it is stored
		reflect.TypeFor[registry.AuditHash](): {Type: "string", Pattern: "^[0-9a-f]{64}$"},
		reflect.TypeFor[registry.State]():     words(registry.States()...),
		reflect.TypeFor[registry.Outcome]():   words(registry.OutcomeDone, registry.OutcomeRefused, registry.OutcomeRequested),
		reflect.TypeFor[fleet.Verb]():         words(fleet.VerbSuspend, fleet.VerbResume, fleet.VerbRevoke, fleet.VerbRetire, fleet.VerbReplace, fleet.VerbApprove),
		reflect.TypeFor[identity.Role]():      {Type: "string"},
	}
}

func words[T ~string](list ...T) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, word := range list {
		s.Enum = append(s.Enum, string(word))
	}
	return s
}

// shownOrder is how a fleet.Order marshals itself.
type shownOrder struct {
	ID     string     `json:"id"`
	Verb   fleet.Verb `json:"verb"`
	Device string     `json:"device,omitempty"`
	Select string     `json:"select,omitempty"`
	Reason int        `json:"reason,omitempty"` // RFC 5280 §5.3.1
	Note   string     `json:"note,omitempty"`
	By     string     `json:"by,omitempty"`
	Count  int        `json:"count,omitempty"`
}

// shownMessage is how a consumer.Message marshals itself.
type shownMessage struct {
	Position consumer.Position `json:"position"`
	Time     time.Time         `json:"time"`
	Device   string            `json:"device"`
	Topic    string            `json:"topic"`
	Payload  string            `json:"payload,omitempty"`
	Binary   []byte            `json:"payload_base64,omitempty"`
	QoS      byte              `json:"qos"`
	Retain   bool              `json:"retain,omitempty"`
}

// stand names the struct that has the form in which a type marshals itself.
func stand(t reflect.Type) reflect.Type {
	switch t {
	case reflect.TypeFor[fleet.Order]():
		return reflect.TypeFor[shownOrder]()
	case reflect.TypeFor[consumer.Message]():
		return reflect.TypeFor[shownMessage]()
	case reflect.TypeFor[Message]():
		return reflect.TypeFor[wireMessage]()
	}
	return t
}

// newSchemas collects every struct that roots are made of.
func newSchemas(roots []reflect.Type) *schemas {
	s := &schemas{names: make(map[reflect.Type]string), refs: scalars()}
	var found []reflect.Type
	for _, root := range roots {
		found = s.collect(root, found)
	}
	used := make(map[string]int)
	for _, t := range found {
		used[title(t.Name())]++
	}
	for _, t := range found {
		name := title(t.Name())
		if home := reflect.TypeFor[Problem]().PkgPath(); used[name] > 1 && t.PkgPath() != home {
			name = title(t.PkgPath()[strings.LastIndexByte(t.PkgPath(), '/')+1:]) + name
		}
		s.names[t] = name
		s.refs[t] = &jsonschema.Schema{Ref: schemaPrefix + name}
	}
	return s
}

func title(name string) string {
	letters := []rune(name)
	letters[0] = unicode.ToUpper(letters[0])
	return string(letters)
}

func (s *schemas) collect(t reflect.Type, found []reflect.Type) []reflect.Type {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		if s.refs[t] != nil {
			return found
		}
		return s.collect(t.Elem(), found)
	case reflect.Struct:
	default:
		return found
	}
	if s.refs[t] != nil || slices.Contains(found, t) {
		return found
	}
	found = append(found, t)
	for _, field := range reflect.VisibleFields(stand(t)) {
		if field.IsExported() && field.Tag.Get("json") != "-" && !field.Anonymous {
			found = s.collect(field.Type, found)
		}
	}
	return found
}

// of returns what stands for a type in the document.
func (s *schemas) of(t reflect.Type) (*jsonschema.Schema, error) {
	made, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: s.refs})
	if err != nil {
		return nil, err
	}
	return plain(made, true), nil
}

// components returns the schema of every struct.
func (s *schemas) components() (map[string]*jsonschema.Schema, error) {
	all := make(map[string]*jsonschema.Schema, len(s.names))
	about, err := readFields()
	if err != nil {
		return nil, err
	}
	for t, name := range s.names {
		form := stand(t)
		refs := maps.Clone(s.refs)
		delete(refs, form)
		optional := embedded(form, refs, make(map[string]bool), false)
		made, err := jsonschema.ForType(form, &jsonschema.ForOptions{TypeSchemas: refs})
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", t, err)
		}
		made.Required = slices.DeleteFunc(made.Required, func(name string) bool { return optional[name] })
		for name, property := range made.Properties {
			made.Properties[name] = plain(property, !slices.Contains(made.Required, name))
		}
		for field := range documented(form) {
			if property := made.Properties[field.name]; property != nil {
				property.Description = about[field.key]
			}
		}
		all[name] = made
	}
	return all, nil
}

// member is a field as JSON has it, with its key in fieldsFile.
type member struct{ name, key string }

// documented yields the members of a struct, those of embedded ones included.
func documented(t reflect.Type) iter.Seq[member] {
	return func(yield func(member) bool) {
		for _, field := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if field.Anonymous || name == "" || name == "-" {
				continue
			}
			owner := t
			if len(field.Index) > 1 {
				if owner = t.FieldByIndex(field.Index[:len(field.Index)-1]).Type; owner.Kind() == reflect.Pointer {
					owner = owner.Elem()
				}
			}
			if !yield(member{name, fieldKey(owner, field.Name)}) {
				return
			}
		}
	}
}

// embedded takes the structs that t embeds out of refs, since their fields are t's own, and
// returns the names of those that come by a pointer, which may be nil.
func embedded(t reflect.Type, refs map[reflect.Type]*jsonschema.Schema, optional map[string]bool, byPointer bool) map[string]bool {
	for field := range t.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); byPointer && name != "" {
			optional[name] = true
		}
		if !field.Anonymous {
			continue
		}
		inner, pointer := field.Type, byPointer
		if inner.Kind() == reflect.Pointer {
			inner, pointer = inner.Elem(), true
		}
		delete(refs, inner)
		embedded(inner, refs, optional, pointer)
	}
	return optional
}

// plain turns null beside a reference, which the library adds for pointers, into what it
// means: nothing where a nil is left out, else a choice.
func plain(s *jsonschema.Schema, leftOut bool) *jsonschema.Schema {
	if s.Items != nil {
		s.Items = plain(s.Items, true)
	}
	if s.Ref != "" && len(s.Types) > 0 {
		s = &jsonschema.Schema{Ref: s.Ref, Description: s.Description}
		if !leftOut {
			s = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s, {Type: "null"}}}
		}
		return s
	}
	if leftOut && slices.Contains(s.Types, "null") {
		s.Types = slices.DeleteFunc(s.Types, func(t string) bool { return t == "null" })
		if len(s.Types) == 1 {
			s.Type, s.Types = s.Types[0], nil
		}
	}
	return s
}
