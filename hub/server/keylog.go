//go:build keylog

package server

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
)

// keyLogVariable names the file that TLS secrets are appended to, as Wireshark and
// curl have it.
const keyLogVariable = "SSLKEYLOGFILE"

// openKeyLog has the secrets of every MQTT connection written to the file that the
// environment names, for Wireshark. It is compiled in with -tags keylog only.
func openKeyLog(config *tls.Config, log *slog.Logger) (io.Closer, error) {
	path := os.Getenv(keyLogVariable)
	if path == "" {
		log.Warn("THIS BUILD CAN LOG TLS SECRETS (-tags keylog): it does not belong in production")
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyLogVariable, err)
	}
	config.KeyLogWriter = f // crypto/tls writes one line at a time
	log.Warn("TLS SECRETS OF EVERY DEVICE CONNECTION ARE WRITTEN TO A FILE: whoever reads it decrypts recorded traffic; unset "+keyLogVariable+" and delete the file when done", "file", path)
	return f, nil
}
