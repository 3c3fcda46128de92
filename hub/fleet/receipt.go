package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/fleethub/fleethub/certs/receipt"
	"github.com/fleethub/fleethub/hub/registry"
)

// maxLines bounds how many devices a receipt names. One for more has their number and
// the digest of their IDs, and the audit log names each with the receipt's ID.
const maxLines = 10_000

// Receipt is the proof that an order was carried out. Of a cut-off: after DurableAt it
// holds through any crash, after EffectiveAt no handshake and no connect of the devices
// is admitted and their tickets are worth nothing, after LastSessionClosedAt no
// connection of theirs is left, and after PurgedAt nothing that was stored of their
// sessions. It is kept signed; Receipts and SignedReceipt return it again.
type Receipt struct {
	ReceiptID   string         `json:"receipt_id"`
	TrustDomain string         `json:"trust_domain"`
	Verb        Verb           `json:"verb"`
	ID          string         `json:"id,omitempty"`      // the device, if the order was for one
	Select      string         `json:"select,omitempty"`  // else what picked them
	State       registry.State `json:"state"`             // that the devices are in
	Before      registry.State `json:"before,omitempty"`  // that the one device was in
	Serials     []string       `json:"serials,omitempty"` // of every certificate of the one device that was revoked
	Reason      string         `json:"reason"`            // RFC 5280 §5.3.1
	Note        string         `json:"note,omitempty"`
	Actor       string         `json:"actor"`
	Address     string         `json:"address,omitempty"`
	Approver    string         `json:"approver,omitempty"` // the second operator
	Already     bool           `json:"already,omitempty"`  // it was done before, at DurableAt; FirstReceipt has the proof

	FirstReceipt string `json:"first_receipt,omitempty"`
	Count        int    `json:"count"`                    // devices that changed
	AlreadyCount int    `json:"already_count,omitempty"`  // picked, but in that state before
	Barred       int    `json:"barred,omitempty"`         // picked, but it couldn't be done to them
	Certificates int    `json:"certificates_revoked"`     // in all
	Digest       string `json:"devices_sha256,omitempty"` // of the IDs, in order, each with a line feed behind it
	Interrupted  bool   `json:"interrupted,omitempty"`    // the hub was stopped meanwhile and finished it at its next start

	RequestedAt         time.Time `json:"requested_at"`
	DurableAt           time.Time `json:"durable_at"`
	EffectiveAt         time.Time `json:"effective_at"`
	LastPacketAt        time.Time `json:"last_packet_at,omitzero"` // the last that was accepted of any of them
	SessionsClosed      int       `json:"sessions_closed"`
	SessionsOpen        int       `json:"sessions_open,omitempty"` // not seen closed in time
	LastSessionClosedAt time.Time `json:"last_session_closed_at,omitzero"`
	PurgedAt            time.Time `json:"purged_at,omitzero"`

	TimeToRevoke *Quantiles      `json:"time_to_revoke,omitempty"` // from the request to each device's last socket closed
	Nodes        []NodeAnswer    `json:"nodes"`                    // hubs that have cut the devices off
	NodesMissing []string        `json:"nodes_missing,omitempty"`  // that were not heard of
	Devices      []ReceiptDevice `json:"devices,omitempty"`

	AuditHead *registry.AuditHead `json:"audit_head,omitempty"` // the audit log with the order in it
	SignedAt  time.Time           `json:"signed_at,omitzero"`
	Problem   string              `json:"problem,omitempty"` // why it is not kept, or not signed
}

// ReceiptDevice is one of several devices in a receipt.
type ReceiptDevice struct {
	ID         string         `json:"id"`
	Before     registry.State `json:"before"`
	Serials    []string       `json:"serials,omitempty"` // of the certificates revoked
	Sessions   int            `json:"sessions,omitempty"`
	ClosedAt   time.Time      `json:"closed_at,omitzero"`
	LastPacket time.Time      `json:"last_packet_at,omitzero"`
}

// Quantiles are of as many devices as had a session, in milliseconds.
type Quantiles struct {
	Of  int     `json:"of"`
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// NodeAnswer says when a hub had cut the devices off.
type NodeAnswer struct {
	Node string    `json:"node"`
	At   time.Time `json:"at"`
}

func newReceipt(f *Fleet, o Order, actor Actor) Receipt {
	return Receipt{
		ReceiptID: o.ID, TrustDomain: f.config.TrustDomain, Verb: o.Verb, ID: o.Device, Select: o.Select.String(), State: verbs[o.Verb].state,
		Reason: o.reason(), Note: o.Note, Actor: actor.Name, Address: actor.Address, RequestedAt: f.config.Now(), Nodes: []NodeAnswer{},
	}
}

// repeat makes it the answer to an order that was carried out before.
func (r *Receipt) repeat(d registry.Device, since registry.Transition) {
	r.Already, r.FirstReceipt, r.Reason, r.Note, r.Before = true, since.Receipt, d.Reason, d.Note, since.From
	r.DurableAt, r.EffectiveAt = since.At, since.At
	r.Serials, r.Count = revokedSerials(&d), 1
}

// count enters whom the order was done to.
func (r *Receipt) count(ids []string, lines []ReceiptDevice) {
	r.Count = len(lines)
	for _, l := range lines {
		r.Certificates += len(l.Serials)
	}
	if r.ID != "" {
		if len(lines) == 1 {
			r.Before, r.Serials = lines[0].Before, lines[0].Serials
		}
		return
	}
	r.Digest = digest(ids)
	if len(lines) <= maxLines {
		r.Devices = lines
	}
}

// close enters what the disconnect found.
func (r *Receipt) close(closed []Closed) {
	places := make(map[string]int, len(r.Devices))
	for i := range r.Devices {
		places[r.Devices[i].ID] = i
	}
	var took []time.Duration
	for _, c := range closed {
		r.SessionsClosed += c.Sessions
		r.SessionsOpen += c.Open
		r.LastSessionClosedAt = later(r.LastSessionClosedAt, c.At)
		r.LastPacketAt = later(r.LastPacketAt, c.LastPacket)
		if c.Sessions > 0 {
			took = append(took, c.At.Sub(r.RequestedAt))
		}
		if i, ok := places[c.ID]; ok {
			r.Devices[i].Sessions, r.Devices[i].ClosedAt, r.Devices[i].LastPacket = c.Sessions, c.At, c.LastPacket
		}
	}
	r.TimeToRevoke = quantiles(took)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// quantiles returns nil if there is nothing to rank.
func quantiles(took []time.Duration) *Quantiles {
	if len(took) == 0 {
		return nil
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		rank := int(math.Ceil(q*float64(len(took)))) - 1
		return float64(took[max(rank, 0)]) / float64(time.Millisecond)
	}
	return &Quantiles{Of: len(took), P50: at(0.5), P99: at(0.99), Max: at(1)}
}

// keep signs a receipt and stores it. What the receipt proves is done by now and stays
// so: if it can't be signed or stored, it says that itself.
func (f *Fleet) keep(ctx context.Context, r *Receipt) {
	ctx = context.WithoutCancel(ctx)
	if err := f.sign(ctx, r); err != nil {
		r.Problem = clip(err.Error())
		f.config.Log.Error("a receipt is not kept", "receipt", r.ReceiptID, "error", err)
	}
}

func (f *Fleet) sign(ctx context.Context, r *Receipt) error {
	r.Nodes = append(r.Nodes, NodeAnswer{f.config.Node, r.EffectiveAt})
	head, err := f.config.Store.AuditHead(ctx)
	if err != nil {
		return err
	}
	r.AuditHead, r.SignedAt = &head, f.config.Now()
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode receipt %s: %w", r.ReceiptID, err)
	}
	var unsigned error
	if f.config.Sign != nil {
		signed, err := f.config.Sign(data)
		if err == nil {
			data = signed
		}
		unsigned = err
	}
	if err := f.config.Store.Commit(ctx, registry.Change{Documents: []registry.Document{{Kind: registry.KindReceipt, ID: r.ReceiptID, Data: data}}}); err != nil {
		return errors.Join(unsigned, err)
	}
	return unsigned
}

// formerly returns the receipt of an order that was carried out under its ID, nil if
// none was.
func (f *Fleet) formerly(ctx context.Context, o Order) (*Receipt, error) {
	r, err := f.Receipt(ctx, o.ID)
	if errors.Is(err, ErrNoOrder) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if r.Verb != o.Verb || r.ID != o.Device || r.Select != o.Select.String() || r.Reason != o.reason() {
		return nil, fmt.Errorf("%w: %s is the receipt of another order (%s %s%s)", ErrOrder, o.ID, r.Verb, r.ID, r.Select)
	}
	return &r, nil
}

// Receipt returns a receipt by its ID, or ErrNoOrder.
func (f *Fleet) Receipt(ctx context.Context, id string) (Receipt, error) {
	data, err := f.SignedReceipt(ctx, id)
	if err != nil {
		return Receipt{}, err
	}
	return readReceipt(data)
}

// SignedReceipt returns a receipt as it was signed, for package certs/receipt, or plain
// JSON if the hub couldn't sign it; or ErrNoOrder.
func (f *Fleet) SignedReceipt(ctx context.Context, id string) ([]byte, error) {
	data, err := f.config.Store.Document(ctx, registry.KindReceipt, id)
	if errors.Is(err, registry.ErrUnknown) {
		return nil, fmt.Errorf("%w: %.80q; `hub receipt list` shows those there are", ErrNoOrder, id)
	}
	return data, err
}

// Receipts returns the receipts after an ID, oldest first, without the devices that they
// name. A limit of 0 means 100, and 1000 is the most. next is the after of the following
// page, empty on the last.
func (f *Fleet) Receipts(ctx context.Context, after string, limit int) (page []Receipt, next string, err error) {
	limit = pageSize(limit)
	documents, err := f.config.Store.Documents(ctx, registry.KindReceipt, after, limit+1)
	if err != nil {
		return nil, "", err
	}
	if len(documents) > limit {
		documents = documents[:limit]
		next = documents[limit-1].ID
	}
	for _, d := range documents {
		r, err := readReceipt(d.Data)
		if err != nil {
			return nil, "", fmt.Errorf("receipt %s: %w", d.ID, err)
		}
		r.Devices = nil
		page = append(page, r)
	}
	return page, next, nil
}

func readReceipt(data []byte) (r Receipt, err error) {
	if len(data) > 0 && data[0] != '{' {
		if data, err = receipt.Payload(data); err != nil {
			return r, err
		}
	}
	return r, json.Unmarshal(data, &r)
}

func revokedSerials(d *registry.Device) []string {
	var serials []string
	for _, c := range d.Certificates {
		if !c.Revoked.IsZero() {
			serials = append(serials, c.Serial)
		}
	}
	return serials
}
