package admin

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write fields.json")

// TestFieldsAreDescribedAsInOurSources compares what the document says about the members of
// bodies with the comments beside the fields.
func TestFieldsAreDescribedAsInOurSources(t *testing.T) {
	h := everything(t)
	var roots []reflect.Type
	for _, r := range newAPI(h.config, t.Context()).routes {
		for _, root := range []reflect.Type{r.request, r.answer, r.line} {
			if root != nil {
				roots = append(roots, root)
			}
		}
	}
	comments := make(map[string]map[string]string) // by package
	want := make(map[string]string)
	for structure := range newSchemas(append(roots, reflect.TypeFor[Problem]())).names {
		describe(t, stand(structure), comments, want)
	}
	text, err := json.MarshalIndent(want, "", "  ") // in order of key
	h.must(err)
	if *update {
		h.must(os.WriteFile("fields.json", append(text, '\n'), 0o644))
		return
	}
	have, err := readFields()
	h.must(err)
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if have[key] != want[key] {
			t.Errorf("%s: fields.json says %q, the source %q", key, have[key], want[key])
		}
	}
	if len(have) != len(want) {
		t.Errorf("fields.json has %d entries, the sources %d", len(have), len(want))
	}
	if t.Failed() {
		t.Log("write it anew: go test ./hub/admin -run Fields -update")
	}
}

// describe puts what the sources say about a struct's fields into want.
func describe(t *testing.T, structure reflect.Type, comments map[string]map[string]string, want map[string]string) {
	t.Helper()
	for i := range structure.NumField() {
		field := structure.Field(i)
		if field.Anonymous {
			inner := field.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			describe(t, inner, comments, want)
		}
	}
	if structure.PkgPath() == "" {
		return
	}
	_, home, ours := strings.Cut(structure.PkgPath(), "github.com/fleethub/fleethub/")
	if !ours {
		return
	}
	if comments[home] == nil {
		comments[home] = fieldComments(t, filepath.Join("..", "..", home))
	}
	for m := range documented(structure) {
		if about := comments[home][m.key]; about != "" {
			want[m.key] = about
		}
	}
}

// fieldComments returns the comments of every field of every struct in a folder.
func fieldComments(t *testing.T, folder string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", folder, err)
	}
	found := make(map[string]string)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			structure, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range structure.Fields.List {
				about := field.Doc.Text()
				if about == "" {
					about = field.Comment.Text()
				}
				for _, name := range field.Names {
					found[filepath.Base(folder)+"."+spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(about), " ")
				}
			}
			return true
		})
	}
	return found
}
