package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
)

// nothing is a pcap file (little-endian, microseconds, raw IP) without packets; hello has one, the SYN of a connection
// to a hub that nobody answered.
const (
	nothing = "\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x65\x00\x00\x00"
	hello   = nothing + "\x00\x5e\xd0\x68\x00\x00\x00\x00\x28\x00\x00\x00\x28\x00\x00\x00" +
		"\x45\x00\x00\x28\x00\x00\x00\x00\x40\x06\x00\x00\xc0\x00\x02\x07\xc6\x33\x64\x01" +
		"\x9c\x40\x22\xb3\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00"
)

func TestCaptureExplainSaysWhatAFileIs(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{"nothing.pcap": nothing, "hello.pcap": hello, "notes.txt": "These are notes.\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args []string
		code int
		says string // on either output
	}{
		{[]string{"gone.pcap"}, command.NotFound, "there is no file "},
		{[]string{"notes.txt"}, command.Failure, "notes.txt is not a capture (pcap or pcapng)"},
		{[]string{"nothing.pcap"}, command.OK, "no TLS in it"},
		{[]string{"hello.pcap"}, command.OK, "Nobody answered the SYN"},
		{[]string{"hello.pcap", "--connection", "1"}, command.OK, "192.0.2.7:40000 → 198.51.100.1:8883"},
		{[]string{"hello.pcap", "--connection", "2"}, command.NotFound, "has no connection 2: it has 1"},
		{[]string{"hello.pcap", "--output", "json"}, command.OK, `"outcome":"unreachable"`},
	} {
		root := &cobra.Command{Use: "hub", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(newCapture(command.OutputFlag(root)))
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(append([]string{"capture", "explain", filepath.Join(dir, test.args[0])}, test.args[1:]...))
		err := root.ExecuteContext(t.Context())
		said := out.String()
		if err != nil {
			said += err.Error()
		}
		if command.Code(err) != test.code || !strings.Contains(said, test.says) {
			t.Errorf("%q: exit %d, %s; want %d, %q", test.args, command.Code(err), said, test.code, test.says)
		}
		if strings.HasSuffix(test.says, `"unreachable"`) && !json.Valid(out.Bytes()) {
			t.Errorf("%q: no JSON: %s", test.args, said)
		}
	}
}
