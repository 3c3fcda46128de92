package main

import (
	"net"
	"testing"
)

func TestAddressThatServePrintsCanBeDialled(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 9443} }
	for _, c := range []struct {
		listening net.Addr
		hosts     []string
		want      string
	}{
		{tcp("127.0.0.1"), nil, "127.0.0.1:9443"},
		{tcp("192.0.2.7"), []string{"station"}, "192.0.2.7:9443"},
		{tcp("::"), []string{"station.factory.example", "192.0.2.7"}, "station.factory.example:9443"},
		{tcp("0.0.0.0"), []string{"2001:db8::7"}, "[2001:db8::7]:9443"},
	} {
		if got := reachable(c.listening, c.hosts); got != c.want {
			t.Errorf("listening at %s as %q: %s, want %s", c.listening, c.hosts, got, c.want)
		}
	}
	network := func(ips ...string) (list []net.Addr) {
		for _, ip := range ips {
			list = append(list, &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(24, 128)})
		}
		return list
	}
	for _, c := range []struct {
		addresses []net.Addr
		want      string
	}{
		{network("127.0.0.1", "::1", "fe80::1", "2001:db8::7", "192.0.2.7"), "192.0.2.7"},
		{network("::1", "2001:db8::7", "2001:db8::8"), "2001:db8::7"},
		{network("127.0.0.1", "::1", "169.254.3.4", "fe80::1"), "localhost"},
		{nil, "localhost"},
	} {
		if got := onNetwork(c.addresses, "localhost"); got != c.want {
			t.Errorf("of %v: %s, want %s", c.addresses, got, c.want)
		}
	}
}
