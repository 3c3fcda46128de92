package policy

// line is one topic of a rule.
type line struct {
	pattern pattern
	rule    *rule
}

// decides reports whether the line decides what is asked: whether its rule denies or
// allows it.
func (l *line) decides(q *question) bool {
	switch {
	case l.pattern.misses(q):
		return false
	case l.rule.deny:
		return l.pattern.meets(q, l.rule) && l.rule.applies(q)
	}
	return (!q.shared || l.rule.shared) && l.pattern.covers(q, l.rule) && l.rule.applies(q)
}

// list is the lines of one role, action and effect, in the file's order.
//
// A topic name has at each level one word. So of many lines, those whose last literal is
// another word than the name's at that level need not be looked at: a decision by a
// hundred lines takes about as long as one by ten.
type list struct {
	lines []line
	words []wordsAt
	loose []int // of lines: those without a literal
}

// wordsAt has the lines whose last literal is at one level, by that literal.
type wordsAt struct {
	level int
	lines map[string][]int
}

// few is how many lines are looked at one by one faster than by their words.
const few = 12

func (l *list) add(added line) {
	n := len(l.lines)
	l.lines = append(l.lines, added)
	if added.pattern.lastAt < 0 {
		l.loose = append(l.loose, n)
		return
	}
	for i := range l.words {
		if w := &l.words[i]; w.level == added.pattern.lastAt {
			w.lines[added.pattern.last] = append(w.lines[added.pattern.last], n)
			return
		}
	}
	l.words = append(l.words, wordsAt{added.pattern.lastAt, map[string][]int{added.pattern.last: {n}}})
}

// first returns the rule of the first line that decides, nil if there is none.
func (l *list) first(q *question) *rule {
	if len(l.lines) <= few || q.wild {
		for i := range l.lines {
			if l.lines[i].decides(q) {
				return l.lines[i].rule
			}
		}
		return nil
	}
	found := l.among(q, l.loose, len(l.lines))
	for i := range l.words {
		if w := &l.words[i]; w.level < q.n {
			found = l.among(q, w.lines[q.levels[w.level]], found)
		}
	}
	if found == len(l.lines) {
		return nil
	}
	return l.lines[found].rule
}

// among returns the first of some lines before found that decides, or found.
func (l *list) among(q *question, some []int, found int) int {
	for _, i := range some {
		if i >= found {
			break
		}
		if l.lines[i].decides(q) {
			return i
		}
	}
	return found
}
