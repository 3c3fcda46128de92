// Package command is what the four command lines share: exit codes, errors as one
// sentence, --output, version, and the end by SIGINT or SIGTERM.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit codes of all four programs.
const (
	OK          = 0
	Failure     = 1
	Usage       = 2  // the command line is wrong
	Denied      = 3  // refused, revoked, not authorized
	NotFound    = 4  // no such device, file or folder
	Unreachable = 5  // nobody answers at the address
	BadConfig   = 78 // sysexits.h EX_CONFIG
)

type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// WithCode returns err with the exit code it ends the program with; nil for nil.
func WithCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &codedError{code: code, err: err}
}

// Errorf is WithCode of fmt.Errorf.
func Errorf(code int, format string, args ...any) error {
	return WithCode(code, fmt.Errorf(format, args...))
}

// Code returns the exit code of err: OK for nil, Failure if none was given.
func Code(err error) int {
	if err == nil {
		return OK
	}
	if coded, ok := errors.AsType[*codedError](err); ok {
		return coded.code
	}
	return Failure
}

// Run executes the command line and returns the exit code. The context of commands
// ends at SIGINT or SIGTERM; a second signal kills. An error is printed to stderr as
// "program: sentence". What fails before a command runs is a usage error.
func Run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal finds the default action
	running := false
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		// cobra would check these after this hook, when the command counts as running.
		if err := missingFlags(c); err != nil {
			return err
		}
		running = true
		return nil
	}
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	requireSubcommands(root)
	explainUsage(root)
	root.SetHelpCommand(helpCommand(root))
	executed, err := root.ExecuteContextC(ctx)
	if err == nil {
		return OK
	}
	err = inPlainWords(err)
	fmt.Fprintf(root.ErrOrStderr(), "%s: %s\n", root.Name(), oneLine(err))
	if running {
		return Code(err)
	}
	fmt.Fprintf(root.ErrOrStderr(), "see '%s --help'\n", executed.CommandPath())
	return Usage
}

// oneLine returns the message of err; those of errors.Join come on lines of their own.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}

// requireSubcommands makes "hub device" and "hub device frobnicate" errors: cobra
// prints help and succeeds.
func requireSubcommands(c *cobra.Command) {
	for _, sub := range c.Commands() {
		requireSubcommands(sub)
	}
	if c.HasSubCommands() && !c.Runnable() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			return WithCode(Usage, needsCommand(c, args))
		}
	}
}

// helpCommand is "hub help device show". Cobra's own succeeds whatever it is asked for.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]...",
		Short: "Print the help of a command",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return Errorf(Usage, "there is no command %.80q: see '%s --help'", strings.Join(args, " "), root.Name())
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}

// commit is set by the Makefile through -ldflags -X.
var commit = "unknown"

// Commit returns the commit the program was built from.
func Commit() string { return commit }

// Version returns the version command, and gives root the --version flag.
func Version(root *cobra.Command, output *Output) *cobra.Command {
	root.Version = commit
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	return &cobra.Command{
		Use:   "version",
		Short: "Print the commit this program was built from",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v := struct {
				Program string `json:"program"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{root.Name(), commit, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			return output.Print(c.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s %s (%s, %s/%s)\n", v.Program, v.Commit, v.Go, v.OS, v.Arch)
				return err
			})
		},
	}
}

// Output is the value of the --output flag.
type Output struct {
	format string
}

// OutputFlag adds --output to root and every command below it.
func OutputFlag(root *cobra.Command) *Output {
	o := &Output{format: "text"}
	root.PersistentFlags().Var(o, "output", "`format` of what is printed: text or json")
	return o
}

// String, Set and Type make Output a pflag.Value.
func (o *Output) String() string { return o.format }

// Set accepts text and json.
func (o *Output) Set(format string) error {
	if format != "text" && format != "json" {
		return errors.New("must be text or json")
	}
	o.format = format
	return nil
}

// Type names the flag's value in the help text.
func (o *Output) Type() string { return "format" }

// JSON reports whether JSON was asked for.
func (o *Output) JSON() bool { return o.format == "json" }

// Print writes v as one line of JSON, or calls text, as the flag says.
func (o *Output) Print(w io.Writer, v any, text func(io.Writer) error) error {
	if !o.JSON() {
		return text(w)
	}
	return json.NewEncoder(w).Encode(v)
}
