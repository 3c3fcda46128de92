package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// Limits of a file, far above what a person keeps track of: each decision walks over the
// lines of one role and one action.
const (
	maxFile  = 1 << 20 // bytes
	maxRules = 1000
	maxLines = 10000 // topics of all rules

	maxLine    = 4096 // bytes
	maxNesting = 8    // brackets in brackets
)

// Version is the version of the form of policy files.
const Version = 1

// Document is a policy file as it is written. The comments of the shipped policy.yaml
// explain each key.
type Document struct {
	Version int    `yaml:"version"`
	Rules   []Rule `yaml:"rules"`
}

// Rule is one rule as it is written. Exactly one of Allow and Deny is set.
type Rule struct {
	Name   string     `yaml:"rule"`
	Role   Words      `yaml:"role"`
	Allow  Words      `yaml:"allow"` // publish, subscribe
	Deny   Words      `yaml:"deny"`  // likewise
	When   *Condition `yaml:"when"`
	Unless *Condition `yaml:"unless"`
	Topics Words      `yaml:"topics"`
	Shared bool       `yaml:"shared"` // takes shared subscriptions; with Allow only
}

// Condition holds for a subject if each key that it has does, and a key if any of its
// words matches. A word is a text, or one that begins or ends with '*'.
type Condition struct {
	ID         Words            `yaml:"id"`
	OU         Words            `yaml:"ou"`
	SAN        Words            `yaml:"san"`
	Label      map[string]Words `yaml:"label"`
	Model      Words            `yaml:"model"`
	Protection Words            `yaml:"protection"`
	Batch      Words            `yaml:"batch"`
	Station    Words            `yaml:"station"`
}

// Words is one text, or a list of texts.
type Words []string

// UnmarshalYAML takes both spellings.
func (w *Words) UnmarshalYAML(decode func(any) error) error {
	var list []string
	if decode(&list) == nil {
		*w = list
		if list == nil {
			*w = Words{}
		}
		return nil
	}
	var one string
	if err := decode(&one); err != nil {
		return err
	}
	*w = Words{one}
	return nil
}

// Parse returns the policy that a file says. An error is one line that says where and
// what is wrong.
func Parse(data []byte) (*Policy, error) {
	var doc Document
	if err := decode(data, &doc); err != nil {
		return nil, err
	}
	if doc.Version != Version {
		return nil, fmt.Errorf("version: %d is not %d, the only one that this hub knows: begin the file with `version: %[2]d`", doc.Version, Version)
	}
	return New(doc)
}

// decode reads exactly one YAML document whose every key is known.
func decode(data []byte, into any) (err error) {
	if len(data) > maxFile {
		return fmt.Errorf("the file has %d bytes, at most %d are taken", len(data), maxFile)
	}
	// The file is read by a running hub: a defect of the library must cost a reload, not
	// the fleet its hub.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the file is no YAML that can be read (%v)", r)
		}
	}()
	if err := plain(data); err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := d.Decode(into); errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	} else if err != nil {
		return errors.New(explain(data, err))
	}
	var more any
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return errors.New("the file has a second document (---), which would be ignored: make it one")
	}
	return nil
}

// plain refuses what a policy never needs and a parser can be hurt with: aliases, and
// nesting without end, which is bounded by the length of lines where it isn't in brackets.
func plain(data []byte) error {
	number := 0
	for text := range bytes.Lines(data) {
		if number++; len(text) > maxLine {
			return fmt.Errorf("line %d has %d bytes, at most %d are taken", number, len(text), maxLine)
		}
	}
	depth := 0
	for _, t := range lexer.Tokenize(string(data)) {
		switch t.Type {
		case token.AliasType, token.MergeKeyType:
			return fmt.Errorf("line %d: aliases (*name, <<) are not taken: write it out", t.Position.Line)
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		if depth > maxNesting {
			return fmt.Errorf("line %d: brackets are nested too deeply", t.Position.Line)
		}
	}
	return nil
}

// explain returns a decoding error in one line that quotes the line at fault.
func explain(data []byte, err error) string {
	at, ok := errors.AsType[yaml.Error](err)
	if !ok || at.GetToken() == nil {
		return strings.Join(strings.Fields(yaml.FormatError(err, false, false)), " ")
	}
	number := at.GetToken().Position.Line
	lines := strings.Split(string(data), "\n")
	if number < 1 || number > len(lines) {
		return at.GetMessage()
	}
	return fmt.Sprintf("line %d, %.120q: %s", number, strings.TrimSpace(lines[number-1]), at.GetMessage())
}
