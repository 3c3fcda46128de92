package server

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

func parseLevel(name string) (slog.Level, error) {
	var level slog.Level
	switch strings.ToLower(name) {
	case "debug", "info", "warn", "error":
		return level, level.UnmarshalText([]byte(name))
	}
	return level, fmt.Errorf("log.level: %q is not one of debug, info, warn, error", name)
}

// newLogger returns the hub's logger. level may change while it is in use.
func newLogger(w io.Writer, format string, level *slog.LevelVar) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
