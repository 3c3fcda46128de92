package server_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fleethub/fleethub/hub/server"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, server.ConfigFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestShippedConfigSaysTheDefaults(t *testing.T) {
	text, err := server.ShippedConfig("fleet.example")
	if err != nil {
		t.Fatal(err)
	}
	dir := writeConfig(t, string(text))
	got, err := server.LoadConfig(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := server.DefaultConfig(dir); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// and every key that can be set is in it
	var walk func(reflect.Type)
	walk = func(s reflect.Type) {
		for i := range s.NumField() {
			key := s.Field(i).Tag.Get("yaml")
			if key == "-" {
				continue
			}
			if !strings.Contains(string(text), key+":") {
				t.Errorf("the shipped file doesn't mention %s", key)
			}
			if s.Field(i).Type.Kind() == reflect.Struct {
				walk(s.Field(i).Type)
			}
		}
	}
	walk(reflect.TypeFor[server.Config]())
}

func TestEnvironmentGoesOverFile(t *testing.T) {
	dir := writeConfig(t, "mqtt:\n  addr: ':1'\n  max_connections: 5\n")
	c, err := server.LoadConfig(dir, []string{"FLEETHUB_MQTT__ADDR=:2", "FLEETHUB_MQTT__CONNECT_TIMEOUT=3s", "FLEETHUB_MQTT__MAX_PACKET_SIZE=4096", "HOME=/x"})
	if err != nil {
		t.Fatal(err)
	}
	if c.MQTT.Addr != ":2" || c.MQTT.MaxConnections != 5 || c.MQTT.ConnectTimeout != 3*time.Second || c.MQTT.MaxPacketSize != 4096 {
		t.Errorf("got %+v", c.MQTT)
	}
}

func TestBadConfigurationIsNamed(t *testing.T) {
	for _, test := range []struct{ name, file, env, want string }{
		{"unknown key", "mqtt:\n  adr: ':1'\n", "", "adr"},
		{"wrong type", "mqtt:\n  max_connections: many\n", "", "max_connections"},
		{"no YAML", "mqtt: [\n", "", "hub.yaml"},
		{"address", "https:\n  addr: 8443\n", "", "https.addr"},
		{"trust domain", "trust_domain: 'Not One'\n", "", "trust_domain"},
		{"level", "log:\n  level: loud\n", "", "log.level"},
		{"format", "log:\n  format: xml\n", "", "log.format"},
		{"bounds", "mqtt:\n  max_connections: 0\n", "", "mqtt.max_connections"},
		{"unknown variable", "", "FLEETHUB_MQTT__ADR=:1", "FLEETHUB_MQTT__ADR"},
		{"section as variable", "", "FLEETHUB_MQTT=:1", "FLEETHUB_MQTT"},
		{"too deep a variable", "", "FLEETHUB_TRUST_DOMAIN__X=1", "FLEETHUB_TRUST_DOMAIN__X"},
		{"number in variable", "", "FLEETHUB_MQTT__MAX_CONNECTIONS=x", "FLEETHUB_MQTT__MAX_CONNECTIONS"},
		{"duration in variable", "", "FLEETHUB_MQTT__CONNECT_TIMEOUT=5", "FLEETHUB_MQTT__CONNECT_TIMEOUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := server.LoadConfig(writeConfig(t, test.file), []string{test.env})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %s", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestAddressesToListenAt(t *testing.T) {
	t.Parallel()
	for addr, ok := range map[string]bool{
		":8883": true, "127.0.0.1:0": true, "[::1]:8883": true, "hub.example:8443": true,
		"": false, "8883": false, "127.0.0.1": false, "127.0.0.1:": false, "127.0.0.1:99999": false, "127.0.0.1:mqtt": false, "::1:8883": false,
	} {
		if err := server.CheckAddress(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
