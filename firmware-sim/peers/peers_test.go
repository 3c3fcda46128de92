// Package peers holds no program: its benchmarks run the hub beside other servers, on one machine in one run, and print
// what a connection or a message costs each of them. `make bench` compares connections with a bare crypto/tls server, `make
// bench-peers` also with mosquitto, and messages, memory and recovery with mosquitto and a stock mochi server.
package peers

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleethub/fleethub/certs/mtls"
	"github.com/fleethub/fleethub/certs/pemfile"
)

var withPeers = flag.Bool("peers", false, "run foreign brokers beside the hub")

// bareFolder, in the environment of the test's own program, makes it the bare server over the credentials in that folder.
const bareFolder = "PEERS_BARE"

func TestMain(m *testing.M) {
	for folder, serve := range map[string]func(dir string) error{bareFolder: serveBare, mochiFolder: serveMochi, bystanderFile: serveBystanders} {
		if dir := os.Getenv(folder); dir != "" {
			if err := serve(dir); err != nil {
				fmt.Fprintln(os.Stderr, folder, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

// bareConfig is crypto/tls's own way to mutual TLS, with the credentials in a hub's folder.
func bareConfig(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls/server.crt"), filepath.Join(dir, "tls/server.key"))
	if err != nil {
		return nil, err
	}
	cert.Certificate = cert.Certificate[:1] // as the hub: the clients know its issuer
	bundle, err := pemfile.ReadCertificates(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range bundle {
		roots.AddCert(c)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		CurvePreferences: []tls.CurveID{tls.CurveP256, tls.X25519},
	}, nil
}

// serveBare accepts, shakes hands as crypto/tls does by itself, takes one CONNECT, answers, and waits for the end. It prints
// its address.
func serveBare(dir string) error {
	config, err := bareConfig(dir)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	for {
		raw, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer raw.Close()
			conn := tls.Server(raw, config)
			buf := make([]byte, 256)
			if _, err := conn.Read(buf); err != nil { // the handshake, then CONNECT
				return
			}
			if _, err := conn.Write([]byte{0x20, 2, 0, 0}); err != nil {
				return
			}
			conn.Read(buf) // until the client is gone
		}()
	}
}

// peer is a server under measurement, in a process of its own.
type peer struct {
	name string
	addr string
	pid  int
}

// cpu returns the processor time that the peer has used so far.
func (p peer) cpu(b *testing.B) time.Duration {
	b.Helper()
	used, err := p.used()
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// used is cpu for any goroutine.
func (p peer) used() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3, state
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, the same on every Linux that Go runs on
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// start runs a program until the benchmark ends and returns its process.
func start(b *testing.B, stdout io.Writer, env []string, name string, args ...string) *exec.Cmd {
	b.Helper()
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), stdout, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		log.Close()
		if b.Failed() {
			if data, err := os.ReadFile(log.Name()); err == nil {
				b.Logf("%s:\n%s", name, data[max(0, len(data)-4000):])
			}
		}
	})
	return cmd
}

// site is a hub's folder with devices of one station, made by the real programs.
type site struct {
	bin, dir string
	devices  []mtls.Credentials
	folders  []string // the devices'

	manifests []string // files
}

// run runs one program to its end.
func (s *site) run(b *testing.B, program string, args ...string) {
	b.Helper()
	if out, err := exec.Command(filepath.Join(s.bin, program), args...).CombinedOutput(); err != nil {
		b.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}

func newSite(b *testing.B, devices int) *site {
	b.Helper()
	s := emptySite(b, devices)
	for _, f := range s.folders {
		s.devices = append(s.devices, s.load(b, f, "device"))
	}
	return s
}

// emptySite makes a site without reading the devices' credentials.
func emptySite(b *testing.B, devices int) *site {
	b.Helper()
	s := &site{bin: b.TempDir(), dir: b.TempDir()}
	build := exec.Command("go", "build", "-trimpath", "-o", s.bin+"/", "./hub", "./provisioning")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	hub, station, authority := filepath.Join(s.dir, "hub"), filepath.Join(s.dir, "station"), filepath.Join(s.dir, "authority.pem")
	s.run(b, "hub", "init", "--dir", hub)
	var made struct {
		KeyHash string `json:"key_sha256"`
	}
	out, err := exec.Command(filepath.Join(s.bin, "provisioning"), "init", "--dir", station, "--name", "bench-1", "--output", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &made)
	}
	if err != nil {
		b.Fatalf("provisioning init: %v\n%s", err, out)
	}
	s.run(b, "hub", "station", "authorize", "--max-devices", "1000000", "--dir", hub, "--csr", filepath.Join(station, "station.csr"), "--key-sha256", made.KeyHash, "--out", authority)
	s.run(b, "provisioning", "accept", "--dir", station, authority)
	const most = 20_000 // devices in a manifest: a station writes no more into one
	for first := 0; first < devices; first += most {
		out := filepath.Join(s.dir, fmt.Sprintf("devices-%06d", first))
		s.run(b, "provisioning", "batch", "--dir", station, "--prefix", "d-", "--count", strconv.Itoa(min(most, devices-first)), "--out", out)
		manifest := filepath.Join(s.dir, fmt.Sprintf("manifest-%06d", first))
		s.run(b, "provisioning", "manifest", "--dir", station, "--out", manifest)
		s.manifests = append(s.manifests, manifest)
	}
	folders, err := filepath.Glob(filepath.Join(s.dir, "devices-*", "d-*"))
	if err != nil {
		b.Fatal(err)
	}
	s.folders = folders
	return s
}

// load reads the credentials in a folder.
func (s *site) load(b *testing.B, folder, base string) mtls.Credentials {
	b.Helper()
	c, err := mtls.LoadCredentials(folder, base)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// service issues a certificate to a service, which may have any number of sessions: NAME:1, NAME:2, ...
func (s *site) service(b *testing.B, name string) mtls.Credentials {
	b.Helper()
	out := filepath.Join(s.dir, name)
	s.run(b, "hub", "service", "issue", name, "--dir", filepath.Join(s.dir, "hub"), "--out", out)
	return s.load(b, out, "service")
}

// hub starts the hub, with the devices registered.
func (s *site) hub(b *testing.B) peer {
	b.Helper()
	p, _ := s.startHub(b)
	return p
}

// startHub starts the hub, with the devices registered, and returns what stops it before the benchmark's end.
func (s *site) startHub(b *testing.B) (peer, func()) {
	b.Helper()
	p, stop := s.launch(b)
	s.register(b)
	return p, func() { stop(syscall.SIGTERM) }
}

// register tells the running hub of the devices.
func (s *site) register(b *testing.B) {
	b.Helper()
	for _, m := range s.manifests {
		s.run(b, "hub", "manifest", "import", m, "--dir", filepath.Join(s.dir, "hub"))
	}
}

// launch starts the hub as it is and returns what ends it by a signal.
func (s *site) launch(b *testing.B) (peer, func(os.Signal)) {
	b.Helper()
	dir := filepath.Join(s.dir, "hub")
	env := []string{
		"FLEETHUB_LOG__LEVEL=warn",
		"FLEETHUB_MQTT__LIMITS__ADDRESS_RATE=100000", // the whole fleet comes from one address
		"FLEETHUB_MQTT__LIMITS__ADDRESS_BURST=100000",
		"FLEETHUB_MQTT__LIMITS__ISSUER_BURST=1000000", // and one issuer
	}
	cmd := start(b, nil, env, filepath.Join(s.bin, "hub"), "serve", "--dir", dir, "--mqtt-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	pid := fmt.Sprintf(`"pid":%d,`, cmd.Process.Pid)
	await(b, "the hub", func() bool {
		data, err := os.ReadFile(filepath.Join(dir, "run/hub.json"))
		return err == nil && strings.Contains(string(data), pid)
	})
	return peer{"hub", s.endpoint(b, "mqtt"), cmd.Process.Pid}, func(how os.Signal) {
		cmd.Process.Signal(how)
		cmd.Wait()
	}
}

// endpoint returns an address of the running hub: mqtt, https or metrics.
func (s *site) endpoint(b *testing.B, which string) string {
	b.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "hub", "run/hub.json"))
	if err != nil {
		b.Fatal(err)
	}
	var addresses map[string]any
	if err := json.Unmarshal(data, &addresses); err != nil {
		b.Fatal(err)
	}
	addr, ok := addresses[which].(string)
	if !ok || addr == "" {
		b.Fatalf("run/hub.json says no %s address", which)
	}
	return addr
}

// bare starts the bare crypto/tls server.
func (s *site) bare(b *testing.B) peer {
	b.Helper()
	return s.again(b, "bare crypto/tls", bareFolder)
}

// again starts the test's own program as one of the servers that TestMain knows.
func (s *site) again(b *testing.B, name, folder string) peer {
	b.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer reader.Close()
	cmd := start(b, writer, []string{folder + "=" + filepath.Join(s.dir, "hub")}, os.Args[0])
	writer.Close()
	line := make([]byte, 64)
	n, err := reader.Read(line)
	if err != nil {
		b.Fatal(err)
	}
	return peer{name, strings.TrimSpace(string(line[:n])), cmd.Process.Pid}
}

// mosquitto starts mosquitto with the same PKI: mutual TLS, the identity from the certificate.
func (s *site) mosquitto(b *testing.B) peer {
	b.Helper()
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto"
	}
	dir := filepath.Join(s.dir, "hub")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	config := filepath.Join(b.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("user root\nlog_type error\nmax_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\nlistener %s 127.0.0.1\ncafile %s\ncertfile %s\nkeyfile %s\nrequire_certificate true\nuse_identity_as_username true\n",
		port, filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls/server.crt"), filepath.Join(dir, "tls/server.key"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	// A C program is not given all the file descriptors that it may have; a Go program takes them.
	cmd := start(b, nil, nil, "/bin/sh", "-c", `ulimit -n "$(ulimit -Hn)"; exec "$0" "$@"`, program, "-c", config)
	await(b, "mosquitto", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return peer{"mosquitto", addr, cmd.Process.Pid}
}

func await(b *testing.B, what string, done func() bool) {
	b.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%s did not start", what)
		}
	}
}

// kept is the one session of a device at a peer.
type kept struct{ state *tls.ClientSessionState }

func (k *kept) Get(string) (*tls.ClientSessionState, bool) { return k.state, k.state != nil }
func (k *kept) Put(_ string, s *tls.ClientSessionState)    { k.state = s }

// errAnswer is returned for anything but an accepting CONNACK.
var errAnswer = errors.New("no CONNACK that accepts")

// connect makes one connection: TLS, CONNECT, CONNACK, end.
func connect(addr string, device mtls.Credentials, version uint16, sessions tls.ClientSessionCache) (resumed bool, err error) {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	config := mtls.ClientConfig(mtls.ClientOptions{Certificate: device.Certificate, Roots: device.Roots, ServerName: "127.0.0.1", Sessions: sessions})
	config.MinVersion, config.MaxVersion = version, version
	config.CurvePreferences = []tls.CurveID{tls.CurveP256} // which every peer has, in both versions
	conn := tls.Client(raw, config)
	id := device.Identity.ID
	packet := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(id))}, id...)
	if _, err := conn.Write(packet); err != nil {
		return false, err
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false, err
	}
	if !bytes.Equal(answer, []byte{0x20, 2, 0, 0}) {
		return false, errAnswer
	}
	return conn.ConnectionState().DidResume, nil
}
