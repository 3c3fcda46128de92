package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fleethub/fleethub/certs/identity"
)

// Policy is a set of rules, ready to decide. It is immutable and safe for concurrent use.
type Policy struct {
	rules    []*rule
	tables   [roleCount]table
	warnings []string
	sum      string
}

// Roles with business on MQTT.
const (
	deviceRole = iota
	serviceRole
	roleCount
)

// table is what concerns one role.
type table struct{ publish, subscribe side }

// side is what concerns one action.
type side struct{ deny, allow list }

// rule is a compiled rule.
type rule struct {
	name         string
	number       int
	deny         bool
	shared       bool
	when, unless *condition // nil: none
}

// refusals are why no rule decided: no rule may be called so.
var refusals = []string{"no-rule", "reserved-topic", "invalid-topic", "invalid-filter", "unknown-role"}

// New makes a policy of rules. An error names the rule and says what is wrong with it.
func New(doc Document) (*Policy, error) {
	if len(doc.Rules) > maxRules {
		return nil, fmt.Errorf("rules: there are %d, at most %d are taken", len(doc.Rules), maxRules)
	}
	p := new(Policy)
	for role := range p.tables {
		p.tables[role].publish.deny.deny, p.tables[role].subscribe.deny.deny = true, true
	}
	names := make(map[string]int)
	lines := 0
	for i, written := range doc.Rules {
		number := i + 1
		if err := p.add(number, written); err != nil {
			return nil, fmt.Errorf("rule %d (%.64q): %w", number, written.Name, err)
		}
		if first, taken := names[written.Name]; taken {
			return nil, fmt.Errorf("rule %d: its name %q is that of rule %d, too", number, written.Name, first)
		}
		names[written.Name] = number
		if lines += len(written.Topics); lines > maxLines {
			return nil, fmt.Errorf("rules: they have more than %d topics together", maxLines)
		}
	}
	for role := range p.tables {
		for _, side := range []*side{&p.tables[role].publish, &p.tables[role].subscribe} {
			side.deny.sort()
			side.allow.sort()
		}
	}
	canonical, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(canonical)
	p.sum = hex.EncodeToString(sum[:])
	return p, nil
}

// Rules returns how many rules there are.
func (p *Policy) Rules() int { return len(p.rules) }

// Sum returns a SHA-256 in hexadecimal of the rules, whatever their file looks like: two
// policies of one sum decide alike.
func (p *Policy) Sum() string { return p.sum }

// Warnings returns what is allowed and probably not meant, a sentence each.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

func (p *Policy) add(number int, w Rule) error {
	if err := validName(w.Name); err != nil {
		return err
	}
	r := &rule{name: w.Name, number: number, deny: w.Deny != nil, shared: w.Shared}
	if (w.Allow == nil) == (w.Deny == nil) {
		return errors.New("it takes either allow or deny")
	}
	if r.deny && r.shared {
		return errors.New("shared belongs to allow: a deny rule is about shared subscriptions in any case")
	}
	roles, err := parseRoles(w.Role)
	if err != nil {
		return err
	}
	devicesOnly := !slices.Contains(roles, serviceRole)
	if r.when, err = compileCondition(w.When, devicesOnly); err != nil {
		return fmt.Errorf("when: %w", err)
	}
	if r.unless, err = compileCondition(w.Unless, devicesOnly); err != nil {
		return fmt.Errorf("unless: %w", err)
	}
	publish, subscribe, err := parseActions(slices.Concat(w.Allow, w.Deny))
	if err != nil {
		return err
	}
	if r.shared && !subscribe {
		return errors.New("shared is about subscribe, which the rule is not")
	}
	if len(w.Topics) == 0 {
		return errors.New("topics: it names none")
	}
	for _, text := range w.Topics {
		pattern, err := compilePattern(text, devicesOnly)
		if err != nil {
			return fmt.Errorf("topics: %.200q: %w", text, err)
		}
		if publish && !r.deny && pattern.system {
			return fmt.Errorf("topics: %.200q: topics that begin with $ are the hub's own, which nobody may publish to", text)
		}
		for _, role := range roles {
			for _, of := range []struct {
				wanted bool
				side   *side
			}{{publish, &p.tables[role].publish}, {subscribe, &p.tables[role].subscribe}} {
				switch {
				case !of.wanted:
				case r.deny:
					of.side.deny.add(line{pattern, r})
				default:
					of.side.allow.add(line{pattern, r})
				}
			}
		}
		if !r.deny && slices.Contains(roles, deviceRole) {
			p.warn(r, &pattern, publish)
		}
	}
	p.rules = append(p.rules, r)
	return nil
}

// warn notes what gives each device what is another's.
func (p *Policy) warn(r *rule, pattern *pattern, publish bool) {
	at := fmt.Sprintf("rule %d (%q): %s", r.number, r.name, pattern.text)
	switch {
	case pattern.system:
		p.warnings = append(p.warnings, at+" lets devices read the hub's own figures")
	case !pattern.own && pattern.wild:
		p.warnings = append(p.warnings, at+" has wildcards and no ${id} or ${label…}: each of these devices has all of it, others' topics included")
	case publish && strings.HasPrefix(pattern.text, "presence"):
		p.warnings = append(p.warnings, at+" lets devices say who is online, which is the hub's word")
	}
}

// validName holds rule names to what reads well in logs, metrics and `explain`.
func validName(name string) error {
	if name == "" || len(name) > 64 {
		return errors.New("rule: it takes a name of 1 to 64 bytes")
	}
	for i := range len(name) {
		if c := name[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || i > 0 && (c == '-' || c == '_' || c == '.')) {
			return errors.New("rule: its name may have letters and digits and, after the first, - _ . only")
		}
	}
	if slices.Contains(refusals, name) {
		return errors.New("rule: that name says why no rule decided: choose another")
	}
	return nil
}

func parseRoles(words Words) (roles []int, err error) {
	if len(words) == 0 {
		return nil, errors.New("role: it takes device, service, or a list of both")
	}
	for _, word := range words {
		role := deviceRole
		switch identity.Role(word) {
		case identity.RoleDevice:
		case identity.RoleService:
			role = serviceRole
		default:
			return nil, fmt.Errorf("role: %.40q is neither device nor service: nobody else may use MQTT", word)
		}
		if slices.Contains(roles, role) {
			return nil, fmt.Errorf("role: %s is named twice", word)
		}
		roles = append(roles, role)
	}
	return roles, nil
}

func parseActions(words Words) (publish, subscribe bool, err error) {
	if len(words) == 0 {
		return false, false, errors.New("allow or deny takes publish, subscribe, or a list of both")
	}
	for _, word := range words {
		switch {
		case word == "publish" && !publish:
			publish = true
		case word == "subscribe" && !subscribe:
			subscribe = true
		case word == "receive":
			return false, false, errors.New("receive is part of subscribe: write that")
		default:
			return false, false, fmt.Errorf("%s is neither publish nor subscribe, or there twice", strconv.Quote(word))
		}
	}
	return publish, subscribe, nil
}
