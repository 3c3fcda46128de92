package scenario

import (
	"bytes"
	"strconv"
	"time"
)

// Payload returns size bytes that a simulated device publishes as its seq-th
// message: a reading as real devices send (protocol.Reading) with one value
// that fills it up, or the end of the bare sequence number where size is too
// small for that.
func Payload(size int, boot string, seq uint64, at time.Time) []byte {
	b := make([]byte, 0, max(size, 128))
	b = append(b, `{"time":"`...)
	b = at.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","boot":`...)
	b = strconv.AppendQuote(b, boot)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	b = append(b, `,"values":{"fill":"`...)
	const end = `"}}`
	if fill := size - len(b) - len(end); fill >= 0 {
		b = append(b, bytes.Repeat([]byte{'x'}, fill)...)
		return append(b, end...)
	}
	digits := strconv.AppendUint(bytes.Repeat([]byte{'0'}, size), seq, 10)
	return digits[len(digits)-size:]
}
