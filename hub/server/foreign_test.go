package server_test

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/hubtest"
)

// What TLS clients and scanners that are not ours find at a running hub. They come from
// Debian: openssl, sslscan, testssl.sh. A missing one fails the test.

// toolTimeout bounds one run of a scanner: testssl.sh, a shell script, takes some 15 s.
const toolTimeout = 3 * time.Minute

// run runs a program to its end and returns its standard output; what it says by its
// exit code is the caller's to judge.
func run(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: scripts/setup.sh installs what the tests need", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if ctx.Err() != nil {
		t.Fatalf("%s didn't end in %s", name, toolTimeout)
	}
	return string(out), err
}

// OpenSSL resumes with the hub's compact tickets as it does with anybody's.
func TestOpenSSLResumes(t *testing.T) {
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run(version, func(t *testing.T) {
			h := hubtest.Start(t)
			dir := h.Device("pi-1").WriteTo(t.TempDir(), "device")
			session := filepath.Join(dir, "session.pem")
			// MQTT 3.1.1 CONNECT as pi-1; -ign_eof has s_client wait for what follows, and the
			// DISCONNECT behind it has the hub hang up.
			packets := "\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04pi-1\xe0\x00"
			client := func(args ...string) string {
				out, err := run(t, packets, "openssl", append([]string{"s_client", "-connect", h.MQTTAddr(), version, "-ign_eof", "-verify_return_error",
					"-CAfile", filepath.Join(dir, "ca.crt"), "-cert", filepath.Join(dir, "device.crt"), "-key", filepath.Join(dir, "device.key"),
					"-groups", "X25519:P-256"}, args...)...)
				if err != nil || !strings.Contains(out, "\x20\x02\x00\x00") {
					t.Fatalf("no CONNACK, %v:\n%q", err, out)
				}
				return out
			}
			if out := client("-sess_out", session); !strings.Contains(out, "\nNew, TLSv1.") {
				t.Errorf("the first connection is not new:\n%q", out)
			}
			for _, when := range []string{"at once", "after a restart"} {
				if out := client("-sess_in", session, "-sess_out", session); !strings.Contains(out, "\nReused, TLSv1.") {
					t.Errorf("%s: the saved session is not reused:\n%q", when, out)
				}
				h.Restart()
			}
		})
	}
}

// policyVersions, policySuites and policyGroups are all that a scanner may find, in the
// words of OpenSSL and sslscan.
var (
	policyVersions = []string{"TLSv1.2", "TLSv1.3"}
	policySuites   = []string{
		"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305",
	}
	policyGroups = []string{"secp256r1 (NIST P-256)", "x25519"}
)

// sslscanReport is of sslscan's XML what we look at.
type sslscanReport struct {
	Test struct {
		Protocols []struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
			Enabled int    `xml:"enabled,attr"`
		} `xml:"protocol"`
		Renegotiation struct {
			Supported int `xml:"supported,attr"`
		} `xml:"renegotiation"`
		Compression struct {
			Supported int `xml:"supported,attr"`
		} `xml:"compression"`
		Heartbleed []struct {
			Vulnerable int `xml:"vulnerable,attr"`
		} `xml:"heartbleed"`
		Ciphers []struct {
			Version string `xml:"sslversion,attr"`
			Name    string `xml:"cipher,attr"`
		} `xml:"cipher"`
		Groups []struct {
			Name string `xml:"name,attr"`
		} `xml:"group"`
	} `xml:"ssltest"`
}

func TestSSLScanFindsThePolicyAndNothingElse(t *testing.T) {
	h := hubtest.Start(t)
	dir := h.Device("pi-1").WriteTo(t.TempDir(), "device")
	for door, addr := range map[string]string{"MQTT": h.MQTTAddr(), "HTTPS": h.HTTPSAddr()} {
		t.Run(door, func(t *testing.T) {
			out, err := run(t, "", "sslscan", "--xml=-", "--no-colour", "--certs="+filepath.Join(dir, "device.crt"), "--pk="+filepath.Join(dir, "device.key"), addr)
			var report sslscanReport
			if parseErr := xml.Unmarshal([]byte(out), &report); err != nil || parseErr != nil {
				t.Fatalf("%v, %v:\n%s", err, parseErr, out)
			}
			scan := report.Test
			var enabled, suites, groups []string
			for _, p := range scan.Protocols {
				if p.Enabled != 0 {
					enabled = append(enabled, strings.ToUpper(p.Type)+"v"+p.Version)
				}
			}
			for _, c := range scan.Ciphers {
				suites = append(suites, c.Name)
			}
			for _, g := range scan.Groups {
				groups = append(groups, g.Name)
			}
			same(t, "protocols", enabled, policyVersions)
			same(t, "suites", suites, policySuites)
			same(t, "groups", groups, policyGroups)
			for _, b := range scan.Heartbleed {
				if b.Vulnerable != 0 {
					t.Error("heartbleed")
				}
			}
			if scan.Renegotiation.Supported != 0 || scan.Compression.Supported != 0 {
				t.Errorf("renegotiation %d, compression %d", scan.Renegotiation.Supported, scan.Compression.Supported)
			}
		})
	}
}

// same compares as sets.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if got = slices.Compact(got); !slices.Equal(got, want) {
		t.Errorf("%s: found %q, the policy is %q", what, got, want)
	}
}

// finding is one line of testssl.sh's JSON.
type finding struct{ ID, Severity, Finding string }

func TestTestSSLFindsThePolicyAndNothingElse(t *testing.T) {
	h := hubtest.Start(t)
	file := filepath.Join(t.TempDir(), "findings.json")
	// Protocols, forward secrecy with suites and curves, renegotiation, compression. Its
	// exit code counts what it couldn't do, such as name look-ups.
	out, _ := run(t, "", "testssl", "--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--openssl-timeout", "10", "--connect-timeout", "10",
		"--protocols", "--pfs", "--renegotiation", "--compression", "--jsonfile", file, h.MQTTAddr())
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	var findings []finding
	if err := json.Unmarshal(data, &findings); err != nil {
		t.Fatalf("%v:\n%s", err, data)
	}
	found := make(map[string]finding)
	for _, f := range findings {
		found[f.ID] = f
		if f.ID == "secure_client_renego" {
			continue // it has no client certificate to try that with; sslscan has
		}
		if !slices.Contains([]string{"OK", "INFO", "DEBUG"}, f.Severity) {
			t.Errorf("%s, %s: %s", f.Severity, f.ID, f.Finding)
		}
	}
	for id, want := range map[string]string{
		"SSLv2": "not offered", "SSLv3": "not offered", "TLS1": "not offered", "TLS1_1": "not offered", "TLS1_2": "offered", "TLS1_3": "offered with final",
		"ALPN": "not offered", "PFS": "offered", "CRIME_TLS": "not vulnerable",
	} {
		if got := found[id].Finding; !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	same(t, "suites", strings.Fields(found["PFS_ciphers"].Finding), policySuites)
	same(t, "curves", strings.Fields(found["PFS_ECDHE_curves"].Finding), []string{"prime256v1", "X25519"})
	if t.Failed() {
		t.Log(out)
	}
}
