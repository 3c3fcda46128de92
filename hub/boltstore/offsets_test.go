package boltstore

import (
	"path/filepath"
	"testing"
)

func TestConsumersAreKeptByNameAcrossAReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hub.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	check := func() {
		t.Helper()
		got, err := s.Consumers(t.Context())
		if err != nil || len(got) != len(want) {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
		for name, data := range want {
			if string(got[name]) != data {
				t.Errorf("%s is %q, want %q", name, got[name], data)
			}
		}
	}
	check() // of a store that never had one
	for _, c := range []struct{ name, data string }{{"a", "1"}, {"b", "2"}, {"a", "3"}, {"c", "4"}} {
		if err := s.PutConsumer(t.Context(), c.name, []byte(c.data)); err != nil {
			t.Fatal(err)
		}
		want[c.name] = c.data
	}
	for _, gone := range []string{"c", "never"} {
		if err := s.DeleteConsumer(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		delete(want, gone)
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check()
}
