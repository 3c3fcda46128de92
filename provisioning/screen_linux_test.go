package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The page beside EST at one address, with curl as the browser; and a page that stays
// open doesn't keep the server from stopping (serving's clean-up waits for that).
func TestBenchPageIsServedBesideEST(t *testing.T) {
	dir := bench(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(in("po.csv"), []byte("pattern,count\npi-#,5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "order", "import", "--dir", in("S"), in("po.csv"))
	url := serving(t, dir)
	token := strings.TrimSpace(output(t, "token", "--dir", in("S"), "--order", "po"))
	out := sh(t, dir, `
		curl() { command curl -sS --cacert S/server.crt "$@"; }
		command curl -sSN --cacert S/server.crt $URL/events > events 2> events.err & # until the server stops
		openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout one.key -subj /CN=x -outform DER 2>/dev/null | openssl base64 > one.csr
		curl -o /dev/null -H 'Content-Type: application/pkcs10' --data-binary @one.csr $URL/.well-known/est/simpleenroll
		curl --fail $URL/ | grep -c 'The board brought no token'
		curl --fail -o /dev/null -H 'Content-Type: application/pkcs10' --data-binary @one.csr -u board:$TOKEN $URL/.well-known/est/simpleenroll
		curl --fail $URL/ | grep -e '<h1>' -e progress
		curl --fail -o label.png $URL/label/pi-1.png
		zbarimg --quiet label.png
		for _ in $(seq 200); do grep -q 'pi-1 is ready' events && break; sleep 0.05; done
		grep 'data: <h1>pi-1 is ready' events
	`, "URL="+url, "TOKEN="+token)
	for _, want := range []string{"1\n", "<h1>pi-1 is ready</h1>", `<progress value="1" max="5">`, "CODE-128:pi-1\n", "QR-Code:pi-1 sha256:"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing from %s", want, out)
		}
	}
	// The command knows of the refusal, since the server carries it out.
	if out := output(t, "report", "--dir", in("S")); !strings.Contains(out, ",issued,pi-1,") || !strings.Contains(out, "127.0.0.1,no-credential,") {
		t.Error(out)
	}
}
