package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fleethub/fleethub/certs/certtest"
	"github.com/fleethub/fleethub/certs/pemfile"
)

func TestTrustInTPMsIsReadFromFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sum := sha256.Sum256([]byte("an endorsement key"))
	hash := hex.EncodeToString(sum[:])
	good := write("ek.txt", "# line 2's boards\n\n"+hash+"  board 7\n"+strings.ToUpper(hash)+"# again\n")
	keys, err := readAllowList(good)
	if err != nil || len(keys) != 1 || !keys[sum] {
		t.Errorf("%v %v", keys, err)
	}
	if _, err := readAllowList(write("bad.txt", hash+"\nabcd\n")); err == nil || !strings.Contains(err.Error(), "bad.txt, line 2") {
		t.Error(err)
	}
	fleet := certtest.New(t)
	cas := filepath.Join(dir, "cas")
	if err := os.Mkdir(cas, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readCAs(cas); err == nil {
		t.Error("an empty folder was taken for a manufacturer's")
	}
	if err := pemfile.WriteCertificates(filepath.Join(cas, "maker.pem"), fleet.Root.Certificate(), fleet.Factory.Certificate()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{cas, filepath.Join(cas, "maker.pem")} {
		if certs, err := readCAs(path); err != nil || len(certs) != 2 {
			t.Errorf("%s: %d %v", path, len(certs), err)
		}
	}
	if v, err := loadAttestation([]string{cas}, good); v == nil || err != nil {
		t.Error(v, err)
	}
	if v, err := loadAttestation(nil, ""); v != nil || err != nil {
		t.Error("TPMs are trusted though nothing was said of them", err)
	}
	for _, bad := range []func() error{
		func() error { _, err := loadAttestation([]string{filepath.Join(dir, "none")}, ""); return err },
		func() error { _, err := loadAttestation(nil, filepath.Join(dir, "none")); return err },
	} {
		if err := bad(); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}
