package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fleethub/fleethub/certs/pemfile"
)

// Endpoint says where a running hub listens. It is written to run/hub.json in the
// hub's folder once every listener is open, and removed at the end; one that a killed
// hub left names addresses where nobody answers.
type Endpoint struct {
	PID     int    `json:"pid"`
	MQTT    string `json:"mqtt"`             // HOST:PORT
	HTTPS   string `json:"https"`            // HOST:PORT
	Metrics string `json:"metrics"`          // HOST:PORT
	Status  string `json:"status,omitempty"` // HOST:PORT; empty: there is no such door
}

// EndpointFile returns the file's path for a hub in dir.
func EndpointFile(dir string) string { return filepath.Join(dir, "run", "hub.json") }

// ReadEndpoint returns where the hub in dir listens, or false if it does not run.
func ReadEndpoint(dir string) (Endpoint, bool, error) {
	var e Endpoint
	data, err := os.ReadFile(EndpointFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, false, fmt.Errorf("%s is damaged (%w): restart the hub, which writes it anew, or remove it if none runs there", EndpointFile(dir), err)
	}
	return e, true, nil
}

func (h *Hub) writeEndpoint() error {
	data, err := json.Marshal(h.Endpoint())
	if err != nil {
		return err
	}
	file := EndpointFile(h.config.Dir)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return pemfile.Write(file, append(data, '\n'), 0o644)
}
