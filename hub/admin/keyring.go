package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/fleethub/fleethub/hub/registry"
)

// How long an answer is kept under its key, and how many, the newest: of all callers, and of
// each, so that nobody's keys push out everybody else's.
const (
	keyLifetime = 24 * time.Hour
	maxKeys     = 4096
	eachKeys    = 512
)

// Answers keeps documents of kind registry.KindAnswer, durably when Commit returns.
// boltstore.Store is one.
type Answers interface {
	Document(ctx context.Context, kind registry.DocumentKind, id string) ([]byte, error)
	Documents(ctx context.Context, kind registry.DocumentKind, after string, limit int) ([]registry.Document, error)
	Commit(ctx context.Context, change registry.Change) error
}

// reply is what is kept under a key.
type reply struct {
	Begun       time.Time `json:"begun"`
	Fingerprint string    `json:"fingerprint"` // of the request
	Order       string    `json:"order"`       // the ID of its order, if it gives one
	Caller      string    `json:"caller"`      // a digest of whose it is; empty in those of before

	// Status is 0 until there is an answer that may be given again.
	Status int         `json:"status,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Body   []byte      `json:"body,omitempty"`
}

func (a reply) write(w http.ResponseWriter) {
	clear(w.Header())
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body) // a client that is gone needs no answer
}

// keyring has the idempotency keys that were used lately. It is safe for concurrent use. Keys
// are known by an ID that doesn't say what they are.
type keyring struct {
	store Answers // nil: there is memory only
	now   func() time.Time
	log   *slog.Logger

	// loading holds one token: whoever takes it may read the store's keys and touch loaded. It
	// is a channel since a caller must be able to give up waiting for a disk.
	loading chan struct{}
	loaded  bool

	mu       sync.Mutex       // guards what follows
	begun    map[string]begun // each that is kept
	memory   map[string]reply // those that the store doesn't have
	underWay map[string]bool
}

// begun is whose a key is, and since when.
type begun struct {
	at     time.Time
	caller string
}

func newKeyring(config Config) *keyring {
	return &keyring{
		store: config.Answers, now: config.Now, log: config.Log, loading: make(chan struct{}, 1),
		begun: make(map[string]begun), memory: make(map[string]reply), underWay: make(map[string]bool),
	}
}

// begin returns what is kept under a key: with a status, the answer; without, what the request is
// to be carried out by, and then the caller ends it. It is refused while the same is under way,
// and if the key is another request's.
func (k *keyring) begin(ctx context.Context, caller, id, fingerprint string) (reply, error) {
	if err := k.claim(id); err != nil {
		return reply{}, err
	}
	known, err := k.open(ctx, caller, id, fingerprint)
	if err != nil || known.Status != 0 {
		k.end(id)
	}
	return known, err
}

// claim takes a key for one request at a time.
func (k *keyring) claim(id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.underWay[id] {
		return problem(http.StatusConflict, codeInProgress, "the request under this idempotency key is being carried out; ask again for its answer")
	}
	k.underWay[id] = true
	return nil
}

// end gives a key free for the next request.
func (k *keyring) end(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.underWay, id)
}

// open finds what is kept under a key, or begins it. Only who has claimed it calls it.
func (k *keyring) open(ctx context.Context, caller, id, fingerprint string) (reply, error) {
	known, err := k.find(ctx, id)
	switch {
	case err != nil:
		return reply{}, err
	case known.Fingerprint == "":
		known = reply{Begun: k.now(), Fingerprint: fingerprint, Order: NewOrderID(k.now()), Caller: digest(caller)}
		k.keep(ctx, id, known)
	case known.Fingerprint != fingerprint:
		return reply{}, problem(http.StatusUnprocessableEntity, codeKeyReused, "this idempotency key was sent with another request within the last day; make up a new one for this")
	}
	return known, nil
}

// find returns what is kept under a key; the zero value if nothing is. Only who has claimed the
// key calls it.
func (k *keyring) find(ctx context.Context, id string) (reply, error) {
	if err := k.load(ctx); err != nil {
		return reply{}, err
	}
	k.mu.Lock()
	own, there := k.begun[id]
	known, inMemory := k.memory[id]
	k.mu.Unlock()
	if !there || k.now().Sub(own.at) > keyLifetime {
		return reply{}, nil
	}
	if inMemory || k.store == nil {
		return known, nil
	}
	data, err := k.store.Document(ctx, registry.KindAnswer, id)
	if errors.Is(err, registry.ErrUnknown) {
		return reply{}, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err != nil {
		return reply{}, fmt.Errorf("look up an idempotency key: %w", err)
	}
	return known, nil
}

// load reads which keys the store has, unless it has been done.
func (k *keyring) load(ctx context.Context) error {
	select {
	case k.loading <- struct{}{}:
		defer func() { <-k.loading }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if k.loaded {
		return nil
	}
	found := make(map[string]begun)
	for after := ""; k.store != nil; {
		page, err := k.store.Documents(ctx, registry.KindAnswer, after, 100)
		if err != nil {
			return fmt.Errorf("read the idempotency keys: %w", err)
		}
		for _, d := range page {
			var known reply
			if err := json.Unmarshal(d.Data, &known); err != nil {
				k.log.Error("an idempotency key can't be read and counts for nothing", "error", err)
			}
			found[d.ID] = begun{known.Begun, known.Caller} // zero: it goes with the first that are too old
			after = d.ID
		}
		if len(page) == 0 {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.Copy(k.begun, found)
	k.loaded = true
	return nil
}

// keep writes down what is known under a key, and removes what is too old or too much, in one
// transaction. If the store can't be written, memory has it until the hub ends.
func (k *keyring) keep(ctx context.Context, id string, known reply) {
	k.mu.Lock()
	k.begun[id] = begun{known.Begun, known.Caller}
	old := k.surplus(id)
	for _, one := range old {
		delete(k.begun, one)
		delete(k.memory, one)
	}
	k.mu.Unlock()
	err := k.write(context.WithoutCancel(ctx), id, known, old)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil && k.store != nil {
		delete(k.memory, id)
		return
	}
	if err != nil {
		k.log.Error("an idempotency key is not durable", "error", err)
	}
	k.memory[id] = known
}

func (k *keyring) write(ctx context.Context, id string, known reply, old []string) error {
	if k.store == nil {
		return nil
	}
	data, err := json.Marshal(known)
	if err != nil {
		return err
	}
	change := registry.Change{Documents: []registry.Document{{Kind: registry.KindAnswer, ID: id, Data: data}}}
	for _, one := range old {
		change.Documents = append(change.Documents, registry.Document{Kind: registry.KindAnswer, ID: one})
	}
	return k.store.Commit(ctx, change)
}

// surplus are the keys that are too old, and the oldest of more than there may be, of the same
// caller's if that has too many: not the one named, nor any under way. Who calls it holds mu.
func (k *keyring) surplus(but string) (old []string) {
	var oldest, own string
	caller, count, now := k.begun[but].caller, 0, k.now()
	for id, b := range k.begun {
		expired := now.Sub(b.at) > keyLifetime
		if b.caller == caller && !expired {
			count++
		}
		switch {
		case id == but || k.underWay[id]:
		case expired:
			old = append(old, id)
		default:
			if oldest == "" || b.at.Before(k.begun[oldest].at) {
				oldest = id
			}
			if b.caller == caller && (own == "" || b.at.Before(k.begun[own].at)) {
				own = id
			}
		}
	}
	switch {
	case own != "" && count > eachKeys:
		return append(old, own)
	case oldest != "" && len(k.begun)-len(old) > maxKeys:
		return append(old, oldest)
	}
	return old
}
