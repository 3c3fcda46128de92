package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// readAhead is how much is read from a segment at once, at least.
const readAhead = 256 << 10

// window reads through a segment file.
type window struct {
	file  File
	limit int64 // nothing is read from here on
	buf   []byte
	at    int64 // where buf begins in the file
}

// bytes returns n bytes at off, valid until the next call. They must end before limit.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if i := off - w.at; i >= 0 && i+int64(n) <= int64(len(w.buf)) {
		return w.buf[i : i+int64(n)], nil
	}
	want := int(min(max(int64(n), readAhead), w.limit-off))
	if cap(w.buf) < want || cap(w.buf) > 2*max(want, readAhead) {
		w.buf = make([]byte, want)
	}
	w.buf, w.at = w.buf[:want], off
	if _, err := w.file.ReadAt(w.buf, off); err != nil {
		w.buf = w.buf[:0]
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return w.buf[:n], nil
}

// badBatch says why there is no valid batch.
type badBatch struct{ reason string }

func (e *badBatch) Error() string { return e.reason }

// batch returns the batch at off. Its error is a *badBatch if none is there; any other one means that the disk can't be read.
func (w *window) batch(off int64, nonce uint64) (frame, []byte, error) {
	if w.limit-off < batchHeader {
		return frame{}, nil, &badBatch{"there is no room for a batch"}
	}
	head, err := w.bytes(off, batchHeader)
	if err != nil {
		return frame{}, nil, err
	}
	f, ok := decodeFrame(head, nonce)
	if !ok {
		return f, nil, &badBatch{"no batch begins here"}
	}
	if f.size() > w.limit-off {
		return f, nil, &badBatch{"a batch is longer than what is left of the segment"}
	}
	whole, err := w.bytes(off, int(f.size()))
	if err != nil {
		return f, nil, err
	}
	if err := f.check(whole[batchHeader:]); err != nil {
		return f, nil, &badBatch{err.Error()}
	}
	return f, whole[batchHeader:], nil
}

// remains looks at what a segment holds from its last valid batch on: whether a batch begins anywhere after from, and
// where the last byte is that isn't zero (from if there is none).
func remains(file File, nonce uint64, from, size int64) (batchAt, last int64, err error) {
	const chunk = 1 << 20
	last = from
	prefix := order.AppendUint64(nil, nonce)
	buf := make([]byte, min(size-from, chunk+batchHeader))
	zeros := make([]byte, len(buf))
	for off := from; off < size; off += chunk {
		n := int(min(size-off, int64(len(buf))))
		if _, err := file.ReadAt(buf[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, fmt.Errorf("read the journal: %w", err)
		}
		if bytes.Equal(buf[:n], zeros[:n]) {
			continue
		}
		if used := len(bytes.TrimRight(buf[:min(n, chunk)], "\x00")); used > 0 {
			last = off + int64(used)
		}
		for i := 0; ; i++ {
			hit := bytes.Index(buf[i:n], prefix)
			if hit < 0 {
				break
			}
			i += hit
			if _, ok := decodeFrame(buf[i:n], nonce); ok && off+int64(i) > from {
				return off + int64(i), last, nil
			}
		}
	}
	return 0, last, nil
}
