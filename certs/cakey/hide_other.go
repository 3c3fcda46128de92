//go:build !linux

package cakey

import (
	"errors"
	"os"
)

// hide can't be done here: a passphrase that everybody sees is none.
func hide(*os.File) (restore func(), err error) {
	return nil, errors.New("this system's terminals are not known: give the passphrase as a credential")
}
