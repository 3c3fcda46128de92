package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents returns the Markdown files of the repository, relative to its root.
func documents(t *testing.T) []string {
	t.Helper()
	var found []string
	err := fs.WalkDir(os.DirFS(repository), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "_dev", "bin", "dist", "node_modules"}, name) {
			return fs.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(name, ".md") {
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func readDocument(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var (
	fence    = regexp.MustCompile("(?ms)^```.*?^```$")
	inline   = regexp.MustCompile("`[^`\n]*`")
	link     = regexp.MustCompile(`\[[^\]\n]*\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	unslug   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	codeLine = regexp.MustCompile(`(?m)^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\./)?(?:bin/)?(hub|provisioning|device-agent|firmware-sim) ([^\s][^\n]*)$`)
	makeLine = regexp.MustCompile("(?m)(?:^\\s*(?:\\$ )?|`)make ([a-z0-9-]+)")
	flagName = regexp.MustCompile(`(?:^|[\s\[(])(--[a-z][a-z-]*)`)
)

// anchors returns the fragments that a document's headings answer to, as GitHub makes them.
func anchors(text string) []string {
	var all []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := unslug.ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(slug, " ", "-"))
	}
	return all
}

func TestLinksInDocumentsResolve(t *testing.T) {
	for _, name := range documents(t) {
		text := readDocument(t, name)
		prose := inline.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, m := range link.FindAllStringSubmatch(prose, -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			aim := name
			if target != "" {
				aim = filepath.Join(filepath.Dir(name), filepath.FromSlash(target))
			}
			if _, err := os.Stat(filepath.Join(repository, aim)); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
				continue
			}
			if fragment != "" && !slices.Contains(anchors(readDocument(t, aim)), fragment) {
				t.Errorf("%s links to %s, but %s has no such heading", name, m[1], aim)
			}
		}
	}
}

// TestQuotedCommandsExist reads every code block of the documents: each command of ours must have its --help, and each
// flag quoted with it must be in that help.
func TestQuotedCommandsExist(t *testing.T) {
	help := map[string]string{}
	for _, name := range documents(t) {
		text := readDocument(t, name)
		for _, block := range fence.FindAllString(text, -1) {
			for _, m := range codeLine.FindAllStringSubmatch(typed(block), -1) {
				checkCommand(t, help, name, m[1], m[2])
			}
		}
		for _, m := range makeLine.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(readDocument(t, "Makefile"), "\n"+m[1]+":") {
				t.Errorf("%s quotes `make %s`, and the Makefile has no such target", name, m[1])
			}
		}
	}
	if len(help) == 0 {
		t.Error("no document quotes a single command: is codeLine still right?")
	}
}

// typed returns the lines of a code block that a person would type. In one with prompts, the others are what was printed.
func typed(block string) string {
	lines := strings.Split(strings.ReplaceAll(block, "\\\n", " "), "\n")
	if strings.Contains(block, "\n$ ") {
		lines = slices.DeleteFunc(lines, func(line string) bool {
			return !strings.HasPrefix(line, "$ ") && !strings.HasPrefix(line, "  bin/")
		})
	}
	return strings.Join(lines, "\n")
}

// subcommand matches a word of a command line that can only be a command's name.
var subcommand = regexp.MustCompile(`^[a-z]+$`)

// checkCommand asks a program for the help of the command that line starts with, and looks up the flags of line in it.
func checkCommand(t *testing.T, help map[string]string, document, program, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, "#")
	line, _, _ = strings.Cut(line, " (")
	command := []string{program}
	for _, word := range strings.Fields(line) {
		if !subcommand.MatchString(word) || !listed(t, help, command, word) {
			break
		}
		command = append(command, word)
	}
	if first, _, _ := strings.Cut(line, " "); len(command) == 1 && !strings.HasPrefix(first, "-") {
		t.Errorf("%s quotes %s %s: no such command", document, program, line)
		return
	}
	for _, m := range flagName.FindAllStringSubmatch(line, -1) {
		if !strings.Contains(helpOf(t, help, command), m[1]) {
			t.Errorf("%s quotes %s %s: %s has no %s", document, program, line, strings.Join(command, " "), m[1])
		}
	}
}

// listed reports whether the help of command lists word as a subcommand.
func listed(t *testing.T, help map[string]string, command []string, word string) bool {
	return regexp.MustCompile(`(?m)^  ` + word + `\s`).MatchString(helpOf(t, help, command))
}

func helpOf(t *testing.T, help map[string]string, command []string) string {
	t.Helper()
	key := strings.Join(command, " ")
	if _, ok := help[key]; !ok {
		out, err := exec.Command(command[0], append(command[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s --help: %v\n%s", key, err, out)
		}
		help[key] = string(out)
	}
	return help[key]
}
