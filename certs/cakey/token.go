package cakey

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// token is where in which PKCS #11 token a key is: what its file says as a URI of RFC
// 7512, alone on its line.
//
//	pkcs11:token=fleet-ca;object=station?module-path=/usr/lib/softhsm/libsofthsm2.so
//
// Its PIN is asked for as a passphrase is; one in the URI is refused. So is a module that
// others than root can change, unless the environment names it: see trustedModule.
type token struct {
	label  string // of the token
	object string // the key's label
	module string // path of the PKCS #11 module
}

// prompt is what a person is asked for the secret of the key in that file. Where it names
// a token, that says who gets the PIN; what it names may be anybody's, so it is quoted.
func prompt(path string) string {
	if data, err := read(path); err == nil && isToken(data) {
		if t, err := parseToken(data); err == nil {
			return fmt.Sprintf("PIN of token %q via %q: ", t.label, t.module)
		}
	}
	return "Passphrase of " + path + ": "
}

const tokenScheme = "pkcs11:"

// isToken reports whether the file's contents are such a URI.
func isToken(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte(tokenScheme))
}

// parseToken reads the URI. An attribute that it doesn't know is an error: it may be the
// one that tells two keys apart.
func parseToken(data []byte) (token, error) {
	var t token
	path, query, _ := strings.Cut(strings.TrimPrefix(string(bytes.TrimSpace(data)), tokenScheme), "?")
	attributes := strings.Split(path, ";")
	if query != "" {
		attributes = append(attributes, strings.Split(query, "&")...)
	}
	for _, attribute := range attributes {
		name, value, _ := strings.Cut(attribute, "=")
		value, err := url.PathUnescape(value)
		if err != nil {
			return token{}, err
		}
		switch {
		case name == "token" && t.label == "":
			t.label = value
		case name == "object" && t.object == "":
			t.object = value
		case name == "module-path" && t.module == "":
			t.module = value
		case name == "type" && value == "private":
		case name == "pin-value", name == "pin-source":
			return token{}, errors.New("the PIN doesn't belong into the file: it is asked for, or a credential")
		default:
			return token{}, errors.New("it may say token, object, module-path and type=private, each once")
		}
	}
	if t.label == "" || t.object == "" || t.module == "" {
		return token{}, errors.New("it must say token, object and module-path")
	}
	return t, nil
}
