package e2e

import (
	"crypto/x509"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/certs/tpm/tpmtest"
)

// TestStories runs the scripts in testdata. Besides testscript's own commands they have these:
//
//	exits CODE PROGRAM ARGS...     it must end with CODE; a failure must say one sentence, "PROGRAM: ...", on stderr
//	start NAME PROGRAM ARGS...     in the background, printing to $WORK/NAME.log
//	ready NAME DIR                 wait until the hub NAME serves DIR; sets $MQTT, $HTTPS and $METRICS
//	sees NAME PATTERN              wait until NAME has printed PATTERN
//	eventually PATTERN PROGRAM...  repeat the program until it succeeds and prints PATTERN
//	stop NAME [CODE]               SIGTERM, and NAME must end with CODE (0)
//	ended NAME CODE                NAME must end by itself with CODE
//	kill9 NAME                     pull the plug
//	tpm NAME                       a TPM of its own (swtpm): $NAME is its address, $NAME_EK its endorsement key's SHA-256
//	keyhash NAME CSR               $NAME is the SHA-256 of the key in a certificate request
//	address NAME                   $NAME is a free HOST:PORT of this machine
//
// The background programs of a script are killed at its end.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Values[runningKey{}] = map[string]*process{}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":      exits,
			"start":      start,
			"ready":      ready,
			"sees":       sees,
			"eventually": eventually,
			"stop":       stop,
			"ended":      ended,
			"kill9":      kill9,
			"address":    address,
			"keyhash":    keyHash,
			"tpm":        func(ts *testscript.TestScript, neg bool, args []string) { aTPM(t, ts, neg, args) },
		},
	})
}

// runningKey finds a script's background programs, a map[string]*process, among its values.
type runningKey struct{}

func running(ts *testscript.TestScript) map[string]*process {
	return ts.Value(runningKey{}).(map[string]*process)
}

func named(ts *testscript.TestScript, name string) *process {
	p := running(ts)[name]
	if p == nil {
		ts.Fatalf("nothing was started as %q", name)
	}
	return p
}

func need(ts *testscript.TestScript, ok bool, usage string) {
	if !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

// oneSentence is what a failing program may print on stderr: its name and one line. A wrong command line may be followed
// by where its help is.
var oneSentence = regexp.MustCompile(`^[a-z-]+: [^\n]+\n(see '[a-z -]+ --help'\n)?$`)

func exits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) >= 2, "exits CODE PROGRAM ARGS...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if stderr := ts.ReadFile("stderr"); want != 0 && !oneSentence.MatchString(stderr) {
		ts.Fatalf("stderr is not one sentence after the program's name: %q", stderr)
	}
}

func start(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) >= 2, "start NAME PROGRAM ARGS...")
	name := args[0]
	if running(ts)[name] != nil {
		ts.Fatalf("%q runs already", name)
	}
	program, err := exec.LookPath(args[1])
	ts.Check(err)
	log := filepath.Join(ts.Getenv("WORK"), name+".log")
	p, err := startProcess(ts.MkAbs("."), log, scriptEnv(ts), program, args[2:]...)
	ts.Check(err)
	running(ts)[name] = p
	ts.Defer(func() {
		p.kill()
		ts.Logf("[%s]\n%s", name, p.output())
	})
}

// scriptEnv is the part of a script's environment that our programs need.
func scriptEnv(ts *testscript.TestScript) []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "TMPDIR"} {
		env = append(env, key+"="+ts.Getenv(key))
	}
	return env
}

func ready(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 2, "ready NAME DIR")
	at, err := named(ts, args[0]).listening(ts.MkAbs(args[1]))
	ts.Check(err)
	ts.Setenv("MQTT", at.MQTT)
	_, port, err := net.SplitHostPort(at.MQTT)
	ts.Check(err)
	ts.Setenv("PORT", port)
	ts.Setenv("HTTPS", at.HTTPS)
	ts.Setenv("METRICS", at.Metrics)
}

func sees(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 2, "sees NAME PATTERN")
	ts.Check(named(ts, args[0]).sees(args[1]))
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) >= 2, "eventually PATTERN PROGRAM ARGS...")
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	if !until(func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && re.MatchString(ts.ReadFile("stdout"))
	}) {
		ts.Fatalf("%s did not print %q within %v", strings.Join(args[1:], " "), args[0], patience)
	}
}

func stop(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && (len(args) == 1 || len(args) == 2), "stop NAME [CODE]")
	end(ts, args, (*process).stop)
}

func ended(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 2, "ended NAME CODE")
	end(ts, args, (*process).await)
}

// end waits for the process args[0] by way of how, and checks its exit code against args[1] (0 if absent).
func end(ts *testscript.TestScript, args []string, how func(*process) (int, error)) {
	want := 0
	if len(args) == 2 {
		var err error
		want, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	p := named(ts, args[0])
	got, err := how(p)
	ts.Check(err)
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d; it printed:\n%s", args[0], got, want, p.output())
	}
	delete(running(ts), args[0])
}

func keyHash(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 2, "keyhash NAME CSR")
	der, err := pemfile.ReadCSR(ts.MkAbs(args[1]))
	ts.Check(err)
	csr, err := x509.ParseCertificateRequest(der)
	ts.Check(err)
	ts.Setenv(args[0], identity.KeyFingerprint(csr.RawSubjectPublicKeyInfo))
}

func address(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 1, "address NAME")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], l.Addr().String())
	ts.Check(l.Close())
}

// aTPM lives until the end of all scripts.
func aTPM(t *testing.T, ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 1, "tpm NAME")
	at := tpmtest.Start(t).Address()
	chip, err := tpm.Open(at)
	ts.Check(err)
	e, err := chip.Endorsement()
	ts.Check(err)
	ts.Setenv(args[0], at)
	ts.Setenv(args[0]+"_EK", e.Hash())
}

func kill9(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, !neg && len(args) == 1, "kill9 NAME")
	named(ts, args[0]).kill()
	delete(running(ts), args[0])
}
