package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
)

// Who is a subject as people write it: in a file of expected decisions, in a question to
// a running hub, and in the answer.
type Who struct {
	Role       identity.Role     `yaml:"role" json:"role"`
	ID         string            `yaml:"id" json:"id"`
	OU         Words             `yaml:"ou" json:"ou,omitempty"`
	SAN        Words             `yaml:"san" json:"san,omitempty"`
	Label      map[string]string `yaml:"label" json:"label,omitempty"`
	Model      string            `yaml:"model" json:"model,omitempty"`
	Protection string            `yaml:"protection" json:"protection,omitempty"`
	Batch      string            `yaml:"batch" json:"batch,omitempty"`
	Station    string            `yaml:"station" json:"station,omitempty"`

	// Unseen and Unknown say that the certificate, or the registry's record, isn't at hand.
	Unseen  bool `yaml:"-" json:"unseen,omitempty"`
	Unknown bool `yaml:"-" json:"unknown,omitempty"`
}

// WhoIs returns what is known about a subject now.
func WhoIs(s Subject) Who {
	w := Who{Role: s.Role, ID: s.ID, OU: s.OU, SAN: s.SAN, Unseen: s.Unseen}
	if s.Attributes != nil {
		a, known := s.Attributes()
		w.Unknown = !known
		w.Label, w.Model, w.Protection, w.Batch, w.Station = a.Labels, a.Model, a.Protection, a.Batch, a.Station
	}
	return w
}

// Subject returns who that is, or an error that names what can't be.
func (w Who) Subject() (Subject, error) {
	if w.Role != identity.RoleDevice && w.Role != identity.RoleService {
		return Subject{}, fmt.Errorf("role: %.40q is neither device nor service: nobody else may use MQTT", string(w.Role))
	}
	if err := identity.ValidID(w.ID); err != nil {
		return Subject{}, fmt.Errorf("id: %w", err)
	}
	s := Subject{Role: w.Role, ID: w.ID, OU: w.OU, SAN: w.SAN, Unseen: w.Unseen}
	if w.Role == identity.RoleService {
		if len(w.Label) > 0 || w.Model+w.Protection+w.Batch+w.Station != "" {
			return Subject{}, errors.New("only devices have a label, model, protection, batch or station")
		}
		return s, nil
	}
	a := Attributes{Labels: w.Label, Model: w.Model, Protection: w.Protection, Batch: w.Batch, Station: w.Station}
	known := !w.Unknown
	s.Attributes = func() (Attributes, bool) { return a, known }
	return s, nil
}

// String names the subject as people do.
func (w Who) String() string { return string(w.Role) + " " + w.ID }

// String says a term of a condition nearly as a file has it.
func (t *term) String() string {
	name := keyNames[t.key]
	if t.key == keyLabel {
		name += "." + t.label
	}
	words := make([]string, len(t.words))
	for i, g := range t.words {
		words[i] = g.text
		switch {
		case g.open:
			words[i] += "*"
		case g.begun:
			words[i] = "*" + words[i]
		}
	}
	return name + " " + strings.Join(words, " or ")
}
