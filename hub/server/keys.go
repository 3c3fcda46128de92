package server

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fleethub/fleethub/certs/cakey"
	"github.com/fleethub/fleethub/certs/issuance"
)

// credentialsVariable names the folder of the service's credentials, systemd.exec(5).
const credentialsVariable = "CREDENTIALS_DIRECTORY"

// IssuingKeyConfig says how the keys in ca/ are opened, where they are not in plain files.
type IssuingKeyConfig struct {
	Credential string `yaml:"credential"` // systemd's, with the passphrase or PIN
	TPM        string `yaml:"tpm"`        // address, see tpm.Open; empty: this machine's
}

// check returns an error that names the first setting that can't be used.
func (c IssuingKeyConfig) check() error {
	if c.Credential == "" || c.Credential != filepath.Base(c.Credential) || c.Credential == "." || c.Credential == ".." {
		return fmt.Errorf("issuing_key.credential: %q is not the name of a credential", c.Credential)
	}
	return nil
}

// Source returns where the passphrases of keys in ca/ come from when nobody is at a
// terminal: systemd's credentials, one of the key's own before the one for all.
func (c IssuingKeyConfig) Source() cakey.Source {
	return cakey.Source{Credentials: os.Getenv(credentialsVariable), Others: []string{c.Credential}}
}

// keyring opens the keys of the hub's issuing CAs. That one doesn't open is told once,
// and again once it does: a hub goes on without it, but for what needs it.
type keyring struct {
	cache cakey.Cache
	log   *slog.Logger

	mu   sync.Mutex        // guards told
	told map[string]string // what is wrong with a file
}

func newKeyring(config Config, now func() time.Time, log *slog.Logger) *keyring {
	passphrase := config.Passphrase
	if passphrase == nil {
		passphrase = config.IssuingKey.Source().Passphrase
	}
	return &keyring{cache: cakey.Cache{Opener: cakey.Opener{Passphrase: passphrase, TPM: config.IssuingKey.TPM}, Now: now}, log: log, told: make(map[string]string)}
}

// Open implements authority.Keys.
func (k *keyring) Open(path string) (crypto.Signer, error) {
	key, err := k.cache.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // it is in a safe
		k.tell(path, nil)
		return nil, err
	}
	k.tell(path, err)
	return key, err
}

// tell logs what is wrong with something, once until it changes or err is nil.
func (k *keyring) tell(what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, told := k.told[what]
	switch {
	case err != nil && was != err.Error():
		k.told[what] = err.Error()
		k.log.Error("an issuing key can't be used: no certificate is renewed and no revocation list signed by it", "key", what, "error", err)
	case err == nil && told:
		delete(k.told, what)
		k.log.Info("the issuing key can be used again, or is kept elsewhere", "key", what)
	}
}

// issuer returns the CA that signs what the hub signs, which the hub trusts by then: what
// it signs is let in. If its key is kept elsewhere, that is fs.ErrNotExist.
func (h *Hub) issuer() (*issuance.Issuer, error) {
	ca, err := h.cas.Issuer()
	if err != nil {
		return nil, err
	}
	if h.ready.Load() && !containsIssuer(h.verifier.Trust().Issuers, ca.Certificate()) {
		h.refreshTrust() // it took over since the last look
	}
	if !containsIssuer(h.verifier.Trust().Issuers, ca.Certificate()) {
		return nil, fmt.Errorf("the issuing CA in %s is not trusted: its certificate must be by a root of ca.crt", h.cas.Dir)
	}
	return ca.Publishing(h.config.Status.Publication(ca.Certificate())), nil
}
