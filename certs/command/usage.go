package command

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// explainUsage has c and every command below it say what is wrong with a command line, and
// what is missing, by the names that its help uses. Cobra and pflag speak to who wrote the
// program: "accepts 1 arg(s), received 0".
func explainUsage(c *cobra.Command) {
	c.SetFlagErrorFunc(explainFlag)
	explainArguments(c)
}

func explainArguments(c *cobra.Command) {
	for _, sub := range c.Commands() {
		explainArguments(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if check(c, args) == nil {
			return nil
		}
		return argumentsError(c, args)
	}
}

// argumentsError says which arguments are missing, or too many. The names are those of the
// command's Use: what comes after its own name and isn't a flag's.
func argumentsError(c *cobra.Command, args []string) error {
	required, most := argumentNames(c.Use)
	switch {
	case len(args) < len(required):
		missing := required[len(args):]
		verb := "is"
		if len(missing) > 1 {
			verb = "are"
		}
		return fmt.Errorf("%s %s missing: %s %s", inWords(missing), verb, c.CommandPath(), strings.Join(most, " "))
	case len(args) > len(most) && len(most) == 0:
		return fmt.Errorf("%.80q is too much: %s takes no arguments", args[0], called(c))
	case len(args) > len(most):
		return fmt.Errorf("%.80q is too much: %s %s", args[len(most)], c.CommandPath(), strings.Join(most, " "))
	}
	return fmt.Errorf("these arguments are not those of %s: give %s", called(c), inWords(most))
}

// called returns a command as a sentence that begins with the program's name calls it.
func called(c *cobra.Command) string {
	if !c.HasParent() {
		return "the program"
	}
	return strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
}

// argumentNames returns the arguments that a line of usage names: those that must be there, and all. "ID..."
// is any number of them, from one.
func argumentNames(use string) (required, all []string) {
	depth, flag := 0, false
	for _, word := range strings.Fields(use)[1:] {
		optional := depth > 0 || strings.HasPrefix(word, "[")
		depth += strings.Count(word, "(") + strings.Count(word, "[") - strings.Count(word, ")") - strings.Count(word, "]")
		switch {
		case strings.HasPrefix(strings.Trim(word, "[("), "-"):
			flag = true // its value follows
		case flag || word == "|":
			flag = false
		case optional:
			all = append(all, word)
		default:
			required, all = append(required, word), append(all, word)
		}
	}
	return required, all
}

// explainFlag says a flag's error in words.
func explainFlag(c *cobra.Command, err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if short := e.GetSpecifiedShortnames(); short != "" {
			return fmt.Errorf("%s has no flag -%.80s: flags are written out, with two hyphens", called(c), short)
		}
		name := e.GetSpecifiedName()
		if c.HasSubCommands() && hasBelow(c, name) { // the flag is right, and its command isn't there
			return needsCommand(c, c.Flags().Args()) // those before the flag
		}
		return fmt.Errorf("%s has no flag --%.80s", called(c), name)
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return fmt.Errorf("--%s needs a value: %s", e.GetSpecifiedName(), asked(e.GetFlag()))
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		err := valueError(e)
		if strings.Contains(err.Error(), strconv.Quote(e.GetValue())) { // it names the value itself
			return fmt.Errorf("--%s: %w", e.GetFlag().Name, err)
		}
		return fmt.Errorf("--%s: %.80q %w", e.GetFlag().Name, e.GetValue(), err)
	}
	if e, ok := errors.AsType[*pflag.InvalidSyntaxError](err); ok {
		return fmt.Errorf("%.80q is not a flag: write --NAME VALUE", e.GetSpecifiedFlag())
	}
	return err
}

// hasBelow reports whether a command below c has that flag.
func hasBelow(c *cobra.Command, flag string) bool {
	for _, sub := range c.Commands() {
		if sub.Flags().Lookup(flag) != nil || hasBelow(sub, flag) {
			return true
		}
	}
	return false
}

// needsCommand says that c is no command by itself, or has not the one that args name, and
// which there are.
func needsCommand(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s has no command %.40q; it has %s", called(c), args[0], strings.Join(commandNames(c), ", "))
	}
	return fmt.Errorf("%s needs one of its commands: %s", called(c), strings.Join(commandNames(c), ", "))
}

func commandNames(c *cobra.Command) (names []string) {
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// asked says what a flag wants: its name and the words of its help.
func asked(f *pflag.Flag) string {
	name, usage := pflag.UnquoteUsage(f)
	switch name {
	case "":
		return "--" + f.Name + " (" + usage + ")"
	case "int", "uint", "float":
		name = "N"
	}
	return "--" + f.Name + " " + strings.ToUpper(name) + " (" + usage + ")"
}

// valueError says what a value is not, where the flag's own type says it in the terms of
// strconv and time.
func valueError(e *pflag.InvalidValueError) error {
	_, number := errors.AsType[*strconv.NumError](e)
	switch kind := e.GetFlag().Value.Type(); {
	case kind == "bool":
		return errors.New("is neither true nor false")
	case number && strings.HasPrefix(kind, "u"):
		return errors.New("is not a whole number from 0 on")
	case number && strings.HasPrefix(kind, "int"):
		return errors.New("is not a whole number")
	case number:
		return errors.New("is not a number")
	case kind == "duration" && strings.HasPrefix(e.Unwrap().Error(), "time: "): // pflag's own
		return fmt.Errorf("is not a duration such as %s", 90*time.Second)
	}
	return e.Unwrap()
}

// missingFlags says which flags must be given and aren't, and which don't go together.
func missingFlags(c *cobra.Command) error {
	var missing []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if marks := f.Annotations[cobra.BashCompOneRequiredFlag]; slices.Contains(marks, "true") && !f.Changed {
			missing = append(missing, asked(f))
		}
	})
	if len(missing) > 0 {
		return fmt.Errorf("%s needs %s", called(c), inWords(missing))
	}
	err := c.ValidateFlagGroups()
	if err == nil {
		return nil
	}
	// The groups are known to cobra alone; its sentences have them in brackets.
	_, rest, _ := strings.Cut(err.Error(), "[")
	group, _, _ := strings.Cut(rest, "]")
	names := strings.Fields(group)
	for i, name := range names {
		names[i] = "--" + name
	}
	switch text := err.Error(); {
	case len(names) < 2:
		return err
	case strings.Contains(text, "at least one"):
		return fmt.Errorf("%s needs %s", called(c), strings.Join(names, " or "))
	case strings.Contains(text, "must all be set"):
		return fmt.Errorf("%s go together: give both or neither", inWords(names))
	}
	return fmt.Errorf("%s exclude each other: give one of them", inWords(names))
}

// inWords joins names as a sentence does.
func inWords(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
