// Package tpm keeps secrets in this machine's TPM 2.0 (TCG "Trusted Platform Module
// Library", revision 1.59; "the Library" below), through the kernel's device or a
// software TPM's socket. It is the only importer of go-tpm.
//
// A [TPM] holds no connection and no handle between calls: each call opens the TPM,
// flushes whatever it loaded, and closes it. So a program that is killed leaves
// nothing behind, a restarted swtpm is found again, and other programs get their turn.
package tpm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// TPM is one TPM, by its address. It is safe for concurrent use; calls take turns.
type TPM struct {
	address string
	dial    func() (channel, error)

	turn sync.Mutex // held for a whole call: a TPM does one thing at a time, and has room for three objects
}

// Open returns the TPM at address, once it has answered that it is one. The address is
//
//	/dev/tpmrm0            the kernel's device, shared with other programs
//	/dev/tpm0              the same without sharing: one program at a time
//	/run/swtpm.sock        a software TPM's Unix socket, also unix:///run/swtpm.sock
//	tcp://127.0.0.1:2321   a software TPM's TCP port: neither encrypted nor authenticated
//
// A path where nothing is gives fs.ErrNotExist; ErrAccess and ErrBusy say why a TPM
// that is there can't be used.
func Open(address string) (*TPM, error) {
	dial, err := dialer(address)
	if err != nil {
		return nil, err
	}
	t := &TPM{address: address, dial: dial}
	if err := t.use("open", probe); err != nil {
		return nil, err
	}
	return t, nil
}

// Address returns what Open was given.
func (t *TPM) Address() string { return t.address }

// Detect returns the address of this machine's TPM 2.0 and whether it has one; that
// this process may use it, only Open can tell. Software TPMs are never detected.
func Detect() (address string, ok bool) { return detect("/") }

// detect prefers the shared device, which the kernel makes for a TPM 2.0 only.
func detect(root string) (address string, ok bool) {
	if isDevice(filepath.Join(root, "dev/tpmrm0")) {
		return "/dev/tpmrm0", true
	}
	version, err := os.ReadFile(filepath.Join(root, "sys/class/tpm/tpm0/tpm_version_major"))
	if err == nil && strings.TrimSpace(string(version)) == "2" && isDevice(filepath.Join(root, "dev/tpm0")) {
		return "/dev/tpm0", true
	}
	return "", false
}

func isDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

// use opens the TPM, lets f work with it, and closes it. Every error of this package
// that a TPM or the way to it gave passes through here and is explained.
func (t *TPM) use(attempt string, f func(*conn) error) error {
	t.turn.Lock()
	defer t.turn.Unlock()
	ch, err := t.dial()
	if err == nil {
		err = f(&conn{channel: ch})
		_ = ch.Close() // the work is done or has failed, and the handles are flushed either way
	}
	if err != nil {
		return fmt.Errorf("%s the TPM at %s: %w", attempt, t.address, explain(err))
	}
	return nil
}

// probe has the TPM name its family, which only a started TPM 2.0 does as "2.0".
func probe(c *conn) error {
	reply, err := tpm2.GetCapability{
		Capability:    tpm2.TPMCapTPMProperties,
		Property:      uint32(tpm2.TPMPTFamilyIndicator),
		PropertyCount: 1,
	}.Execute(c)
	if err != nil {
		return err
	}
	properties, err := reply.CapabilityData.Data.TPMProperties()
	if err != nil {
		return err
	}
	if len(properties.TPMProperty) == 0 || properties.TPMProperty[0].Value != family20 {
		return fmt.Errorf("it isn't a TPM 2.0")
	}
	return nil
}

// family20 is TPM_SPEC_FAMILY, "2.0" in ASCII.
const family20 = 0x322e3000
