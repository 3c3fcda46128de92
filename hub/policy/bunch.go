package policy

// bunch is the lines that are about the same topics, ascending. Those whose rules are for
// certain subjects, such as the rules of a hundred plants, are found by what the subject
// has, so that the conditions of the other ninety-nine aren't looked at.
type bunch struct {
	loose []int32
	by    []sorted
}

// sorted is lines whose rules demand one of some words of one thing.
type sorted struct {
	key   key
	label string // of keyLabel
	first int
	lines map[string][]int32 // by each word that would do
	all   []int32
}

// add appends a line.
func (b *bunch) add(at int) { b.loose = append(b.loose, int32(at)) }

// sort arranges a bunch of more than a few lines by what their rules demand.
func (b *bunch) sort(lines []line) {
	if len(b.loose) <= few {
		return
	}
	all := b.loose
	b.loose = nil
	for _, at := range all {
		t := lines[at].rule.choosy()
		if t == nil {
			b.loose = append(b.loose, at)
			continue
		}
		s := b.of(t, at)
		s.all = append(s.all, at)
		for _, g := range t.words {
			s.lines[g.text] = append(s.lines[g.text], at)
		}
	}
}

// of returns the lines that demand the same as t does, made for a line if there are none.
func (b *bunch) of(t *term, at int32) *sorted {
	for i := range b.by {
		if s := &b.by[i]; s.key == t.key && s.label == t.label {
			return s
		}
	}
	b.by = append(b.by, sorted{key: t.key, label: t.label, first: int(at), lines: make(map[string][]int32)})
	return &b.by[len(b.by)-1]
}

// choosy returns the first term of a rule's condition that holds for whole words only,
// nil if there is none: a subject that has none of them is none of the rule's.
func (r *rule) choosy() *term {
	if r.when == nil {
		return nil
	}
	for i := range r.when.terms {
		t := &r.when.terms[i]
		exact := true
		for _, g := range t.words {
			exact = exact && !g.open && !g.begun
		}
		if exact {
			return t
		}
	}
	return nil
}

// chosen is among over lines that are found by what the subject has. Of what isn't known
// of him all lines are looked at: whether they apply is theirs to say.
func (l *list) chosen(s *sorted, q *question, found int) int {
	switch s.key {
	case keyOU, keySAN:
		has := q.subject.OU
		if s.key == keySAN {
			has = q.subject.SAN
		}
		if q.subject.Unseen {
			return l.first(s.all, q, found)
		}
		for _, one := range has {
			found = l.first(s.lines[one], q, found)
		}
		return found
	}
	one, known := q.single(s.key, s.label)
	if !known {
		return l.first(s.all, q, found)
	}
	return l.first(s.lines[one], q, found)
}
