package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
)

// keyHashFlag names the flag that says which key a command may sign.
const keyHashFlag = "key-sha256"

// typedDigits is how many digits of the key's SHA-256 a person types: the person reads
// them off another screen, and whoever swaps a request would have to make keys until
// these fit while the stick is on its way.
const typedDigits = 8

var keyHashForm = regexp.MustCompile(`^[0-9a-f]{16,64}$`)

// askedKey is the key that the root is asked to sign, and as what. A request travels on a
// stick or over a network, and whoever can write there can put another key into it: what
// the requester printed is the only thing to tell.
type askedKey struct {
	kind, name string
	hash       string // identity.KeyFingerprint
}

func (k askedKey) String() string {
	return fmt.Sprintf("the request is for the %s issuing CA %s, with the key SHA-256 %s", k.kind, k.name, k.hash)
}

// expectKeyFlag adds the flag that says which key may be signed.
func expectKeyFlag(c *cobra.Command, digits *string) {
	c.Flags().StringVar(digits, keyHashFlag, "", "the key's SHA-256 in `hex`, or its first 16 digits or more, as printed where the request was made; asked for at a terminal")
}

// confirmKey returns nil if the request in file has the key that --key-sha256 names or,
// without that flag, that the person at the terminal names. It must be called before the
// root signs.
func confirmKey(c *cobra.Command, file string, csr *x509.CertificateRequest, kind identity.IssuerKind, name, digits string) error {
	// A name goes to a terminal below: it must be no escape sequence.
	if err := identity.ValidID(name); err != nil {
		return fmt.Errorf("%s: the name (common name): %w", file, err)
	}
	asked := askedKey{kind: kindWord(kind), name: name, hash: identity.KeyFingerprint(csr.RawSubjectPublicKeyInfo)}
	if c.Flags().Changed(keyHashFlag) { // an empty one, of a script's unset variable, is none
		return asked.require(file, digits)
	}
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return command.Errorf(command.Usage, "%s: %s, and nobody has compared that: give what was printed where the request was made as --%s; nothing was signed", file, asked, keyHashFlag)
	}
	defer terminal.Close()
	stop := context.AfterFunc(c.Context(), func() { terminal.SetReadDeadline(time.Unix(1, 0)) }) // Ctrl-C ends the Read
	defer stop()
	return asked.ask(file, terminal)
}

// require returns nil if the key's SHA-256 begins with the digits of the flag.
func (k askedKey) require(file, digits string) error {
	digits = strings.ToLower(digits)
	if !keyHashForm.MatchString(digits) {
		return command.Errorf(command.Usage, "--%s %.70q: 16 to 64 hexadecimal digits are required; nothing was signed", keyHashFlag, digits)
	}
	return k.compare(file, digits)
}

// ask has a person type the first digits of what the requester printed.
func (k askedKey) ask(file string, terminal io.ReadWriter) error {
	if _, err := fmt.Fprintf(terminal, "%s\nIs it what was printed where the request was made? Type the first %d digits of that: ", k, typedDigits); err != nil {
		return fmt.Errorf("ask for the key's SHA-256: %w", err)
	}
	line, err := readLine(terminal)
	if err != nil {
		return fmt.Errorf("ask for the key's SHA-256: %w; nothing was signed", err)
	}
	typed := strings.ToLower(strings.TrimSpace(line))
	if len(typed) < typedDigits {
		return command.Errorf(command.Usage, "the first %d digits of the key's SHA-256 are required, %d were typed: nothing was signed", typedDigits, len(typed))
	}
	return k.compare(file, typed)
}

func (k askedKey) compare(file, digits string) error {
	if !strings.HasPrefix(k.hash, digits) {
		return command.Errorf(command.Denied, "%s: %s, not %s: it isn't the request that was made, so nothing was signed; find out who changed it", file, k, digits)
	}
	return nil
}

// readLine reads a short line byte by byte: what follows belongs to who reads next.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) <= 128; {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[:n]...)
		if err != nil {
			return "", err
		}
	}
	return "", errors.New("the line is too long")
}
