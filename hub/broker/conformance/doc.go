// Package conformance tests the hub as an MQTT server, from outside: raw clients
// over mutual TLS against a real hub on loopback. Every normative statement that
// binds a server has a test named after its number, such as
// TestConformance/publish/5.0/MQTT-3.3.1-4; hub/wire/CONFORMANCE.md lists them all,
// with those that bind clients and the exceptions, and a test compares the two.
//
// A rule is a function over an [exam], which runs once for each protocol version
// and number. Each makes devices and services of its own, so rules run in parallel
// against one hub, and each failed connection is followed by a look at a bystander
// who must not notice.
//
// Most rules use a pair: a device that subscribes below d/<id>/cmd and a service
// that publishes there. The shipped policy lets nobody read what it writes, so what
// needs one client on both sides (No Local, the public suites) runs against a hub
// whose policy lets services do everything: see open_test.go.
//
// scripts/interop.sh runs public interoperability suites through a shim: see
// interop_test.go and shim_test.go.
package conformance
