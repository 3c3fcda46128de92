package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/device-agent/enrolment"
)

func TestEnrolmentErrorsHaveTheirExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		enrolment.ErrInvalid:             command.Usage,
		&est.ServerError{Status: 401}:    command.Denied,
		&est.ServerError{Status: 403}:    command.Denied,
		&est.ServerError{Status: 500}:    command.Failure,
		est.ErrUntrusted:                 command.Denied,
		est.ErrUnreachable:               command.Unreachable,
		fs.ErrNotExist:                   command.NotFound,
		errors.New("the disk is broken"): command.Failure,
	} {
		if got := command.Code(enrolmentError(fmt.Errorf("enrol: %w", err))); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

func TestEnrolCommandsAreCheckedBeforeAnythingIsMade(t *testing.T) {
	dir := t.TempDir() + "/D"
	for args, want := range map[string]string{
		"enroll --dir D --station https://s:1":                       "at least one of the flags in the group [token claim]",
		"enroll --dir D --station https://s:1 --token a --claim b":   "none of the others can be",
		"enroll --dir D --token a":                                   "station",
		"enroll --dir D --station https://s:1 --token a":             "fh1.SECRET.PIN",
		"enroll --dir D --station https://s:1 --token - --tpm off":   "fh1.SECRET.PIN",
		"enroll --dir D --station https://s:1 --token a --tpm maybe": "is none of",
		"renew --dir D":                       "at least one of the flags in the group [hub station]",
		"renew --dir D --station https://s:1": "pin",
		"renew --dir D --hub https://s:1":     "credential folder",
		"enroll --dir D --station http://s:1 --tpm off --token " + goodToken(t):   "https://HOST:PORT",
		"enroll --dir D --station https://s:1 --tpm off --claim /nowhere/at/all/": "claim certificate",
	} {
		root := newRoot()
		var out bytes.Buffer
		root.SetArgs(strings.Fields(strings.ReplaceAll(args, " D ", " "+dir+" ")))
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetIn(strings.NewReader("not a token\n"))
		root.SilenceErrors, root.SilenceUsage = true, true
		if strings.HasSuffix(args, " D") {
			root.SetArgs(strings.Fields(strings.TrimSuffix(args, "D") + dir))
		}
		err := root.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func goodToken(t *testing.T) string {
	t.Helper()
	token := est.Token{Secret: strings.Repeat("a", 26)}
	if _, err := est.ParseToken(token.String()); err != nil {
		t.Fatal(err)
	}
	return token.String()
}
