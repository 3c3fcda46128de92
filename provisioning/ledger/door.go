package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Token lets whoever brings it have one certificate. The ledger keeps its hash only.
type Token struct {
	Order     uint64    `json:"order"`
	ID        string    `json:"id,omitempty"`     // "": the order's next that is free
	Device    string    `json:"device,omitempty"` // the ID it was used for
	KeyHash   string    `json:"key,omitempty"`    // and the key it came with then
	MadeAt    time.Time `json:"made_at"`
	ExpiresAt time.Time `json:"expires_at"`
	UsedAt    time.Time `json:"used_at,omitzero"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// HashToken returns the name the ledger has for a token.
func HashToken(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Claim is a certificate that a batch of boards share. It may enrol, once a board and
// for a number of boards, and nothing else.
type Claim struct {
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate
	Name        string    `json:"name"`
	Order       uint64    `json:"order"`
	Max         int       `json:"max"`  // boards
	Used        int       `json:"used"` // by so many
	MadeAt      time.Time `json:"made_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
}

// AddTokens makes one token of each of the hashes, good until expires for one
// certificate against an open order, and for that ID only if it isn't "". More at once
// than the order has left to issue are refused.
func (l *Ledger) AddTokens(now, expires time.Time, order uint64, id string, hashes ...string) error {
	return l.update(func(tx *bbolt.Tx) error {
		if err := doorable(tx, order); err != nil {
			return refused(err)
		}
		if id != "" {
			if err := tokenable(tx, order, id); err != nil {
				return refused(err)
			}
		}
		if err := enough(tx, order, len(hashes)); err != nil {
			return refused(err)
		}
		t := Token{Order: order, ID: id, MadeAt: now.UTC(), ExpiresAt: expires.UTC()}
		for _, hash := range hashes {
			if err := store(tx.Bucket(tokensBucket), []byte(hash), t); err != nil {
				return err
			}
			if id == "" {
				continue
			}
			if err := tx.Bucket(keptBucket).Put([]byte(id), []byte(hash)); err != nil {
				return err
			}
		}
		return nil
	})
}

// enough returns nil if the order has so many certificates left to issue.
func enough(tx *bbolt.Tx, order uint64, tokens int) error {
	o, err := loadOrder(tx, order)
	if left := o.Count - o.Issued; err == nil && tokens > left {
		err = denied("%d tokens are more than order %d (%s) can use, which has %d of its %d left to issue", tokens, order, o, left, o.Count)
	}
	return err
}

// tokenable returns nil if the order has the ID and no certificate was issued for it.
func tokenable(tx *bbolt.Tx, order uint64, id string) error {
	a := &admission{id: id}
	var err error
	if a.order, err = loadOrder(tx, order); err != nil {
		return err
	}
	if a.known, err = load(tx.Bucket(devicesBucket), []byte(id), &a.record); err != nil {
		return err
	}
	return a.ofOrder(tx)
}

// kept reports whether a token that is still good is for this ID, which so isn't the
// next that is free.
func kept(tx *bbolt.Tx, id string, now time.Time) (bool, error) {
	hash := tx.Bucket(keptBucket).Get([]byte(id))
	if hash == nil {
		return false, nil
	}
	var t Token
	known, err := load(tx.Bucket(tokensBucket), hash, &t)
	return known && usable("", t.RevokedAt, t.ExpiresAt, now) == nil, err
}

// AddClaim makes a claim certificate good. Its fingerprint, name, order, maximum and
// end are the caller's. A name that another has or had is refused: who reads or revokes
// by name must mean one.
func (l *Ledger) AddClaim(now time.Time, c Claim) error {
	return l.update(func(tx *bbolt.Tx) error {
		if err := doorable(tx, c.Order); err != nil {
			return refused(err)
		}
		if err := unclaimed(tx, c.Name); err != nil {
			return refused(err)
		}
		c.MadeAt, c.Used, c.RevokedAt = now.UTC(), 0, time.Time{}
		return store(tx.Bucket(claimsBucket), []byte(c.Fingerprint), c)
	})
}

// Unclaimed returns nil if no claim certificate has or had the name.
func (l *Ledger) Unclaimed(name string) error {
	return l.view(func(tx *bbolt.Tx) error { return unclaimed(tx, name) })
}

// unclaimed returns nil if no claim certificate ever had the name.
func unclaimed(tx *bbolt.Tx, name string) error {
	return tx.Bucket(claimsBucket).ForEach(func(key, data []byte) error {
		var c Claim
		if err := json.Unmarshal(data, &c); err != nil {
			return damaged(key, err)
		}
		if c.Name == name {
			return conflict("a claim certificate %s was made on %s: give this one another --name", name, stamp(c.MadeAt))
		}
		return nil
	})
}

// doorable returns nil if boards can be let in for the order over the network.
func doorable(tx *bbolt.Tx, n uint64) error {
	o, err := loadOrder(tx, n)
	if err != nil {
		return err
	}
	if o.Closed() || o.Issued == o.Count {
		return denied("order %d (%s) is closed, or has nothing left to issue", n, o)
	}
	if o.Kind == Run {
		return denied("order %d (%s) is a batch with folders of its own", n, o)
	}
	return nil
}

// RevokeToken ends a token. What it was used for stays.
func (l *Ledger) RevokeToken(now time.Time, hash string) (Token, error) {
	var t Token
	err := l.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(tokensBucket)
		known, err := load(bucket, []byte(hash), &t)
		if err == nil && !known {
			err = fmt.Errorf("the token is %w", ErrNotFound)
		}
		if err != nil {
			return refused(err)
		}
		if t.RevokedAt.IsZero() {
			t.RevokedAt = now.UTC()
		}
		return store(bucket, []byte(hash), t)
	})
	return t, err
}

// RevokeClaim ends a claim certificate. What it was used for stays.
func (l *Ledger) RevokeClaim(now time.Time, fingerprint string) (Claim, error) {
	var c Claim
	err := l.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(claimsBucket)
		known, err := load(bucket, []byte(fingerprint), &c)
		if err == nil && !known {
			err = fmt.Errorf("the claim certificate %.64s is %w", fingerprint, ErrNotFound)
		}
		if err != nil {
			return refused(err)
		}
		if c.RevokedAt.IsZero() {
			c.RevokedAt = now.UTC()
		}
		return store(bucket, []byte(fingerprint), c)
	})
	return c, err
}

// Claims returns the claim certificates that were made.
func (l *Ledger) Claims() ([]Claim, error) {
	var claims []Claim
	err := l.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(claimsBucket).ForEach(func(key, data []byte) error {
			var c Claim
			if err := json.Unmarshal(data, &c); err != nil {
				return damaged(key, err)
			}
			claims = append(claims, c)
			return nil
		})
	})
	return claims, err
}

// enter finds out which order and ID a token or claim is for, or that its certificate
// was issued before and to the same key.
func (l *Ledger) enter(tx *bbolt.Tx, a *admission, now time.Time) error {
	switch {
	case a.Token != "":
		return l.enterByToken(tx, a, now)
	case a.Claim != "":
		return l.enterByClaim(tx, a, now)
	}
	return nil
}

func (l *Ledger) enterByToken(tx *bbolt.Tx, a *admission, now time.Time) error {
	var t Token
	known, err := load(tx.Bucket(tokensBucket), []byte(a.Token), &t)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("the enrolment token is %w: this station made no such token", ErrCredential)
	}
	a.token, a.Order, a.id = &t, t.Order, t.ID
	if t.Device != "" {
		var record Record
		if _, err := load(tx.Bucket(devicesBucket), []byte(t.Device), &record); err != nil {
			return err
		}
		// A key is its device's from when it is reserved, and for ever once it is certified.
		stands := string(tx.Bucket(keysBucket).Get([]byte(t.KeyHash))) == t.Device
		switch {
		case !stands: // its reservation came to nothing, and is another's by now
		case record.KeyHash == t.KeyHash && a.KeyHash == t.KeyHash && record.State != Reserved:
			a.record, a.known, a.repeated = record, true, true
			return nil
		case record.State != Reserved || record.KeyHash != t.KeyHash:
			return fmt.Errorf("the enrolment token is %w: it was used for %s on %s", ErrCredential, t.Device, stamp(t.UsedAt))
		case l.held.byOther(t.Device, a.KeyHash):
			return fmt.Errorf("%s %w with this token: try again in a moment", t.Device, ErrBusy)
		default:
			a.id = t.Device
		}
	}
	return usable("enrolment token", t.RevokedAt, t.ExpiresAt, now)
}

func (l *Ledger) enterByClaim(tx *bbolt.Tx, a *admission, now time.Time) error {
	var c Claim
	known, err := load(tx.Bucket(claimsBucket), []byte(a.Claim), &c)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("the claim certificate is %w: this station made no such certificate", ErrCredential)
	}
	a.Order, a.id = c.Order, ""
	// The board is known by its key, or by its TPM.
	owner := tx.Bucket(keysBucket).Get([]byte(a.KeyHash))
	if owner == nil && a.EK != "" {
		owner = tx.Bucket(endorsementBucket).Get([]byte(a.EK))
	}
	if owner != nil {
		var record Record
		if _, err := load(tx.Bucket(devicesBucket), owner, &record); err != nil {
			return err
		}
		switch {
		case record.Claim != a.Claim:
			return denied("the board is %s already, which didn't come with this claim certificate", owner)
		case record.State == Reserved && l.held.byOther(record.ID, a.KeyHash):
			return fmt.Errorf("%s %w: try again in a moment", record.ID, ErrBusy)
		case record.State == Reserved:
			a.id = record.ID
		case record.KeyHash == a.KeyHash:
			a.record, a.known, a.repeated = record, true, true
			return nil
		default:
			return denied("the board's TPM is that of %s, which has its certificate; `provisioning replace` gives it another", owner)
		}
	}
	if err := usable("claim certificate", c.RevokedAt, c.ExpiresAt, now); err != nil {
		return err
	}
	if a.id == "" {
		if c.Used >= c.Max {
			return fmt.Errorf("the claim certificate is %w: it was for %d boards, and so many have come", ErrCredential, c.Max)
		}
		a.claim = &c
	}
	return nil
}

func usable(what string, revoked, expires, now time.Time) error {
	if !revoked.IsZero() {
		return fmt.Errorf("the %s is %w: it was revoked on %s", what, ErrCredential, stamp(revoked))
	}
	if !now.Before(expires) {
		return fmt.Errorf("the %s is %w: it was good until %s", what, ErrCredential, stamp(expires))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// use records in token or claim what it was used for.
func (a *admission) use(tx *bbolt.Tx, now time.Time) error {
	if t := a.token; t != nil {
		t.Device, t.KeyHash, t.UsedAt = a.id, a.KeyHash, now.UTC()
		return store(tx.Bucket(tokensBucket), []byte(a.Token), t)
	}
	if c := a.claim; c != nil {
		c.Used++
		return store(tx.Bucket(claimsBucket), []byte(a.Claim), c)
	}
	return nil
}
