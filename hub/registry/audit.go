package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Outcome says whether what an audit record tells of was done.
type Outcome string

// The outcomes. Requested precedes one of the others where the change itself can't be
// written in the same transaction, such as one to a file: a request that nothing
// follows is one that the hub did not survive.
const (
	OutcomeDone      Outcome = "done"
	OutcomeRefused   Outcome = "refused"
	OutcomeRequested Outcome = "requested"
)

// AuditRecord says who did what to which device or other subject, when, from where.
// Records are appended and never changed.
type AuditRecord struct {
	Number  uint64    `json:"number"` // counts from 1 without gaps; set by the store
	Time    time.Time `json:"time"`
	Actor   string    `json:"actor"`
	Address string    `json:"address,omitempty"`
	Action  string    `json:"action"` // such as device.revoke
	Device  string    `json:"device,omitempty"`
	Subject string    `json:"subject,omitempty"` // what it was done to if that is no device, such as issuer bench-1
	Outcome Outcome   `json:"outcome"`
	Before  State     `json:"before,omitempty"`
	After   State     `json:"after,omitempty"`
	Reason  string    `json:"reason,omitempty"`  // RFC 5280 §5.3.1, or the operator's word
	Note    string    `json:"note,omitempty"`    // the operator's words beside it
	Receipt string    `json:"receipt,omitempty"` // ID of the receipt it belongs to
	Detail  string    `json:"detail,omitempty"`
}

// AuditQuery picks records of the audit log. A zero member picks all.
type AuditQuery struct {
	After   uint64 // records with greater numbers only
	Limit   int    // records at most; 0: none
	Device  string
	Actor   string // the whole name; of a SPIFFE ID also what follows its last slash
	Action  string // such as device.revoke, or device. for all that begin so
	Subject string
	Outcome Outcome
	Receipt string
	Since   time.Time // not before
	Until   time.Time // before
}

// Matches reports whether the query picks the record, its number and limit aside.
func (q AuditQuery) Matches(r AuditRecord) bool {
	switch {
	case q.Device != "" && r.Device != q.Device,
		q.Subject != "" && r.Subject != q.Subject,
		q.Outcome != "" && r.Outcome != q.Outcome,
		q.Receipt != "" && r.Receipt != q.Receipt,
		q.Actor != "" && r.Actor != q.Actor && shortActor(r.Actor) != q.Actor,
		q.Action != "" && !actionMatches(q.Action, r.Action),
		!q.Since.IsZero() && r.Time.Before(q.Since),
		!q.Until.IsZero() && !r.Time.Before(q.Until):
		return false
	}
	return true
}

func actionMatches(want, action string) bool {
	if want[len(want)-1] == '.' {
		return len(action) > len(want) && action[:len(want)] == want
	}
	return action == want
}

// shortActor is the ID in a SPIFFE ID. Other names stand for themselves: what the subject of a
// token ends in is whatever its provider lets people choose.
func shortActor(name string) string {
	if !strings.HasPrefix(name, "spiffe://") {
		return name
	}
	return name[strings.LastIndexByte(name, '/')+1:]
}

// AuditPage is what a query found. Next is the After of the next page, and 0 when the
// log has no more; a page may be empty and still have a next one, since one page looks
// at a bounded number of records.
type AuditPage struct {
	Records []AuditRecord `json:"records"`
	Next    uint64        `json:"next,omitempty"`
}

// AuditHash links an audit record to the one before it.
type AuditHash [sha256.Size]byte

// String returns the hash in lower-case hex.
func (h AuditHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the hash in hex.
func (h AuditHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (h *AuditHash) UnmarshalText(text []byte) error {
	sum, err := hex.DecodeString(string(text))
	if err != nil || len(sum) != len(h) {
		return fmt.Errorf("%.80q is not a SHA-256 in hex", text)
	}
	copy(h[:], sum)
	return nil
}

// Link returns the hash of a record: SHA-256 over the hash of the one before it (zero
// for the first), its number (64 bit, big-endian) and its JSON as stored.
func (h AuditHash) Link(number uint64, record []byte) AuditHash {
	sum := sha256.New()
	sum.Write(h[:])
	sum.Write(binary.BigEndian.AppendUint64(nil, number))
	sum.Write(record)
	var next AuditHash
	sum.Sum(next[:0])
	return next
}

// AuditHead is the end of the audit log at a moment: whoever has it in another place
// can prove that nothing before it was changed or removed since.
type AuditHead struct {
	Number uint64    `json:"number"` // of the last record; 0: the log is empty
	Hash   AuditHash `json:"hash"`
}

// AuditLine is an audit record as it is exported: its JSON as stored, and its hash.
type AuditLine struct {
	Number uint64          `json:"number"`
	Hash   AuditHash       `json:"hash"`
	Record json.RawMessage `json:"record"`
}

// ErrTampered is in the chain of the error about an audit log that isn't as it was
// written.
var ErrTampered = errors.New("the audit log was changed")

// AuditChain follows the audit log record by record. The zero value stands before the
// first one.
type AuditChain struct{ head AuditHead }

// ChainFrom returns a chain that stands at head, for a part of the log.
func ChainFrom(head AuditHead) AuditChain { return AuditChain{head} }

// Head returns where the chain stands.
func (c *AuditChain) Head() AuditHead { return c.head }

// Next takes one more line, or says why it can't follow: ErrTampered with the number of
// the first record that is wrong.
func (c *AuditChain) Next(line AuditLine) error {
	want := c.head.Number + 1
	if line.Number != want {
		return fmt.Errorf("%w: record %d is followed by %d; those between are missing or moved", ErrTampered, c.head.Number, line.Number)
	}
	var r AuditRecord
	if err := json.Unmarshal(line.Record, &r); err != nil || r.Number != want {
		return fmt.Errorf("%w: record %d is not what its number says", ErrTampered, want)
	}
	if c.head.Hash.Link(want, line.Record) != line.Hash {
		return fmt.Errorf("%w: record %d, or the hash that seals it, is not as it was written", ErrTampered, want)
	}
	c.head = AuditHead{Number: want, Hash: line.Hash}
	return nil
}
