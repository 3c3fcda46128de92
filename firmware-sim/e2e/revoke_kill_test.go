package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// orderChanges are the system calls by which a running hub changes what a kill leaves behind of an order: the store's and
// the journal's writes and syncs, and the files of its revocation list.
var orderChanges = []string{"pwrite64", "fdatasync", "fsync", "renameat"}

// ordersKilled is the most points of each call at which the hub is killed.
const ordersKilled = 8

// TestRevokedAtWhateverStepTheHubIsKilled kills the hub, as by kill -9, when it enters its first, second, ... of each of the
// calls by which it changes the disk, while it revokes a device that is connected with a stored session. After a
// restart the order is given again if the operator had no receipt. From the receipt on, the device connects and publishes
// as fast as it can, and nothing of it is admitted or acknowledged, nor found among the messages that the hub has accepted.
func TestRevokedAtWhateverStepTheHubIsKilled(t *testing.T) {
	f := newFleet(t)
	devices := f.path("devices")
	f.run("provisioning", "batch", "--dir", f.path("station"), "--prefix", "pi-", "--count", strconv.Itoa(len(orderChanges)*ordersKilled), "--out", devices)
	f.serve()
	f.register()
	folders, err := filepath.Glob(filepath.Join(devices, "pi-*"))
	if err != nil || len(folders) == 0 {
		t.Fatalf("no devices: %v", err)
	}
	cutOffAt := make(map[string]time.Time)
	kills, without := 0, 0
	for _, call := range orderChanges {
		for n := 1; n <= ordersKilled; n++ {
			folder := folders[0]
			folders = folders[1:]
			id := filepath.Base(folder)
			at, killed, told := f.revokeUnder(t, folder, call, n)
			cutOffAt[id] = at
			if !killed {
				break // it has no such call as that
			}
			kills++
			if !told {
				without++
			}
		}
	}
	t.Logf("killed at %d points, at %d of them before the operator had a receipt", kills, without)
	if kills == 0 || without == 0 {
		t.Error("the hub was never killed in the middle of an order: does it still write by the calls in orderChanges?")
	}
	accepted := 0
	for line := range strings.Lines(f.run("hub", "tail", "--from", "start", "--follow=false", "--output", "json", "--dir", f.path("hub"))) {
		var m struct {
			Device  string    `json:"device"`
			Time    time.Time `json:"time"`
			Payload string    `json:"payload"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		sent, err := strconv.ParseInt(m.Payload, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		accepted++
		if at := cutOffAt[m.Device]; time.Unix(0, sent).After(at) {
			t.Errorf("%s had its receipt at %v; a message that it sent at %v was accepted at %v", m.Device, at, time.Unix(0, sent), m.Time)
		}
	}
	if accepted < kills {
		t.Errorf("only %d messages were ever accepted, so little is proved", accepted)
	}
}

// revokeUnder revokes one device while the hub is to be killed at its n-th such call, and returns when the operator had a
// receipt, whether the hub was killed, and whether the first order was answered.
func (f *fleet) revokeUnder(t *testing.T, folder, call string, n int) (at time.Time, killed, told bool) {
	t.Helper()
	id := filepath.Base(folder)
	point := fmt.Sprintf("%s %d", call, n)
	v := &victim{folder: folder, id: id}
	v.move(f.at.MQTT)
	v.start(t)
	defer v.stop()
	if !until(func() bool { return v.acknowledged.Load() > 0 }) {
		t.Fatalf("%s publishes nothing", id)
	}
	// Connected and silent, so that what the hub writes is the order's.
	v.quiet.Store(true)
	if !until(v.silent.Load) {
		t.Fatalf("%s isn't connected", id)
	}
	strace := background(t, "strace", "-f", "-qq", "-o", os.DevNull, "-p", strconv.Itoa(f.hub.cmd.Process.Pid),
		"-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
	if !until(func() bool { return f.traced() || f.ended() }) {
		t.Fatalf("strace isn't there: %s", strace.output())
	}
	order := []string{"device", "revoke", id, "--reason", "keyCompromise", "--confirm", "--dir", f.path("hub")}
	told = exec.Command("hub", order...).Run() == nil
	at = time.Now()
	if told {
		v.over.Store(at.UnixNano())
	}
	for range 10 { // what the order leaves to be done behind the receipt
		if killed = f.ended(); killed {
			break
		}
		time.Sleep(poll)
	}
	strace.kill()
	v.quiet.Store(false)
	if killed = f.ended(); killed {
		f.serve()
		v.move(f.at.MQTT)
	}
	if !told {
		f.run("hub", order...)
		at = time.Now()
		v.over.Store(at.UnixNano())
	}
	tried := v.tried.Load()
	if !until(func() bool { return v.tried.Load() >= tried+3 }) {
		t.Fatalf("%s tries no more", id)
	}
	if state := f.show(id).State; state != "revoked" {
		t.Errorf("killed at %s, %s is %s", point, id, state)
	}
	if wrong := v.wrong.Load(); wrong != nil {
		t.Errorf("killed at %s: %s", point, *wrong)
	}
	return at, killed, told
}

// traced reports whether every thread of the hub has a tracer.
func (f *fleet) traced() bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", f.hub.cmd.Process.Pid))
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) {
			return false
		}
	}
	return err == nil && len(tasks) > 0
}

func (f *fleet) ended() bool {
	select {
	case <-f.hub.done:
		return true
	default:
		return false
	}
}

// victim is a device that connects and publishes as fast as it can, over whole handshakes. Each payload says when it was
// sent, in Unix nanoseconds.
type victim struct {
	folder, id string
	addr       atomic.Pointer[string]
	config     *tls.Config

	tried, acknowledged atomic.Int64
	over                atomic.Int64 // when it was cut off; 0: not yet
	wrong               atomic.Pointer[string]

	quiet, silent atomic.Bool // whether it is to say nothing on its connection, and does

	ending, done chan struct{}
}

// move tells it where the hub is.
func (v *victim) move(addr string) { v.addr.Store(&addr) }

func (v *victim) start(t *testing.T) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(v.folder, "device.crt"), filepath.Join(v.folder, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(filepath.Join(v.folder, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	v.config = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "127.0.0.1"}
	v.ending, v.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(v.done)
		for {
			select {
			case <-v.ending:
				return
			case <-time.After(time.Millisecond):
			}
			v.connect()
			v.tried.Add(1)
		}
	}()
}

func (v *victim) stop() {
	close(v.ending)
	<-v.done
}

// late notes what happened to something that was begun after the end.
func (v *victim) late(began time.Time, what string) {
	if over := v.over.Load(); over != 0 && began.UnixNano() > over {
		text := fmt.Sprintf("%s of %s, %v after the receipt", what, v.id, began.Sub(time.Unix(0, over)))
		v.wrong.CompareAndSwap(nil, &text)
	}
}

func (v *victim) connect() {
	began := time.Now()
	raw, err := net.DialTimeout("tcp", *v.addr.Load(), patience)
	if err != nil {
		return
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, v.config)
	if _, err := conn.Write(append([]byte{0x10, byte(12 + len(v.id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 60, 0, byte(len(v.id))}, v.id...)); err != nil {
		return
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[3] != 0 {
		return
	}
	v.late(began, "a connection")
	if v.quiet.Load() {
		v.silent.Store(true)
		io.ReadFull(conn, answer[:1]) // until it is cut off
		v.silent.Store(false)
		return
	}
	topic := "d/" + v.id + "/tele/x"
	for n := uint16(1); n < 100 && !v.quiet.Load(); n++ {
		sent := time.Now()
		body := append(binary.BigEndian.AppendUint16(nil, uint16(len(topic))), topic...)
		body = append(binary.BigEndian.AppendUint16(body, n), strconv.FormatInt(sent.UnixNano(), 10)...)
		if _, err := conn.Write(append([]byte{0x32, byte(len(body))}, body...)); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, answer); err != nil {
			return
		}
		v.late(sent, "a PUBACK to a message")
		v.acknowledged.Add(1)
	}
}
