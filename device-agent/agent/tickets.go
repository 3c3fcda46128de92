package agent

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/tpm"
	"github.com/fleethub/fleethub/device-agent/keystore"
)

// The agent's files about TLS in the credential folder.
const (
	sessionFile = "tls-session"
	chainFile   = "tls-chain"
)

// Settings of [Config.TPM] besides the address of a TPM.
const (
	TPMAuto = "auto" // the machine's TPM 2.0, if it has one
	TPMOff  = "off"  // none
)

// CheckTPM says what is wrong with a setting of [Config.TPM], or returns nil. Whether
// the TPM answers shows when it is used.
func CheckTPM(setting string) error {
	if setting == TPMAuto || setting == TPMOff {
		return nil
	}
	for _, prefix := range []string{"/", "unix://", "tcp://"} {
		if strings.HasPrefix(setting, prefix) {
			return nil
		}
	}
	return fmt.Errorf("%q is neither auto nor off nor the address of a TPM, such as /dev/tpmrm0 or unix:///run/swtpm.sock", setting)
}

// machineTPM is a keystore.Sealer: the TPM at an address. It is opened when it is
// used, and so a TPM that fails is the keystore's to report.
type machineTPM struct{ address string }

func (m machineTPM) Seal(data []byte) ([]byte, error) {
	t, err := tpm.Open(m.address)
	if err != nil {
		return nil, err
	}
	return t.Seal(data)
}

func (m machineTPM) Unseal(sealed []byte) ([]byte, error) {
	t, err := tpm.Open(m.address)
	if err != nil {
		return nil, err
	}
	return t.Unseal(sealed)
}

// sealerFor returns what seals this machine's tickets, or nil if it has no TPM or
// shall not use it.
func sealerFor(setting string) keystore.Sealer {
	switch setting {
	case TPMOff:
		return nil
	case TPMAuto:
		address, ok := tpm.Detect()
		if !ok {
			return nil
		}
		setting = address
	}
	return machineTPM{setting}
}

// ticketStore keeps the TLS session of whatever credentials the agent has at the time.
type ticketStore struct {
	path, hub string
	sealer    keystore.Sealer
	log       *slog.Logger
	current   atomic.Pointer[keystore.Sessions] // nil before the first attempt to connect
}

func newTicketStore(config *Config) *ticketStore {
	return &ticketStore{
		path:   filepath.Join(config.Dir, sessionFile),
		hub:    config.Hub,
		sealer: sealerFor(config.TPM),
		log:    config.Log,
	}
}

// open is [link.Config.Sessions].
func (s *ticketStore) open(cred mtls.Credentials) tls.ClientSessionCache {
	sessions := keystore.OpenSessions(keystore.SessionsConfig{
		Path:    s.path,
		Binding: keystore.Binding{Hub: s.hub, Roots: cred.Roots, Leaf: cred.Leaf},
		Sealer:  s.sealer,
		Log:     s.log,
	})
	s.current.Store(sessions)
	return sessions
}

// stats returns nil before the first attempt to connect.
func (s *ticketStore) stats() *keystore.SessionStats {
	sessions := s.current.Load()
	if sessions == nil {
		return nil
	}
	stats := sessions.Stats()
	return &stats
}
