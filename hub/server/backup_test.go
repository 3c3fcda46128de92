package server

import "testing"

func TestBackupHoldsSmallFilesOfKnownNamesAndNoOthers(t *testing.T) {
	for name, want := range map[string]bool{
		"policy.yaml": true, "issuers/bench-1.crt": true, "status/foreign/known.json": true, "status/foreign/0a1b.crl": true,
		"hub.yaml": false, "tls/server.key": false, "issuers/bench-1.key": false, "issuers/.bench-1.crt": false, "issuers/a/b.crt": false,
		"issuers/../tls/server.crt": false, "../policy.yaml": false, "/policy.yaml": false, "status/foreign/../../x": false,
		"status/foreign/..": false, "status/number": false, "": false, ".": false,
	} {
		if got := isSmallFile(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
