package registry

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strconv"
)

// Attributes is what a device has in common with others, and what selectors and policy
// ask about. It is read-only once it is shared.
type Attributes struct {
	Model      string
	Batch      string
	Station    string
	Protection string
	OU         []string
	Issuers    []string // of its usable certificates: subject key identifiers, lower-case hex
	Labels     map[string]string
}

// Append appends the attributes in a form in which equal attributes are equal octets:
// strings with their length before them, lists with their count, labels in order of
// key. ParseAttributes reads it.
func (a *Attributes) Append(dst []byte) []byte {
	for _, s := range []string{a.Model, a.Batch, a.Station, a.Protection} {
		dst = appendString(dst, s)
	}
	for _, list := range [][]string{a.OU, a.Issuers} {
		dst = binary.AppendUvarint(dst, uint64(len(list)))
		for _, s := range list {
			dst = appendString(dst, s)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(a.Labels)))
	for _, key := range slices.Sorted(maps.Keys(a.Labels)) {
		dst = appendString(dst, key)
		dst = appendString(dst, a.Labels[key])
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

var errAttributes = errors.New("the attributes are cut short or malformed")

// ParseAttributes reads what Append wrote, all of it.
func ParseAttributes(data []byte) (Attributes, error) {
	r := attributeReader{rest: data}
	a := Attributes{Model: r.text(), Batch: r.text(), Station: r.text(), Protection: r.text()}
	a.OU, a.Issuers = r.list(), r.list()
	if n := r.count(2); n > 0 {
		a.Labels = make(map[string]string, n)
		for range n {
			key := r.text()
			a.Labels[key] = r.text()
		}
		if len(a.Labels) != n {
			r.bad = true
		}
	}
	if r.bad || len(r.rest) > 0 {
		return Attributes{}, errAttributes
	}
	return a, nil
}

// attributeReader takes apart what Append wrote. After something malformed it yields
// nothing but zeros.
type attributeReader struct {
	rest []byte
	bad  bool
}

// number reads a number of at most limit.
func (r *attributeReader) number(limit int) int {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > uint64(limit) {
		r.bad, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[size:]
	return int(n)
}

// count reads how many things of at least size octets follow.
func (r *attributeReader) count(size int) int { return r.number(len(r.rest) / size) }

func (r *attributeReader) text() string {
	n := r.number(len(r.rest))
	if n > len(r.rest) {
		r.bad, r.rest = true, nil
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

func (r *attributeReader) list() []string {
	n := r.count(1)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.text()
	}
	return list
}

// BatchOf returns what batch a device is of: the one that its station gave it as a
// label, or the manifest that it came with.
func BatchOf(labels map[string]string, station string, manifest uint64) string {
	if batch := labels["batch"]; batch != "" || station == "" {
		return batch
	}
	return station + "." + strconv.FormatUint(manifest, 10)
}
