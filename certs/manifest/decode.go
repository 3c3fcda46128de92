package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// errTwice is of contents with two lists of devices.
var errTwice = errors.New("the devices are listed twice")

// parse reads a manifest's contents by the letter: no unknown field, nothing behind them.
// The list of devices is nearly all of it, so it is cut into parts that are read on all
// processors.
func parse(payload []byte) (Manifest, error) {
	var m Manifest
	start, cuts := findDevices(payload)
	if cuts == nil {
		return m, strict(bytes.NewReader(payload), &m)
	}
	end := cuts[len(cuts)-1]
	around := slices.Concat(payload[:start], payload[end:])
	if err := strict(bytes.NewReader(around), &m); err != nil {
		return Manifest{}, err
	}
	if lists(around) != 1 {
		return Manifest{}, errTwice
	}
	var err error
	m.Devices, err = parseParts(payload[start:end], start, cuts)
	return m, err
}

// parseParts reads the inside of a JSON array, which begins at start, part by part. It is
// what one pass would read: commas at the cuts aside, each part is an array of its own,
// and none but the only one is empty.
func parseParts(list []byte, start int, cuts []int) ([]Entry, error) {
	parts := make([][]Entry, len(cuts))
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for i, end := range cuts {
		from := 0
		if i > 0 {
			from = cuts[i-1] + 1 - start // behind the comma
		}
		text := list[from : end-start]
		workers.Go(func() error {
			err := strict(io.MultiReader(bytes.NewReader([]byte{'['}), bytes.NewReader(text), bytes.NewReader([]byte{']'})), &parts[i])
			if err == nil && len(parts[i]) == 0 && len(cuts) > 1 {
				err = errors.New("a device is missing between two commas")
			}
			return err
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(parts...), nil
}

// strict reads one JSON value and nothing else.
func strict(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows its contents")
	}
	return nil
}

// findDevices returns where the inside of the list of devices begins, and the offsets at
// which it is to be cut, the last of which is its end; none if the contents are not as
// Sign writes them.
func findDevices(payload []byte) (start int, cuts []int) {
	d := json.NewDecoder(bytes.NewReader(payload))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return 0, nil
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0, nil
		}
		if name == "devices" {
			if open, err := d.Token(); err != nil || open != json.Delim('[') {
				return 0, nil
			}
			start = int(d.InputOffset())
			return start, cut(payload, start)
		}
		var other json.RawMessage
		if err := d.Decode(&other); err != nil {
			return 0, nil
		}
	}
	return 0, nil
}

// lists returns how many fields of a JSON object encoding/json takes for the devices.
func lists(object []byte) (n int) {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return 0
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0
		}
		if text, ok := name.(string); ok && strings.EqualFold(text, "devices") {
			n++
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return 0
		}
	}
	return n
}

// partSize is how many octets of the list a part has, up to the next comma between two
// devices.
const partSize = 64 << 10

// cut finds the end of the JSON array whose inside begins at start, and commas of its own,
// not of what it holds, some partSize apart. It looks at brackets and strings only: that
// the text between is JSON is for its reader to find. Without an end there are no cuts.
func cut(payload []byte, start int) (cuts []int) {
	depth, begun := 0, start
	for i := start; i < len(payload); i++ {
		switch payload[i] {
		case '"':
			n := stringEnd(payload[i+1:])
			if n < 0 {
				return nil
			}
			i += n
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return append(cuts, i)
			}
			depth--
		case ',':
			if depth == 0 && i-begun >= partSize {
				cuts, begun = append(cuts, i), i+1
			}
		}
	}
	return nil
}

// stringEnd returns how many octets of text a JSON string has whose quote was before it,
// with the quote at its end, or -1.
func stringEnd(text []byte) int {
	for n := 0; n <= len(text); {
		quote := bytes.IndexByte(text[n:], '"')
		if quote < 0 {
			return -1
		}
		backslash := bytes.IndexByte(text[n:n+quote], '\\')
		if backslash < 0 {
			return n + quote + 1
		}
		n += backslash + 2 // what it escapes is no quote
	}
	return -1
}
