package keystore

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
)

const chainHub = "hub.example:8883"

func TestChainIsRememberedForOneHubAndOneCertificate(t *testing.T) {
	fleet := certtest.New(t)
	own, renewed := fleet.Device("pi-1").Leaf, fleet.Device("pi-1").Leaf
	path := filepath.Join(t.TempDir(), "tls-chain")
	log := slog.New(slog.DiscardHandler)

	c := OpenChain(path, chainHub, log)
	if c.LeafSuffices(own) {
		t.Error("nobody said that the leaf suffices")
	}
	c.Learn(own)
	if !c.LeafSuffices(own) || c.LeafSuffices(renewed) {
		t.Error("what was learnt isn't of the one certificate")
	}
	if again := OpenChain(path, chainHub, log); !again.LeafSuffices(own) || again.LeafSuffices(renewed) {
		t.Error("a restart loses what was learnt, or takes it for another certificate's")
	}
	if OpenChain(path, "other.example:8883", log).LeafSuffices(own) {
		t.Error("what one hub said is believed of another")
	}
	c.Forget()
	if c.LeafSuffices(own) || OpenChain(path, chainHub, log).LeafSuffices(own) {
		t.Error("what was forgotten is still known")
	}
	c.Forget() // nothing to forget
}

func TestDamagedChainFileMeansTheWholeChain(t *testing.T) {
	leaf := certtest.New(t).Device("pi-1").Leaf
	path := filepath.Join(t.TempDir(), "tls-chain")
	OpenChain(path, chainHub, slog.New(slog.DiscardHandler)).Learn(leaf)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":     nil,
		"cut":       good[:len(good)/2],
		"zeros":     make([]byte, len(good)),
		"trailing":  append(bytes.Clone(good), '{'),
		"huge":      append(bytes.Clone(good), bytes.Repeat([]byte(" "), maxChainFile)...),
		"no leaf":   []byte(`{"hub":"` + chainHub + `"}`),
		"new field": []byte(`{"hub":"` + chainHub + `","leaf":"a","more":1}`),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			c := OpenChain(path, chainHub, slog.New(slog.NewTextHandler(&log, nil)))
			if c.LeafSuffices(leaf) || strings.Count(log.String(), "\n") != 1 {
				t.Errorf("leaf suffices: %t; log %s", c.LeafSuffices(leaf), &log)
			}
			c.Learn(leaf)
			if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, good) {
				t.Errorf("the file isn't mended: %q, %v", data, err)
			}
		})
	}
}

func TestChainWithoutARightToItsFileIsRememberedInMemory(t *testing.T) {
	leaf := certtest.New(t).Device("pi-1").Leaf
	path := filepath.Join(t.TempDir(), "tls-chain")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil { // can't be replaced by a file, not even by root
		t.Fatal(err)
	}
	var log bytes.Buffer
	c := OpenChain(path, chainHub, slog.New(slog.NewTextHandler(&log, nil)))
	c.Learn(leaf)
	if !c.LeafSuffices(leaf) {
		t.Error("what couldn't be written isn't known")
	}
	c.Forget()
	if c.LeafSuffices(leaf) {
		t.Error("what couldn't be removed is still known")
	}
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d log lines, want 3: %s", n, &log)
	}
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte(`{"hub":"hub.example:8883","leaf":"00"}`))
	f.Add([]byte(`{"hub":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseChain(data); err == nil && (c.Hub == "" || c.Leaf == "") {
			t.Errorf("%q is read as %+v", data, c)
		}
	})
}
