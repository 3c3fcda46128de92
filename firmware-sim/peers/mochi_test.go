package peers

import (
	"fmt"
	"log/slog"
	"testing"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

// mochiFolder, in the environment of the test's own program, makes it a stock mochi server over the credentials in that
// folder.
const mochiFolder = "PEERS_MOCHI"

// allow is mochi's own hooks/auth.AllowHook, whose package needs a module that nothing else here does.
type allow struct{ mqtt.HookBase }

func (*allow) ID() string { return "allow-all-auth" }

func (*allow) Provides(b byte) bool { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }

func (*allow) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (*allow) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// serveMochi is mochi's own main with a listener for mutual TLS: its Server, its TCP listener, its options. It prints its
// address.
func serveMochi(dir string) error {
	config, err := bareConfig(dir)
	if err != nil {
		return err
	}
	server := mqtt.New(&mqtt.Options{Logger: slog.New(slog.DiscardHandler)}) // every other option is the default
	if err := server.AddHook(new(allow), nil); err != nil {
		return err
	}
	tcp := listeners.NewTCP(listeners.Config{ID: "t1", Address: "127.0.0.1:0", TLSConfig: config})
	if err := server.AddListener(tcp); err != nil {
		return err
	}
	if err := server.Serve(); err != nil {
		return err
	}
	fmt.Println(tcp.Address())
	select {} // until it is killed
}

// mochi starts a stock mochi server.
func (s *site) mochi(b *testing.B) peer {
	b.Helper()
	return s.again(b, "mochi", mochiFolder)
}
