//go:build !pkcs11 || !unix

package cakey

import (
	"crypto"
	"errors"
)

// open needs cgo and a module of the token's maker, which programs are built without
// unless the tag pkcs11 is given.
func (token) open([]byte) (crypto.Signer, error) {
	return nil, errors.New("this program was built without PKCS #11: build it with -tags pkcs11")
}
