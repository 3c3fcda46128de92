package screen

import (
	"net"
	"strings"
	"unicode"
)

// printable returns text that can't move a terminal's cursor or turn the direction of a
// line, at most maxText bytes of it.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// host returns an address without its port, which changes with every connection.
func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}
