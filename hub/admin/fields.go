package admin

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"path"
	"reflect"
)

// fieldsFile has what the comments in our sources say about the fields of what the API takes
// and gives, by package, type and field: "fleet.Receipt.Count" is a key. A test writes it (go
// test ./hub/admin -run Fields -update), and fails where the sources say something else.
//
//go:embed fields.json
var fieldsFile []byte

// readFields returns what is said of each field.
func readFields() (map[string]string, error) {
	var all map[string]string
	if err := json.Unmarshal(fieldsFile, &all); err != nil {
		return nil, fmt.Errorf("fields.json: %w", err)
	}
	return all, nil
}

// fieldKey is a field's key in fieldsFile.
func fieldKey(t reflect.Type, field string) string {
	return path.Base(t.PkgPath()) + "." + t.Name() + "." + field
}
