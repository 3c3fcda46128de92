package station

import (
	"context"
	"errors"
	"fmt"

	"github.com/fleethub/fleethub/provisioning/ledger"
)

// Synced says what a hub was sent.
type Synced struct {
	Manifests int    `json:"manifests"`
	Devices   int    `json:"devices"`
	Last      uint64 `json:"last,omitempty"` // number of the newest that the hub has; 0: none was sent
}

// Sync sends the hub every manifest that it isn't known to have, oldest first, and
// makes new ones until every certificate is in one. Send returns nil once the hub has
// it. A manifest is sent again if the station was killed before it could write that
// down, which changes nothing at the hub; none is ever left out.
func (s *Station) Sync(ctx context.Context, send func(context.Context, []byte) error) (Synced, error) {
	var done Synced
	a, err := s.valid()
	if err != nil {
		return done, err
	}
	for {
		waiting, err := s.ledger.Unsynced()
		if err != nil {
			return done, err
		}
		for _, m := range waiting {
			if err := s.send(ctx, a, m, send); err != nil {
				return done, fmt.Errorf("manifest %d: %w", m.Number, err)
			}
			done.Manifests, done.Devices, done.Last = done.Manifests+1, done.Devices+m.Len(), m.Number
		}
		next, committed, err := s.ledger.NextManifest(maxExport)
		if errors.Is(err, ledger.ErrNothingNew) {
			return done, nil
		}
		if err == nil && !committed {
			_, err = s.ledger.CommitManifest(s.now(), next)
		}
		if err != nil {
			return done, err
		}
	}
}

func (s *Station) send(ctx context.Context, a *authority, m ledger.Manifest, send func(context.Context, []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	signed, err := s.signed(a, m)
	if err != nil {
		return err
	}
	if err := send(ctx, signed); err != nil {
		return err
	}
	return s.ledger.SyncManifest(s.now(), m.Number)
}
