package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func FuzzParseBlob(f *testing.F) {
	good := blob{parent: []byte("parent"), public: []byte("public"), private: []byte("private"), sealed: make([]byte, 40)}
	encoded := append(good.header(), good.sealed...)
	f.Add(encoded)
	f.Add(encoded[:len(encoded)-13])
	f.Add([]byte(blobMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parseBlob(data)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v", err)
			}
			return
		}
		if again := append(b.header(), b.sealed...); !bytes.Equal(again, data) {
			t.Errorf("parsed and encoded again it is %x", again)
		}
	})
}

// Whatever happened to a blob, the TPM and we see it, say so, and leave nothing loaded.
func TestAlteredBlobIsDamaged(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	sealed := mustSeal(t, d, []byte("secret"))
	b, err := parseBlob(sealed)
	if err != nil {
		t.Fatal(err)
	}
	altered := map[string][]byte{
		"empty":       nil,
		"too large":   append(slices.Clone(sealed), make([]byte, maxBlob)...),
		"version 2":   append([]byte("FHTPM\x02"), sealed[len(blobMagic):]...),
		"longer":      append(slices.Clone(sealed), 0),
		"no private":  append((&blob{parent: b.parent, public: b.public}).header(), b.sealed...),
		"swapped":     append((&blob{parent: b.parent, public: b.private, private: b.public}).header(), b.sealed...),
		"other's key": append((&blob{parent: b.parent, public: b.public, private: b.private}).header(), mustSeal(t, d, []byte("secret"))[len(b.header()):]...),
	}
	for name, data := range altered {
		if got, err := d.Unseal(data); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	parentEnd := len(blobMagic) + 2 + len(b.parent)
	for i := range sealed {
		flipped := slices.Clone(sealed)
		flipped[i] ^= 0x41
		got, err := d.Unseal(flipped)
		if inName := i >= len(blobMagic)+2 && i < parentEnd; inName && !errors.Is(err, ErrOtherTPM) || !inName && !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d flipped: %q, %v", i, got, err)
		}
		if i%16 == 0 {
			if got, err := d.Unseal(sealed[:i]); !errors.Is(err, ErrDamaged) {
				t.Errorf("cut to %d bytes: %q, %v", i, got, err)
			}
		}
	}
	wantUnsealed(t, d, sealed, []byte("secret"))
}

// A TPM that answers nonsense is reported, not believed.
func TestNonsenseFromTheTPMIsAnError(t *testing.T) {
	t.Parallel()
	for name, response := range map[string][]byte{
		"nothing":      {},
		"short":        {0x80, 1, 0, 0, 0, 9, 0, 0, 0},
		"wrong size":   {0x80, 1, 0, 0, 0, 11, 0, 0, 0, 0},
		"only success": {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0},
		"garbage":      append([]byte{0x80, 1, 0, 0, 0, 26, 0, 0, 0, 0}, bytes.Repeat([]byte{0xff}, 16)...),
	} {
		d := &TPM{address: name, dial: func() (channel, error) { return canned{response}, nil }}
		if err := d.use("open", probe); err == nil {
			t.Errorf("%s: open", name)
		}
		if _, err := d.Seal(nil); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
}

// canned answers every command alike.
type canned struct{ response []byte }

func (c canned) exchange([]byte) ([]byte, error) { return slices.Clone(c.response), nil }
func (canned) Close() error                      { return nil }

// warning asks for a repetition some times before it lets its channel answer.
type warning struct {
	channel
	code  uint32
	times int
}

func (w *warning) exchange(command []byte) ([]byte, error) {
	if w.times--; w.times >= 0 {
		return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, w.code), nil
	}
	return w.channel.exchange(command)
}

func TestTPMThatAsksForItGetsTheCommandAgain(t *testing.T) {
	t.Parallel()
	d, e := open(t)
	for _, code := range []uint32{0x922, 0x908, 0x90a, 0x920} { // RETRY, YIELDED, TESTING, NV_RATE
		slow, err := Open(e.Address())
		if err != nil {
			t.Fatal(err)
		}
		dial := slow.dial
		slow.dial = func() (channel, error) {
			ch, err := dial()
			return &warning{channel: ch, code: code, times: 3}, err
		}
		wantUnsealed(t, slow, mustSeal(t, d, []byte("s")), []byte("s"))
	}
	never := &TPM{address: "never"}
	never.dial = func() (channel, error) { return &warning{channel: canned{}, code: 0x922, times: 1000}, nil }
	if _, err := never.Seal(nil); !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
}

func BenchmarkSeal(b *testing.B) {
	d, _ := open(b)
	for b.Loop() {
		mustSeal(b, d, make([]byte, 4096))
	}
}

func BenchmarkUnseal(b *testing.B) {
	d, _ := open(b)
	sealed := mustSeal(b, d, make([]byte, 4096))
	for b.Loop() {
		wantUnsealed(b, d, sealed, make([]byte, 4096))
	}
}

// tap hears what goes over the bus between processor and TPM.
type tap struct {
	channel
	heard *bytes.Buffer
}

func (l tap) exchange(command []byte) ([]byte, error) {
	response, err := l.channel.exchange(command)
	l.heard.Write(command)
	l.heard.Write(response)
	return response, err
}

func TestKeyIsNotHeardOnTheBus(t *testing.T) {
	t.Parallel()
	d, _ := open(t)
	var heard bytes.Buffer
	dial := d.dial
	d.dial = func() (channel, error) {
		ch, err := dial()
		return tap{ch, &heard}, err
	}
	b, err := parseBlob(mustSeal(t, d, []byte("s")))
	if err != nil {
		t.Fatal(err)
	}
	var key []byte
	command(t, d, func(c *conn) error {
		key, err = c.unsealKey(b)
		return err
	})
	if len(key) != keySize || bytes.Contains(heard.Bytes(), key) || !bytes.Contains(heard.Bytes(), b.private) {
		t.Errorf("a key of %d bytes, heard: %t", len(key), bytes.Contains(heard.Bytes(), key))
	}
}
