//go:build pkcs11 && unix

package cakey

import (
	"crypto"
	"fmt"
	"os"

	"github.com/ThalesGroup/crypto11"
)

// open logs in to the token and finds the key. The session is the process's until it
// ends: a CA's key is used for as long as the program runs.
//
// The module is code that runs as this user and gets the PIN, and the key's file may have
// come on a stick that others write to: only a trusted one is loaded.
func (t token) open(pin []byte) (crypto.Signer, error) {
	module, err := trustedModule(t.module, os.Getenv(moduleVariable))
	if err != nil {
		return nil, err
	}
	session, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: t.label, Pin: string(pin)})
	if err != nil {
		return nil, fmt.Errorf("log in to the token %q: %w", t.label, err)
	}
	key, err := session.FindKeyPair(nil, []byte(t.object))
	if err == nil && key == nil {
		err = fmt.Errorf("the token %q has no key pair labelled %q", t.label, t.object)
	}
	if err != nil {
		session.Close() // nothing was found to be used
		return nil, err
	}
	return key, nil
}
