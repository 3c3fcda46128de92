package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
)

// A ledger is open in one process at a time, and while `provisioning serve` runs that is
// the server. The other commands then hand it their arguments over a socket in the
// station's folder, which only its owner can reach, and print what comes back.

const (
	socketFile = "station.sock"
	maxCommand = 1 << 20
)

// errand is a command line, as it was given and where.
type errand struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir"`
}

// outcome is what became of it.
type outcome struct {
	Stdout []byte `json:"stdout"`
	Stderr []byte `json:"stderr"`
	Error  string `json:"error,omitempty"`
	Code   int    `json:"code"`
}

// forward has a running server carry the command out; done is false if none runs.
func forward(c *cobra.Command, dir string) (done bool, err error) {
	path := filepath.Join(dir, socketFile)
	if _, err := os.Lstat(path); err != nil {
		return false, nil
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(c.Context(), "unix", path)
	if err != nil { // a server that was killed leaves its socket behind
		return false, nil
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	wd, err := os.Getwd()
	if err != nil {
		return true, errors.Join(err, conn.Close())
	}
	body, err := json.Marshal(errand{Args: os.Args[1:], Dir: wd})
	if err != nil {
		return true, errors.Join(err, conn.Close())
	}
	request, err := http.NewRequestWithContext(c.Context(), http.MethodPost, "http://station/command", bytes.NewReader(body))
	if err != nil {
		return true, errors.Join(err, conn.Close())
	}
	response, err := client.Do(request)
	if err != nil {
		return true, fmt.Errorf("the station's server was to carry the command out and went away (%w): repeat it", err)
	}
	defer response.Body.Close()
	var o outcome
	if err := json.NewDecoder(response.Body).Decode(&o); err != nil {
		return true, fmt.Errorf("the station's server was to carry the command out and went away (%w): repeat it", err)
	}
	_, err = c.OutOrStdout().Write(o.Stdout)
	if _, err2 := c.ErrOrStderr().Write(o.Stderr); err == nil {
		err = err2
	}
	if o.Code != command.OK {
		return true, command.WithCode(o.Code, errors.New(o.Error))
	}
	return true, err
}

// listenShare opens the socket, in place of one that a killed server left. Only the
// owner of the ledger's lock may call it.
func listenShare(dir string) (net.Listener, error) {
	path := filepath.Join(dir, socketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177) // from its first moment nobody else may connect
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("the socket for other commands can't be made (%w): is the name of the station's folder too long for one?", err)
	}
	return l, nil
}

// serveShare carries commands out with what h has, one at a time, until ctx ends.
func serveShare(ctx context.Context, l net.Listener, h host, log *slog.Logger) error {
	var turn sync.Mutex // one command at a time
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var e errand
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCommand)).Decode(&e); err != nil {
			http.Error(w, "malformed", http.StatusBadRequest)
			return
		}
		turn.Lock()
		defer turn.Unlock()
		// The command stops when the server does, or its caller goes.
		h := h
		h.dir = e.Dir
		ctx, cancel := context.WithCancel(context.WithValue(r.Context(), hostKey{}, h))
		defer cancel()
		json.NewEncoder(w).Encode(carryOut(ctx, e)) // a caller that is gone repeats its command
	})
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		stopped <- server.Shutdown(ctx)
	})
	err := server.Serve(l)
	if !stop() {
		return <-stopped
	}
	return err
}

// carryOut runs a command line in this process.
func carryOut(ctx context.Context, e errand) outcome {
	var stdout, stderr bytes.Buffer
	c := root()
	c.SetArgs(e.Args)
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(ctx)
	o := outcome{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Code: command.Code(err)}
	if err != nil {
		o.Error = err.Error()
	}
	return o
}
