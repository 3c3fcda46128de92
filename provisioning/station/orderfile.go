package station

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// maxOrderFile bounds an order's file in bytes: a million devices of one line each.
const maxOrderFile = 64 << 20

// item is a line of an order's file: one device, listed ones, or a run of a pattern.
type item struct {
	ID         string            `json:"id"`
	IDs        []string          `json:"ids"`
	Pattern    string            `json:"pattern"` // such as pi-#####
	Count      int               `json:"count"`   // of the pattern
	First      int               `json:"first"`   // its first counter; 0: after the highest in use
	Model      string            `json:"model"`
	OU         []string          `json:"ou"`
	Labels     map[string]string `json:"labels"`
	Protection ledger.Protection `json:"protection"`
	NotAfter   string            `json:"not_after"` // a day (its end, UTC) or a time of RFC 3339

	fileLine int // of a CSV, where it begins; 0: it has none
}

// parseOrder reads an order: JSON if its first character is a brace, else CSV.
func parseOrder(data []byte) (name string, lines []ledger.Line, err error) {
	if len(data) > maxOrderFile {
		return "", nil, errorf(ErrInvalid, "it has more than %d bytes: make several orders of it", maxOrderFile)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // spreadsheets begin with it
	var items []item
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		name, items, err = parseJSON(data)
	} else {
		items, err = parseCSV(data)
	}
	if err != nil {
		return "", nil, kindError{err, ErrInvalid}
	}
	total := 0
	for i, it := range items {
		line, err := it.line()
		if err != nil && it.fileLine > 0 {
			return "", nil, errorf(ErrInvalid, "line %d of the file: %w", it.fileLine, err)
		}
		if err != nil {
			return "", nil, errorf(ErrInvalid, "entry %d of devices: %w", i+1, err)
		}
		if total += line.Count; total > MaxBatch {
			return "", nil, errorf(ErrInvalid, "it has more than %d devices: make several orders of it", MaxBatch)
		}
		lines = joined(lines, line)
	}
	if total == 0 {
		return "", nil, errorf(ErrInvalid, "it has no devices in it")
	}
	return name, lines, nil
}

// joined appends a line, to the one before if that lists devices of the same kind.
func joined(lines []ledger.Line, line ledger.Line) []ledger.Line {
	if n := len(lines); n > 0 && len(line.IDs) > 0 && len(lines[n-1].IDs) > 0 && same(lines[n-1].Attributes, line.Attributes) {
		last := &lines[n-1]
		last.IDs = append(last.IDs, line.IDs...)
		last.Count = len(last.IDs)
		return lines
	}
	return append(lines, line)
}

func same(a, b ledger.Attributes) bool {
	return a.Model == b.Model && slices.Equal(a.OU, b.OU) && maps.Equal(a.Labels, b.Labels) && a.Protection == b.Protection && a.NotAfter.Equal(b.NotAfter)
}

func (it item) line() (ledger.Line, error) {
	var line ledger.Line
	if it.ID != "" {
		it.IDs = append(it.IDs, it.ID)
	}
	switch {
	case it.Pattern == "" && len(it.IDs) == 0:
		return line, errors.New("it has neither an ID nor a pattern")
	case it.Pattern != "" && len(it.IDs) > 0:
		return line, errors.New("it has both IDs and a pattern")
	case it.Pattern == "" && (it.First != 0 || it.Count != 0 && it.Count != len(it.IDs)):
		return line, errors.New("count and first are for a pattern")
	case it.Pattern != "":
		pattern, err := ledger.ParsePattern(it.Pattern)
		if err != nil {
			return line, err
		}
		if err := identity.ValidID(pattern.ID(ledger.MaxCounter)); err != nil {
			return line, fmt.Errorf("pattern %q can't be used: %w", it.Pattern, err)
		}
		if it.Count < 1 || it.Count > MaxBatch || it.First < 0 || it.First > ledger.MaxCounter {
			return line, fmt.Errorf("a pattern needs a count from 1 to %d", MaxBatch)
		}
		line.Pattern, line.Count, line.First = pattern, it.Count, it.First
	default:
		for _, id := range it.IDs {
			if err := identity.ValidID(id); err != nil {
				return line, err
			}
		}
		line.IDs, line.Count = it.IDs, len(it.IDs)
	}
	notAfter, err := parseDay(it.NotAfter)
	if err != nil {
		return line, err
	}
	line.Attributes = ledger.Attributes{Model: it.Model, OU: it.OU, Labels: it.Labels, Protection: it.Protection, NotAfter: notAfter}
	return line, validAttributes(line.Attributes)
}

// parseDay reads a day, of which the last second is meant, or a time. Empty is zero.
func parseDay(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return day.AddDate(0, 0, 1).Add(-time.Second), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("not_after %.40q is neither a day as 2036-12-31 nor a time as 2036-12-31T23:59:59Z", text)
	}
	return at.UTC(), nil
}

func parseJSON(data []byte) (string, []item, error) {
	var file struct {
		Name    string `json:"name"`
		Devices []item `json:"devices"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return "", nil, fmt.Errorf("its JSON can't be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", nil, errors.New("something follows its JSON")
	}
	return file.Name, file.Devices, nil
}

// columns are the CSV's, by the names in its first line.
func columns() map[string]func(*item, string) error {
	return map[string]func(*item, string) error{
		"id":         func(it *item, v string) error { it.ID = v; return nil },
		"pattern":    func(it *item, v string) error { it.Pattern = v; return nil },
		"count":      func(it *item, v string) error { return wholeNumber(&it.Count, "count", v) },
		"first":      func(it *item, v string) error { return wholeNumber(&it.First, "first", v) },
		"model":      func(it *item, v string) error { it.Model = v; return nil },
		"ou":         func(it *item, v string) error { it.OU = parts(v); return nil },
		"labels":     func(it *item, v string) error { return parseLabels(it, v) },
		"protection": func(it *item, v string) error { it.Protection = ledger.Protection(v); return nil },
		"not_after":  func(it *item, v string) error { it.NotAfter = v; return nil },
	}
}

func parseCSV(data []byte) ([]item, error) {
	r := csv.NewReader(bytes.NewReader(data))
	r.TrimLeadingSpace, r.ReuseRecord = true, true
	header, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("its first line must name the columns, as in id,model,protection: %w", err)
	}
	header, columns := slices.Clone(header), columns()
	for i, name := range header {
		header[i] = strings.TrimSpace(name)
		if columns[header[i]] == nil || slices.Index(header, header[i]) != i {
			return nil, fmt.Errorf("its first line must name columns, each once, of %s; %.40q is not one", strings.Join(slices.Sorted(maps.Keys(columns)), ", "), name)
		}
	}
	var items []item
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return nil, fmt.Errorf("its CSV can't be read: %w", err)
		}
		if len(items) == MaxBatch {
			return nil, fmt.Errorf("it has more than %d lines: make several orders of it", MaxBatch)
		}
		var it item
		it.fileLine, _ = r.FieldPos(0)
		for i, value := range record {
			if value = strings.TrimSpace(value); value == "" {
				continue
			}
			if err := columns[header[i]](&it, value); err != nil {
				line, _ := r.FieldPos(i)
				return nil, fmt.Errorf("line %d of the file: %w", line, err)
			}
		}
		items = append(items, it)
	}
}

// parts splits what stands in one column by semicolons.
func parts(text string) []string {
	list := strings.Split(text, ";")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

func parseLabels(it *item, text string) error {
	it.Labels = make(map[string]string)
	for _, label := range parts(text) {
		key, value, ok := strings.Cut(label, "=")
		if _, twice := it.Labels[key]; !ok || twice {
			return fmt.Errorf("labels %.80q are not of the form line=a;site=b, each once", text)
		}
		it.Labels[key] = value
	}
	return nil
}

func wholeNumber(n *int, name, text string) error {
	var err error
	if *n, err = strconv.Atoi(text); err != nil || *n < 1 {
		return fmt.Errorf("%s %.40q is not a whole number from 1 on", name, text)
	}
	return nil
}
