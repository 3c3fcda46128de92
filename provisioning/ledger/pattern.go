package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxCounter is the highest number an ID made of a pattern can end in.
const MaxCounter = 999_999_999

// maxWidth is how many digits MaxCounter has.
const maxWidth = 9

// Pattern makes IDs: a prefix and a counter of at least Width digits. The zero value
// makes none.
type Pattern struct {
	Prefix string `json:"prefix"`
	Width  int    `json:"width"`
}

// ID returns the ID with that counter. A counter that has more digits than the pattern
// gets them.
func (p Pattern) ID(n int) string { return fmt.Sprintf("%s%0*d", p.Prefix, p.Width, n) }

// String returns the pattern as ParsePattern reads it.
func (p Pattern) String() string { return p.Prefix + strings.Repeat("#", p.Width) }

// ParsePattern reads a pattern such as pi-#####: a prefix, then a # for each digit of
// the counter.
func ParsePattern(text string) (Pattern, error) {
	prefix := strings.TrimRight(text, "#")
	p := Pattern{Prefix: prefix, Width: len(text) - len(prefix)}
	if p.Width == 0 || p.Width > maxWidth {
		return Pattern{}, fmt.Errorf("pattern %.80q must end in one # for each digit of the counter, 1 to %d of them, as in pi-#####", text, maxWidth)
	}
	return p, ValidPrefix(prefix)
}

// ValidPrefix returns nil if IDs can be made of the prefix. It may not end in a digit:
// sim-1 with the counter 00001 would be sim- with the counter 100001.
func ValidPrefix(prefix string) error {
	if prefix == "" {
		return errors.New("the prefix is empty")
	}
	if last := prefix[len(prefix)-1]; slices.Contains([]byte("0123456789"), last) {
		return fmt.Errorf("prefix %q ends in a digit, which would run into the counter that follows: end it in a letter, a hyphen, an underscore or a dot", prefix)
	}
	return nil
}

// split takes an ID apart into prefix and counter, if it ends in a number that a pattern
// could have made. Since no prefix ends in a digit there is one way to do it.
func split(id string) (prefix string, n int, ok bool) {
	prefix = strings.TrimRight(id, "0123456789")
	digits := id[len(prefix):]
	if prefix == "" || digits == "" {
		return "", 0, false
	}
	n, err := strconv.Atoi(digits)
	return prefix, n, err == nil && n <= MaxCounter
}
