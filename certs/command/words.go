package command

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// inPlainWords returns err with what the operating system and the network said in it
// rewritten for who typed the command: Go names the system call ("open x: no such file or
// directory", "dial tcp 127.0.0.1:1: connect: connection refused"). A file that is not
// there gives NotFound, and an address where nobody answers Unreachable, unless somebody
// who knew better has given a code.
func inPlainWords(err error) error {
	said, words, code := "", "", Failure
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		said, words, code = e.Error(), pathInWords(e.Path, e.Err), pathCode(e.Err)
	} else if e, ok := errors.AsType[*os.LinkError](err); ok {
		said, words, code = e.Error(), pathInWords(e.Old, e.Err), pathCode(e.Err)
	} else if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "dial" {
		said, words, code = e.Error(), dialInWords(e), Unreachable
	}
	text := err.Error()
	if said == "" || !strings.Contains(text, said) {
		return err
	}
	if _, coded := errors.AsType[*codedError](err); coded {
		code = Code(err)
	}
	return &codedError{code, &reworded{strings.Replace(text, said, words, 1), err}}
}

// reworded is an error in other words.
type reworded struct {
	text string
	err  error
}

func (e *reworded) Error() string { return e.text }
func (e *reworded) Unwrap() error { return e.err }

func pathCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return NotFound
	}
	return Failure
}

// pathInWords says what the system has against a path.
func pathInWords(path string, err error) string {
	switch {
	case errors.Is(err, syscall.ENOENT):
		if folder := filepath.Dir(path); !isThere(folder) { // what was to be written, perhaps, and its folder is missing
			return "there is no folder " + folder
		}
		return "there is no " + path
	case errors.Is(err, syscall.EISDIR):
		return path + " is a folder, not a file"
	case errors.Is(err, syscall.ENOTDIR):
		for !isThere(path) && filepath.Dir(path) != path {
			path = filepath.Dir(path)
		}
		return path + " is a file, not a folder"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		for hidden(path) && filepath.Dir(path) != path {
			path = filepath.Dir(path)
		}
		return "this user may not use " + path + " (permission denied): take the account that it belongs to"
	case errors.Is(err, syscall.EROFS):
		return path + " is on a file system that is read-only"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "there is no room left on the disk for " + path
	case errors.Is(err, syscall.EEXIST):
		return path + " exists already, and is not overwritten"
	}
	return fmt.Sprintf("%s: %v", path, err)
}

// hidden reports whether what lies at path can't be seen, for what is above it.
func hidden(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrPermission)
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// dialInWords says why nobody was reached at an address.
func dialInWords(e *net.OpError) string {
	if dns, ok := errors.AsType[*net.DNSError](e); ok {
		if dns.IsNotFound {
			return fmt.Sprintf("no machine is known by the name %s", dns.Name)
		}
		return fmt.Sprintf("the name %s can't be looked up", dns.Name)
	}
	at := "the address"
	if e.Addr != nil {
		at = e.Addr.String()
	}
	switch {
	case e.Timeout():
		return at + " doesn't answer"
	case errors.Is(e, syscall.ECONNREFUSED):
		return "nothing listens at " + at
	case errors.Is(e, syscall.ENETUNREACH), errors.Is(e, syscall.EHOSTUNREACH):
		return "there is no way to " + at + " from here"
	}
	return fmt.Sprintf("%s: %v", at, e.Err)
}
