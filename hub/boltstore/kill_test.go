package boltstore

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/hub/registry"
)

// writerEnv makes the test binary a process that commits until it is killed.
const writerEnv = "BOLTSTORE_TEST_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		writeForever(path)
	}
	os.Exit(m.Run())
}

// writeForever commits batches of three devices and their audit records and says so
// after each.
func writeForever(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	page, err := s.Audit(context.Background(), query(0, 1<<20))
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	for batch := len(page.Records) / 3; ; batch++ {
		var change registry.Change
		for i := range 3 {
			id := fmt.Sprintf("pi-%d-%d", batch, i)
			change.Devices = append(change.Devices, device(id, id))
			change.Audit = append(change.Audit, audit("import", id))
		}
		if err := s.Commit(context.Background(), change); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("committed", batch)
	}
}

func TestKilledWriterLosesNothingItReportedAndLeavesNoHalfChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	reported := -1
	for round := range 12 {
		writer := exec.Command(os.Args[0], "-test.run=^$")
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := 0; i <= round && lines.Scan(); i++ {
			if _, err := fmt.Sscanf(lines.Text(), "committed %d", &reported); err != nil {
				t.Fatalf("the writer said %q", lines.Text())
			}
		}
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it reported before the kill reached it counts, too
			if strings.HasPrefix(lines.Text(), "committed ") {
				fmt.Sscanf(lines.Text(), "committed %d", &reported)
			}
		}
		writer.Wait() // killed: its error says no more

		s := openStore(t, path)
		devices, err := s.Devices(t.Context(), "", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		page, err := s.Audit(t.Context(), query(0, 1<<20))
		records := page.Records
		if err != nil {
			t.Fatal(err)
		}
		if len(devices) < 3*(reported+1) || len(devices)%3 != 0 || len(records) != len(devices) {
			t.Fatalf("round %d: %d devices and %d audit records after %d reported batches of 3", round, len(devices), len(records), reported+1)
		}
		for i, r := range records {
			if r.Number != uint64(i+1) {
				t.Fatalf("audit record %d has number %d", i+1, r.Number)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
