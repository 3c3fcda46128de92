package main

import (
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/hubtest"
)

func TestCRLCommands(t *testing.T) {
	h := hubtest.Start(t)
	says(t, h, "crl list", `^there are no revocation lists`)
	now := time.Now().UTC().Truncate(time.Second)
	device := h.Device("pi-1")
	online(t, h, device)
	list := revocation.List{Number: big.NewInt(3), ThisUpdate: now, NextUpdate: now.Add(time.Hour), Entries: []revocation.Entry{{Serial: device.Leaf.SerialNumber, At: now}}}
	der, err := list.Sign(h.Fleet.Factory.Certificate(), h.Fleet.FactoryKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bench-1.crl")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	says(t, h, "crl import "+file, `^in force +list 3 of bench-1, 1 entries`, `^cut off +1 device pi-1$`)
	says(t, h, "crl list", `^ISSUER +SIGNED BY`, `^bench-1 +the issuer, elsewhere +3 +1 `)
	if _, err := hub(t, h, "crl", "import", file); err == nil || !strings.Contains(err.Error(), "older than the list known") {
		t.Errorf("the same list again: %v", err)
	}
	says(t, h, "why pi-1", `^pi-1 is revoked since 20`, `disconnected +127\.0\.0\.1 +an operator revoked it`)
	says(t, h, "anomaly list pi-1", `^score now: connections 1$`, `^no anomalies`)
	if _, err := hub(t, h, "crl", "export", "bench-1", "--out", file); err == nil {
		t.Error("a list that the hub doesn't sign was exported")
	}
}

func TestHubsOwnListIsExported(t *testing.T) {
	h := hubtest.Start(t)
	if err := pemfile.WriteKey(filepath.Join(h.Dir, "ca", "operational.key"), h.Fleet.OperationalKey); err != nil {
		t.Fatal(err)
	}
	h.Restart()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if out, err := hub(t, h, "crl", "list"); err == nil && strings.Contains(out, "this hub") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the hub signs no list")
		}
	}
	file := filepath.Join(t.TempDir(), "hub.crl")
	says(t, h, "crl export hub --out "+file, `^wrote the revocation list of hub to `)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("no PEM: %.80q", data)
	}
	l, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(h.Fleet.Operational.Certificate()); err != nil {
		t.Error(err)
	}
}
