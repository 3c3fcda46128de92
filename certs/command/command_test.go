package command_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
)

// The test binary is its own program: with childEnv it is the command line below.
const childEnv = "COMMAND_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(command.Run(program()))
	}
	os.Exit(m.Run())
}

// program is a small command line of the shape that the four real ones have.
func program() *cobra.Command {
	root := &cobra.Command{Use: "prog", Short: "A program"}
	output := command.OutputFlag(root)
	root.AddCommand(command.Version(root, output))

	fail := &cobra.Command{
		Use: "fail", Short: "Fail as told", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "denied":
				return fmt.Errorf("outer: %w", command.Errorf(command.Denied, "device %s is revoked", "a"))
			case "notfound":
				return command.WithCode(command.NotFound, errors.New("no such device"))
			case "unreachable":
				return command.Errorf(command.Unreachable, "nobody answers at 127.0.0.1:8443; start the hub")
			case "config":
				return command.Errorf(command.BadConfig, "hub.yaml: line 3: unknown key")
			case "lines":
				return errors.Join(errors.New("one"), errors.New("two"))
			case "none":
				return command.WithCode(command.Denied, nil)
			case "dial":
				_, err := net.Dial("tcp", "127.0.0.1:1")
				return fmt.Errorf("no hub answers: %w", err)
			case "name":
				return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "hub.invalid", IsNotFound: true}}
			case "bound":
				return &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}
			case "file":
				_, err := os.Open("nothere")
				return fmt.Errorf("read the list: %w", err)
			case "coded":
				_, err := os.Open("nothere")
				return command.WithCode(command.BadConfig, err)
			case "folder":
				return os.WriteFile("nowhere/x", nil, 0o600)
			case "isfolder":
				_, err := os.ReadFile(".")
				return err
			case "below":
				_, err := os.ReadFile("command.go/x/y")
				return err
			case "isfile":
				return os.MkdirAll("command.go", 0o700)
			case "rename":
				return os.Rename("nothere", "neither")
			case "full":
				return &fs.PathError{Op: "write", Path: "hub.tar", Err: syscall.ENOSPC}
			case "readonly":
				return &fs.PathError{Op: "mkdir", Path: "S", Err: syscall.EROFS}
			case "forbidden":
				return fmt.Errorf("%w; sudo?", &fs.PathError{Op: "open", Path: "S/key", Err: syscall.EACCES})
			}
			return errors.New("plain error")
		},
	}
	device := &cobra.Command{Use: "device", Short: "Devices"}
	show := &cobra.Command{
		Use: "show ID", Short: "Show one", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return output.Print(c.OutOrStdout(), map[string]string{"id": args[0]}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "device", args[0])
				return err
			})
		},
	}
	show.Flags().String("dir", "", "`folder` that has it")
	show.Flags().Int("count", 0, "how many")
	show.Flags().Float64("share", 0, "how much")
	show.Flags().Uint("places", 0, "how many")
	show.Flags().Duration("for", 0, "how long")
	show.Flags().Var(new(command.Duration), "valid", "how long")
	show.Flags().Bool("a", false, "one")
	show.Flags().Bool("b", false, "the other")
	show.MarkFlagsMutuallyExclusive("a", "b")
	if err := show.MarkFlagRequired("dir"); err != nil {
		panic(err)
	}
	device.AddCommand(show)
	wait := &cobra.Command{
		Use: "wait", Short: "Wait for a signal", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintln(c.OutOrStdout(), "waiting")
			<-c.Context().Done()
			fmt.Fprintln(c.OutOrStdout(), "drained")
			return nil
		},
	}
	stuck := &cobra.Command{
		Use: "stuck", Short: "Drain forever", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintln(c.OutOrStdout(), "waiting")
			<-c.Context().Done()
			fmt.Fprintln(c.OutOrStdout(), "draining")
			select {}
		},
	}
	move := &cobra.Command{
		Use: "move --station S (--name N | --id I) ID FROM TO [WHY]", Short: "Move one", Args: cobra.RangeArgs(3, 4),
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	for _, name := range []string{"station", "pin", "name", "id"} {
		move.Flags().String(name, "", name)
	}
	move.MarkFlagsOneRequired("name", "id")
	move.MarkFlagsRequiredTogether("station", "pin")
	label := &cobra.Command{Use: "label --to TARGET ID...", Short: "Label some", Args: cobra.MinimumNArgs(1), RunE: func(*cobra.Command, []string) error { return nil }}
	label.Flags().String("to", "", "target")
	root.AddCommand(fail, device, wait, stuck, move, label)
	return root
}

// run executes the command line in this process.
func run(args ...string) (code int, stdout, stderr string) {
	root := program()
	var out, errOut bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetArgs(args)
	code = command.Run(root)
	return code, out.String(), errOut.String()
}

func TestExitCodesAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		how    string
		code   int
		stderr string
	}{
		{"none", 0, ""},
		{"plain", 1, "prog: plain error\n"},
		{"denied", 3, "prog: outer: device a is revoked\n"},
		{"notfound", 4, "prog: no such device\n"},
		{"unreachable", 5, "prog: nobody answers at 127.0.0.1:8443; start the hub\n"},
		{"config", 78, "prog: hub.yaml: line 3: unknown key\n"},
		{"lines", 1, "prog: one; two\n"},
		// What the system says is said in words.
		{"dial", 5, "prog: no hub answers: nothing listens at 127.0.0.1:1\n"},
		{"name", 5, "prog: no machine is known by the name hub.invalid\n"},
		{"bound", 1, "prog: listen tcp: address already in use\n"},
		{"file", 4, "prog: read the list: there is no nothere\n"},
		{"coded", 78, "prog: there is no nothere\n"},
		{"folder", 4, "prog: there is no folder nowhere\n"},
		{"isfolder", 1, "prog: . is a folder, not a file\n"},
		{"below", 1, "prog: command.go is a file, not a folder\n"},
		{"isfile", 1, "prog: command.go is a file, not a folder\n"},
		{"rename", 4, "prog: there is no nothere\n"},
		{"full", 1, "prog: there is no room left on the disk for hub.tar\n"},
		{"readonly", 1, "prog: S is on a file system that is read-only\n"},
		{"forbidden", 1, "prog: this user may not use S/key (permission denied): take the account that it belongs to; sudo?\n"},
	} {
		code, stdout, stderr := run("fail", c.how)
		if code != c.code || stderr != c.stderr || stdout != "" {
			t.Errorf("fail %s: exit code %d, stdout %q, stderr %q; want %d, nothing, %q", c.how, code, stdout, stderr, c.code, c.stderr)
		}
	}
}

func TestCodeOfAnError(t *testing.T) {
	t.Parallel()
	inner := errors.New("inner")
	coded := command.WithCode(command.NotFound, inner)
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, command.OK},
		{inner, command.Failure},
		{coded, command.NotFound},
		{fmt.Errorf("wrapped: %w", coded), command.NotFound},
		{errors.Join(inner, coded), command.NotFound},
		{command.WithCode(command.Denied, coded), command.Denied}, // the outer one has the last word
	} {
		if got := command.Code(c.err); got != c.want {
			t.Errorf("Code(%v) = %d, want %d", c.err, got, c.want)
		}
	}
	if !errors.Is(coded, inner) || coded.Error() != "inner" {
		t.Errorf("the code hides its error: %v", coded)
	}
}

func TestWrongCommandLinesAreUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{}, "the program needs one of its commands: "},
		{[]string{"frobnicate"}, `the program has no command "frobnicate"; it has `},
		{[]string{"device"}, "device needs one of its commands: show"},
		{[]string{"device", "frobnicate"}, `device has no command "frobnicate"; it has show`},
		{[]string{"--frobnicate"}, "the program has no flag --frobnicate\n"},
		{[]string{"device", "show", "a", "--frobnicate"}, "device show has no flag --frobnicate\n"},
		{[]string{"device", "--dir", "x"}, "device needs one of its commands: show\n"},
		{[]string{"device", "list", "--dir", "x"}, `device has no command "list"; it has show`},
		{[]string{"device", "show", "-x"}, "device show has no flag -x: flags are written out, with two hyphens\n"},
		{[]string{"device", "show", "--=3"}, `"--=3" is not a flag: write --NAME VALUE`},
		{[]string{"device", "show", "--dir", "x"}, "ID is missing: prog device show ID\n"},
		{[]string{"device", "show", "a", "b", "--dir", "x"}, "\"b\" is too much: prog device show ID\n"},
		{[]string{"device", "show", "a"}, "device show needs --dir FOLDER (folder that has it)\n"},
		{[]string{"device", "show", "a", "--dir"}, "--dir needs a value: --dir FOLDER (folder that has it)\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--count", "many"}, "--count: \"many\" is not a whole number\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--share", "much"}, "--share: \"much\" is not a number\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--places", "-1"}, "--places: \"-1\" is not a whole number from 0 on\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--a=perhaps"}, "--a: \"perhaps\" is neither true nor false\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--for", "long"}, "--for: \"long\" is not a duration such as 1m30s\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--valid", "long"}, "--valid: \"long\" is not a positive duration such as 90d, 2y, 12h or 30s\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--a", "--b"}, "--a and --b exclude each other: give one of them\n"},
		{[]string{"device", "show", "a", "--dir", "x", "--output", "xml"}, "--output: \"xml\" must be text or json\n"},
		{[]string{"version", "now"}, "\"now\" is too much: version takes no arguments\n"},
		{[]string{"move", "a"}, "FROM and TO are missing: prog move ID FROM TO [WHY]\n"},
		{[]string{"move", "a", "b", "c", "d", "e"}, "\"e\" is too much: prog move ID FROM TO [WHY]\n"},
		{[]string{"move", "a", "b", "c"}, "move needs --name or --id\n"},
		{[]string{"move", "a", "b", "c", "--id", "x", "--pin", "y"}, "--station and --pin go together: give both or neither\n"},
		{[]string{"label"}, "ID... is missing: prog label ID...\n"},
		{[]string{"help", "frobnicate"}, `there is no command "frobnicate": see 'prog --help'`},
		{[]string{"help", "device", "frobnicate"}, `there is no command "device frobnicate"`},
	} {
		code, stdout, stderr := run(c.args...)
		if code != command.Usage || !strings.HasPrefix(stderr, "prog: ") || !strings.Contains(stderr, c.says) {
			t.Errorf("%q: exit code %d, stderr %q; want 2 and %q", c.args, code, stderr, c.says)
		}
		if lines := strings.Count(stderr, "\n"); stdout != "" || lines > 2 || lines == 2 && !strings.HasSuffix(stderr, " --help'\n") {
			t.Errorf("%q: a sentence and at most a pointer to --help should be printed, got stdout %q, stderr %q", c.args, stdout, stderr)
		}
	}
}

func TestHelpIsNoError(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"help"}, {"device", "--help"}, {"help", "device", "show"}} {
		if code, stdout, stderr := run(args...); code != 0 || !strings.Contains(stdout, "Usage:") || stderr != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
	}
}

func TestOutputIsTextOrOneLineOfJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "device a<b\n"},
		{[]string{"--output", "text"}, "device a<b\n"},
		{[]string{"--output=json"}, `{"id":"a\u003cb"}` + "\n"},
	} {
		code, stdout, stderr := run(append([]string{"device", "show", "a<b", "--dir", "x"}, c.args...)...)
		if code != 0 || stdout != c.want || stderr != "" {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q; want %q", c.args, code, stdout, stderr, c.want)
		}
	}
}

func TestVersionNamesProgramAndCommit(t *testing.T) {
	t.Parallel()
	code, stdout, _ := run("version", "--output", "json")
	var v struct{ Program, Commit, Go, OS, Arch string }
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 {
		t.Fatalf("version --output json: %d, %v", code, err)
	}
	if v.Program != "prog" || v.Commit != command.Commit() || v.Commit == "" || !strings.HasPrefix(v.Go, "go") || v.OS == "" || v.Arch == "" {
		t.Errorf("version --output json prints %+v", v)
	}
	if code, stdout, _ := run("--version"); code != 0 || stdout != "prog "+command.Commit()+"\n" {
		t.Errorf("--version: exit code %d, %q", code, stdout)
	}
}

// start runs the command line in a process of its own, which must print "waiting" first.
func start(t *testing.T, args ...string) (cmd *exec.Cmd, stdout io.Reader) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0") // else the race detector waits a second
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.ReadFull(stdout, make([]byte, len("waiting\n")))
	}
	if err != nil {
		t.Fatal(err)
	}
	return cmd, stdout
}

func TestSignalEndsTheCommandsContext(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		cmd, stdout := start(t, "wait")
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(stdout)
		if err := errors.Join(err, cmd.Wait()); err != nil || string(rest) != "drained\n" {
			t.Errorf("after %s: %v, printed %q", signal, err, rest)
		}
	}
}

func TestSecondSignalKillsACommandThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	cmd, stdout := start(t, "stuck")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, len("draining\n"))); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	again := time.NewTicker(5 * time.Millisecond) // the program may not have let go of the signal with the first
	defer again.Stop()
	for {
		select {
		case <-again.C:
			_ = cmd.Process.Signal(syscall.SIGTERM) // fails if it has just ended
		case <-ended:
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
				t.Errorf("it ended with %v", cmd.ProcessState)
			}
			return
		}
	}
}
