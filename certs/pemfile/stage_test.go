package pemfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// staged are the files that the tests stage: two in a folder of their own, one beside it.
var staged = []string{"ca.crt", filepath.Join("root", "root.crt"), filepath.Join("root", "root.key")}

// stageAll stages the files, each holding the name of the run, and commits.
func stageAll(dir, run string) error {
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		return err
	}
	defer stage.Abort()
	for _, name := range staged {
		if err := pemfile.Write(stage.Path(name), []byte(run), 0o600); err != nil {
			return err
		}
	}
	return stage.Commit()
}

// wantAllOf fails the test unless dir holds the staged files of that run and nothing else.
func wantAllOf(t *testing.T, dir, run string) {
	t.Helper()
	wantOnly(t, dir, "ca.crt", "root")
	wantOnly(t, filepath.Join(dir, "root"), "root.crt", "root.key")
	for _, name := range staged {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != run {
			t.Errorf("%s holds %q, %v; want %q", name, data, err, run)
		}
	}
}

func TestStageCreatesAllFilesAtCommit(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		t.Fatal(err)
	}
	wantMode(t, dir, os.ModeDir|0o700)
	for _, name := range staged {
		if err := pemfile.Write(stage.Path(name), []byte("run"), 0o600); err != nil {
			t.Fatal(err)
		}
		wantOnly(t, dir, ".partial")
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	stage.Abort() // as a deferred one does
	wantAllOf(t, dir, "run")
	wantMode(t, filepath.Join(dir, "root"), os.ModeDir|0o700)
	if finished, err := pemfile.Finish(dir); finished || err != nil {
		t.Errorf("Finish after Commit = %t, %v", finished, err)
	}
}

func TestAbortLeavesTheFolderAsItWas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := pemfile.Write(stage.Path(staged[1]), []byte("run"), 0o600); err != nil {
		t.Fatal(err)
	}
	stage.Abort()
	wantOnly(t, dir, "other")
}

func TestStageRefusesToOverwrite(t *testing.T) {
	t.Parallel()
	for _, existing := range []string{"ca.crt", "root"} {
		t.Run(existing, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, existing)
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := stageAll(dir, "new"); !errors.Is(err, pemfile.ErrExists) || !strings.Contains(err.Error(), path) {
				t.Errorf("Commit over %s: %v; want ErrExists with the path", existing, err)
			}
			wantOnly(t, dir, existing)
			if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
				t.Errorf("%s holds %q, %v", existing, data, err)
			}
		})
	}
	t.Run("a link that points nowhere", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.Symlink("/nowhere", filepath.Join(dir, "ca.crt")); err != nil {
			t.Fatal(err)
		}
		if err := stageAll(dir, "new"); !errors.Is(err, pemfile.ErrExists) {
			t.Errorf("Commit over a link: %v; want ErrExists", err)
		}
		wantOnly(t, dir, "ca.crt")
	})
	t.Run("a second run", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := stageAll(dir, "first"); err != nil {
			t.Fatal(err)
		}
		if err := stageAll(dir, "second"); !errors.Is(err, pemfile.ErrExists) {
			t.Errorf("a second run: %v; want ErrExists", err)
		}
		wantAllOf(t, dir, "first")
	})
}

func TestStageNeedsAFolder(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if _, err := pemfile.NewStage(dir); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("NewStage(%s): %v; want an error with the path", dir, err)
		}
	}
	if finished, err := pemfile.Finish(filepath.Join(t.TempDir(), "missing")); finished || err != nil {
		t.Errorf("Finish of a missing folder = %t, %v", finished, err)
	}
}

// markComplete brings a folder to where Commit's mark has just become durable.
func markComplete(t *testing.T, dir, run string) *pemfile.Stage {
	t.Helper()
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{".complete"}, staged...) {
		if err := os.WriteFile(stage.Path(name), []byte(run), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return stage
}

func TestInterruptedCommitIsFinishedFromWhereverItStopped(t *testing.T) {
	t.Parallel()
	moves := []string{"ca.crt", "root"}
	for moved := range len(moves) + 1 {
		dir := t.TempDir()
		stage := markComplete(t, dir, "first")
		for _, name := range moves[:moved] {
			if err := os.Rename(stage.Path(name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if moved%2 == 0 { // either way finishes it
			if finished, err := pemfile.Finish(dir); !finished || err != nil {
				t.Errorf("%d moved: Finish = %t, %v", moved, finished, err)
			}
		} else if _, err := pemfile.NewStage(dir); !errors.Is(err, pemfile.ErrExists) {
			t.Errorf("%d moved: NewStage: %v, want ErrExists", moved, err)
		}
		wantAllOf(t, dir, "first")
	}
}

// Between the kill and the repetition somebody put a key of their own there.
func TestInterruptedCommitDoesNotReplaceWhatCameSince(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	markComplete(t, dir, "first")
	path := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pemfile.Finish(dir); !errors.Is(err, pemfile.ErrExists) || !strings.Contains(err.Error(), path) {
		t.Errorf("Finish: %v; want ErrExists with the path", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("the file holds %q, %v", data, err)
	}
}

func TestLeftoverOfARunThatWasNotCompleteIsRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stage, err := pemfile.NewStage(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root/root.key", "of-another-version", ".root.key.123.tmp", "..complete.1.tmp"} {
		if err := os.WriteFile(stage.Path(name), []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if finished, err := pemfile.Finish(dir); finished || err != nil {
		t.Errorf("Finish = %t, %v", finished, err)
	}
	if err := stageAll(dir, "second"); err != nil {
		t.Fatal(err)
	}
	wantAllOf(t, dir, "second")
}

func TestFinishSweepsUpAfterACommitKilledAtItsVeryEnd(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, ".partial"), 0o700); err != nil {
		t.Fatal(err)
	}
	if finished, err := pemfile.Finish(dir); finished || err != nil {
		t.Errorf("Finish = %v, %v", finished, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}
