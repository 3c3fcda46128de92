package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/ingest"
	"github.com/fleethub/fleethub/hub/journal"
)

// journalDir is where messages and sessions are kept in a hub's folder.
const journalDir = "journal"

// openJournal opens the journal and replays it. The first start makes it; from then on
// the store knows that there is one, and a missing journal is a loss that is not passed
// over in silence.
func (h *Hub) openJournal() (*ingest.State, error) {
	config := journal.Config{
		Dir:         filepath.Join(h.config.Dir, journalDir),
		SegmentSize: int64(h.config.Journal.SegmentSize),
		Retain:      journal.Retain{Bytes: int64(h.config.Journal.RetainBytes), Age: h.config.Journal.RetainAge},
		OnState:     h.journalState,
		Now:         h.now,
		Log:         h.log,
		FS:          h.config.JournalFS,
	}
	begun, err := h.store.HasJournal(context.Background())
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(config.Dir)
	switch {
	case begun && errors.Is(err, fs.ErrNotExist):
		return nil, command.Errorf(command.BadConfig, "%s is missing, and with it every stored session and message: restore it from a backup (hub restore)", config.Dir)
	case !begun:
		// One that is there was made by a start that was cut off before it could say so:
		// nothing was accepted into it.
		if err == nil {
			err = os.RemoveAll(config.Dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("begin journal: %w", err)
		}
		if err := journal.Create(config); err != nil {
			return nil, err
		}
		if err := h.store.BeginJournal(); err != nil {
			return nil, err
		}
	}
	state := new(ingest.State)
	h.journal, err = journal.Open(config, func(_ journal.Position, record []byte) error { return state.Apply(record) })
	return state, err
}

// journalState is told when the journal refuses, and when it no longer does.
func (h *Hub) journalState(err error) {
	if err != nil {
		h.log.Error("the disk refuses: nothing is acknowledged, and nothing stored, until it takes writes again", "error", err)
	} else {
		h.log.Info("the disk takes writes again")
	}
	h.refusing.Store(err != nil)
}

// unready says why the hub is not ready, "" if it is.
func (h *Hub) unready() string {
	switch {
	case !h.ready.Load():
		return "starting or stopping"
	case h.refusing.Load():
		return "the disk takes no writes"
	}
	return ""
}

// registerJournal registers what the journal counts.
func (h *Hub) registerJournal() {
	h.metrics.gauge("fleethub_journal_refusing", "1 while the disk takes no writes, and nothing is acknowledged.", func() float64 {
		if h.refusing.Load() {
			return 1
		}
		return 0
	})
	h.metrics.gauge("fleethub_journal_disk_bytes", "Bytes that the journal's files take.", func() float64 { return float64(h.journal.Stats().DiskBytes) })
	h.metrics.gauge("fleethub_journal_waiting_bytes", "Bytes of records that wait for the disk.", func() float64 { return float64(h.journal.Stats().Waiting) })
	for name, figure := range map[string]struct {
		help string
		read func(journal.Stats) uint64
	}{
		"records": {"Records on the disk.", func(s journal.Stats) uint64 { return s.Committed }},
		"commits": {"Commits, each one write and one sync.", func(s journal.Stats) uint64 { return s.Batches }},
		"failed":  {"Commits that failed.", func(s journal.Stats) uint64 { return s.Failed }},
		"bytes":   {"Bytes written.", func(s journal.Stats) uint64 { return s.Bytes }},
	} {
		h.metrics.counter("fleethub_journal_"+name+"_total", figure.help, nil, func() float64 { return float64(figure.read(h.journal.Stats())) })
	}
}
