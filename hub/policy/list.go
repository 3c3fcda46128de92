package policy

// line is one topic of a rule.
type line struct {
	pattern pattern
	rule    *rule
}

// list is the lines of one role, action and effect, in the file's order, and a tree that
// finds those that a topic is about: a decision takes as long by a thousand rules as by
// ten, and looks only at the conditions of rules that the topic concerns.
//
// What a line is about is defined by pattern.covers and pattern.meets, which Explain asks
// line by line; the tree is the fast way to the same answer.
type list struct {
	deny  bool
	lines []line
	root  node
}

// node stands for the beginnings of patterns that are alike.
type node struct {
	first  int     // of lines: the first at or below the node
	words  words   // what follows: a literal,
	single *node   // a '+',
	others []other // or a level with variables
	ends   bunch   // lines that end here
	rests  bunch   // lines that end here with '#'
	below  bunch   // of a list that denies: all at or below, at the root without those that begin with '$'
}

// other is what follows a node behind a level with variables.
type other struct {
	level  level
	system bool // it begins with '$', at the first level
	node   *node
}

// words finds a node by a literal: among a few one by one, else by a map.
type words struct {
	list []word
	m    map[string]*node
}

type word struct {
	text string
	node *node
}

// few is how many things are looked at one by one faster than by a map.
const few = 8

func (w *words) find(text string) *node {
	if w.m != nil {
		return w.m[text]
	}
	for i := range w.list {
		if w.list[i].text == text {
			return w.list[i].node
		}
	}
	return nil
}

func (w *words) add(text string, n *node) {
	w.list = append(w.list, word{text, n})
	if len(w.list) <= few {
		return
	}
	if w.m == nil {
		w.m = make(map[string]*node)
		for _, have := range w.list {
			w.m[have.text] = have.node
		}
	}
	w.m[text] = n
}

// add appends a line.
func (l *list) add(added line) {
	at := len(l.lines)
	l.lines = append(l.lines, added)
	n := &l.root
	if !l.deny || !added.pattern.system {
		l.note(n, at)
	}
	for i := range added.pattern.levels {
		n = n.child(&added.pattern.levels[i], i == 0 && added.pattern.system, at)
		l.note(n, at)
	}
	if added.pattern.rest {
		n.rests.add(at)
	} else {
		n.ends.add(at)
	}
}

// note enters a line that lies at the node or below.
func (l *list) note(n *node, at int) {
	if l.deny {
		n.below.add(at)
	}
}

// sort is called once, when all lines are there.
func (l *list) sort() { l.root.sort(l.lines) }

func (n *node) sort(lines []line) {
	n.ends.sort(lines)
	n.rests.sort(lines)
	n.below.sort(lines)
	for i := range n.words.list {
		n.words.list[i].node.sort(lines)
	}
	for i := range n.others {
		n.others[i].node.sort(lines)
	}
	if n.single != nil {
		n.single.sort(lines)
	}
}

// child returns the node behind a level, made for a line if there was none.
func (n *node) child(l *level, system bool, at int) *node {
	switch l.kind {
	case literal:
		next := n.words.find(l.text)
		if next == nil {
			next = &node{first: at}
			n.words.add(l.text, next)
		}
		return next
	case single:
		if n.single == nil {
			n.single = &node{first: at}
		}
		return n.single
	}
	for i := range n.others {
		if n.others[i].level.text == l.text {
			return n.others[i].node
		}
	}
	next := &node{first: at}
	n.others = append(n.others, other{*l, system, next})
	return next
}

// decide returns the rule of the first line that decides what is asked, nil if there is
// none.
func (l *list) decide(q *question) *rule {
	found := len(l.lines)
	switch {
	case found == 0:
		return nil
	case l.deny:
		found = l.meet(&l.root, q, 0, found)
	default:
		found = l.cover(&l.root, q, 0, found)
	}
	if found == len(l.lines) {
		return nil
	}
	return l.lines[found].rule
}

// cover returns the first of the allow lines at n or below, before found, that decides:
// see pattern.covers. The levels before i led to n.
func (l *list) cover(n *node, q *question, i, found int) int {
	system := i == 0 && q.system
	if !system {
		found = l.among(&n.rests, q, found)
	}
	if i == q.n {
		if !q.rest {
			found = l.among(&n.ends, q, found)
		}
		return found
	}
	got := q.levels[i]
	if got != "+" {
		if next := n.words.find(got); next != nil && next.first < found {
			found = l.cover(next, q, i+1, found)
		}
		if !named(got) {
			return found
		}
		for k := range n.others {
			o := &n.others[k]
			if o.node.first < found && (!system || o.system) && o.level.equals(q, false, got) {
				found = l.cover(o.node, q, i+1, found)
			}
		}
	}
	if n.single != nil && !system && n.single.first < found {
		found = l.cover(n.single, q, i+1, found)
	}
	return found
}

// meet returns the first of the deny lines at n or below, before found, that decides:
// see pattern.meets. The levels before i led to n.
func (l *list) meet(n *node, q *question, i, found int) int {
	if i == q.n && q.rest {
		return l.among(&n.below, q, found)
	}
	found = l.among(&n.rests, q, found)
	if i == q.n {
		return l.among(&n.ends, q, found)
	}
	got := q.levels[i]
	wild := got == "+"
	if !wild {
		if next := n.words.find(got); next != nil && next.first < found {
			found = l.meet(next, q, i+1, found)
		}
	} else {
		for k := range n.words.list {
			w := &n.words.list[k]
			if w.node.first < found && (i > 0 || w.text == "" || w.text[0] != '$') {
				found = l.meet(w.node, q, i+1, found)
			}
		}
	}
	for k := range n.others {
		o := &n.others[k]
		if o.node.first < found && !(wild && o.system) && o.level.equals(q, true, got) {
			found = l.meet(o.node, q, i+1, found)
		}
	}
	if n.single != nil && n.single.first < found {
		found = l.meet(n.single, q, i+1, found)
	}
	return found
}

// among returns the first line of a bunch, before found, whose rule applies, or found.
func (l *list) among(b *bunch, q *question, found int) int {
	found = l.first(b.loose, q, found)
	for i := range b.by {
		s := &b.by[i]
		if s.first < found {
			found = l.chosen(s, q, found)
		}
	}
	return found
}

// first is among over lines that are looked at one by one.
func (l *list) first(some []int32, q *question, found int) int {
	for _, at := range some {
		if int(at) >= found {
			break
		}
		r := l.lines[at].rule
		if q.shared && !l.deny && !r.shared {
			continue
		}
		if r.applies(q) {
			return int(at)
		}
	}
	return found
}
