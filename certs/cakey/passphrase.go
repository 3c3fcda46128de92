package cakey

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// CredentialSuffix makes the name of a credential of the name of a key's file:
// station.key.passphrase, as in systemd's LoadCredentialEncrypted=.
const CredentialSuffix = ".passphrase"

// Source finds passphrases.
type Source struct {
	// Credentials is the folder of the service's credentials, $CREDENTIALS_DIRECTORY under
	// systemd (systemd.exec(5)). "": there is none.
	Credentials string

	// Others are names of credentials that are looked for if there is none of the key's
	// own: keys that share a passphrase share a credential.
	Others []string

	// Terminal is asked if the credentials don't have the passphrase. Nil: nobody is.
	Terminal *os.File

	// Interrupted is closed when the person gives up (Ctrl-C). Nil: never.
	Interrupted <-chan struct{}
}

// Passphrase returns the passphrase of the key in that file, for Opener.Passphrase.
func (s Source) Passphrase(path string) ([]byte, error) {
	passphrase, _, err := s.find(path)
	return passphrase, err
}

// New asks twice for a new passphrase, or takes the credential.
func (s Source) New(path string) ([]byte, error) {
	first, typed, err := s.find(path)
	if err != nil || !typed {
		return first, err
	}
	second, err := s.ask("Once more: ")
	if err != nil {
		return nil, err
	}
	defer clear(second)
	if !bytes.Equal(first, second) {
		clear(first)
		return nil, errors.New("the two passphrases differ: nothing was changed")
	}
	return first, nil
}

// find returns the passphrase, and whether a person typed it.
func (s Source) find(path string) (passphrase []byte, typed bool, err error) {
	name := filepath.Base(path) + CredentialSuffix
	if s.Credentials != "" {
		for _, n := range append([]string{name}, s.Others...) {
			passphrase, err := s.credential(n)
			if !errors.Is(err, fs.ErrNotExist) {
				return passphrase, false, err
			}
		}
	}
	if s.Terminal == nil {
		return nil, false, fmt.Errorf("%s is encrypted: give its passphrase at a terminal, or as the systemd credential %s", path, name)
	}
	passphrase, err = s.ask(prompt(path))
	return passphrase, true, err
}

// credential reads a credential, without the line's end that an editor leaves.
func (s Source) credential(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.Credentials, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPassphrase+2))
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r")), nil
}

// ask reads a line from the terminal, which doesn't show it.
func (s Source) ask(prompt string) ([]byte, error) {
	restore, err := hide(s.Terminal)
	if err != nil {
		return nil, fmt.Errorf("ask for a passphrase: %w", err)
	}
	defer restore()
	answered, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.Interrupted:
			s.Terminal.SetReadDeadline(time.Unix(1, 0)) // ends the Read below
		case <-answered:
		}
	}()
	defer func() { close(answered); <-watched }()
	if _, err := io.WriteString(s.Terminal, prompt); err != nil {
		return nil, fmt.Errorf("ask for a passphrase: %w", err)
	}
	defer io.WriteString(s.Terminal, "\n")
	// Byte by byte: what follows the line belongs to who reads next.
	var line []byte
	for one := make([]byte, 1); len(line) <= maxPassphrase; {
		n, err := s.Terminal.Read(one)
		if n == 1 && one[0] == '\n' {
			return line, nil
		}
		line = append(line, one[:n]...)
		if errors.Is(err, io.EOF) && len(line) > 0 {
			return line, nil
		}
		if err != nil {
			clear(line)
			return nil, fmt.Errorf("ask for a passphrase: %w", err)
		}
	}
	clear(line)
	return nil, fmt.Errorf("a passphrase has at most %d bytes", maxPassphrase)
}
