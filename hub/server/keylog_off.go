//go:build !keylog

package server

import (
	"crypto/tls"
	"io"
	"log/slog"
)

// openKeyLog does nothing: this build can't log TLS secrets.
func openKeyLog(*tls.Config, *slog.Logger) (io.Closer, error) { return nil, nil }
