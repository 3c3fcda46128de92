package station

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fleethub/fleethub/certs/est"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/certs/issuance"
	"github.com/fleethub/fleethub/certs/pemfile"
	"github.com/fleethub/fleethub/provisioning/ledger"
)

// Limits of tokens and claim certificates.
const (
	maxTokens    = 10_000
	maxTokenLife = 90 * 24 * time.Hour
	maxClaimLife = 366 * 24 * time.Hour
)

// TokenOrder asks for enrolment tokens.
type TokenOrder struct {
	Order string // name or number; "" with ID only: the one that has the ID, or a new one of its own
	ID    string // the one device it is for; "": the order's next that is free
	Count int    // with an Order only
	Valid time.Duration
	Model string   // as in DeviceOrder, of a new order
	OU    []string // as in DeviceOrder, of a new order
}

// Tokens says what was made. It holds secrets.
type Tokens struct {
	Order     string    `json:"order"`
	ID        string    `json:"id,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
	Tokens    []string  `json:"tokens"`
}

// MakeTokens makes tokens, each for one certificate, no more than the order has left to
// issue. They are told once; the ledger keeps their hashes.
func (s *Station) MakeTokens(o TokenOrder) (Tokens, error) {
	if o.Count < 1 || o.Count > maxTokens || o.ID != "" && o.Count > 1 {
		return Tokens{}, errorf(ErrInvalid, "give a count from 1 to %d, and of one device 1", maxTokens)
	}
	if o.Valid <= 0 || o.Valid > maxTokenLife {
		return Tokens{}, errorf(ErrInvalid, "a token can't be good for %s: at most %s", o.Valid, maxTokenLife)
	}
	a, err := s.valid()
	if err != nil {
		return Tokens{}, err
	}
	order, err := s.tokenOrder(a, o)
	if err != nil {
		return Tokens{}, err
	}
	server, err := s.ServerCertificate()
	if err != nil {
		return Tokens{}, err
	}
	made := Tokens{Order: order.String(), ID: o.ID, ExpiresAt: s.now().Add(o.Valid).UTC()}
	var hashes []string
	for range o.Count {
		t := est.NewToken(server.Leaf)
		made.Tokens = append(made.Tokens, t.String())
		hashes = append(hashes, ledger.HashToken(t.Secret))
	}
	return made, refused(s.ledger.AddTokens(s.now(), made.ExpiresAt, order.Number, o.ID, hashes...))
}

func (s *Station) tokenOrder(a *authority, o TokenOrder) (ledger.Order, error) {
	if o.Order != "" {
		return s.FindOrder(o.Order)
	}
	if err := identity.ValidID(o.ID); err != nil {
		return ledger.Order{}, errorf(ErrInvalid, "a token is for an order or for a device: give --order or --id: %w", err)
	}
	asked := ledger.Attributes{Model: o.Model, OU: o.OU}
	if err := validAttributes(asked); err != nil {
		return ledger.Order{}, err
	}
	if existing, _, err := s.ledger.OrderOf(o.ID); err == nil && existing.Kind == ledger.Replacement && !existing.Closed() && existing.Issued < existing.Count {
		return existing, nil
	}
	n, err := s.orderFor(a, &enrolment{ID: o.ID, asked: asked})
	if err != nil {
		return ledger.Order{}, err
	}
	return s.ledger.Order(n)
}

// RevokeToken ends a token, given as it was told.
func (s *Station) RevokeToken(text string) (ledger.Token, error) {
	t, err := est.ParseToken(text)
	if err != nil {
		return ledger.Token{}, errorf(ErrInvalid, "%w", err)
	}
	revoked, err := s.ledger.RevokeToken(s.now(), ledger.HashToken(t.Secret))
	if errors.Is(err, ledger.ErrNotFound) {
		return revoked, errorf(ErrNotFound, "this station made no such token")
	}
	return revoked, err
}

// ClaimOrder asks for a claim certificate.
type ClaimOrder struct {
	Order string // name or number
	Name  string // of the claim; "": the order's
	Max   int    // boards; 0: as many as the order has
	Valid time.Duration
	Out   string // a folder that doesn't have one yet
}

// The files of a claim certificate's folder.
const (
	claimKeyFile  = "claim.key"
	claimCertFile = "claim.crt"
	claimPinFile  = "station.pin"
)

// MakeClaim makes a claim certificate that a batch of boards carry in their images: it
// may enrol, once a board, and nothing else anywhere. It is signed by its own key, so
// that no hub and no other station has a reason to trust it; this one knows it by its
// fingerprint. The folder gets claim.key, claim.crt and station.pin.
func (s *Station) MakeClaim(o ClaimOrder) (ledger.Claim, error) {
	if _, err := s.valid(); err != nil {
		return ledger.Claim{}, err
	}
	order, err := s.FindOrder(o.Order)
	if err != nil {
		return ledger.Claim{}, err
	}
	if o.Max == 0 {
		o.Max = order.Count
	}
	if o.Name == "" {
		o.Name = "claim-" + fmt.Sprint(order.Number)
	}
	if err := identity.ValidID(o.Name); err != nil {
		return ledger.Claim{}, errorf(ErrInvalid, "a claim certificate can't have that name: %w", err)
	}
	if o.Max < 1 || o.Max > order.Count || o.Valid <= 0 || o.Valid > maxClaimLife {
		return ledger.Claim{}, errorf(ErrInvalid, "a claim certificate for order %s is for 1 to %d boards and at most %s", order, order.Count, maxClaimLife)
	}
	out, err := absolute(o.Out)
	if err != nil {
		return ledger.Claim{}, err
	}
	if err := emptyFolder(out); err != nil {
		return ledger.Claim{}, err
	}
	if err := s.ledger.Unclaimed(o.Name); err != nil { // before there are files; AddClaim looks again
		return ledger.Claim{}, refused(err)
	}
	server, err := s.ServerCertificate()
	if err != nil {
		return ledger.Claim{}, err
	}
	key, err := issuance.NewKey()
	if err != nil {
		return ledger.Claim{}, err
	}
	cert, err := selfSigned(key, "claim "+o.Name, nil, nil, s.now())
	if err != nil {
		return ledger.Claim{}, err
	}
	// Known to the ledger last: a kill before leaves a certificate that is good for nothing.
	if err := os.MkdirAll(out, 0o700); err != nil {
		return ledger.Claim{}, err
	}
	if err := errors.Join(
		pemfile.WriteKey(filepath.Join(out, claimKeyFile), key),
		pemfile.WriteCertificates(filepath.Join(out, claimCertFile), cert),
		pemfile.Write(filepath.Join(out, claimPinFile), []byte(est.PinOf(server.Leaf).String()+"\n"), 0o644),
	); err != nil {
		return ledger.Claim{}, err
	}
	c := ledger.Claim{Fingerprint: identity.Fingerprint(cert), Name: o.Name, Order: order.Number, Max: o.Max, ExpiresAt: s.now().Add(o.Valid).UTC()}
	return c, refused(s.ledger.AddClaim(s.now(), c))
}

// emptyFolder refuses a folder that has anything in it: a claim certificate among a
// device's files would go out with that device's key, or that key in a batch's images.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s has files in it already (%s first): a claim certificate needs a folder of its own, choose another one", dir, entries[0].Name())
	}
	return nil
}

// RevokeClaim ends the claim certificates of that name, or the one of that fingerprint.
func (s *Station) RevokeClaim(ref string) ([]ledger.Claim, error) {
	claims, err := s.ledger.Claims()
	if err != nil {
		return nil, err
	}
	var revoked []ledger.Claim
	for _, c := range claims {
		if c.Name != ref && c.Fingerprint != ref {
			continue
		}
		c, err := s.ledger.RevokeClaim(s.now(), c.Fingerprint)
		if err != nil {
			return revoked, err
		}
		revoked = append(revoked, c)
	}
	if len(revoked) == 0 {
		return nil, errorf(ErrNotFound, "this station made no claim certificate %.80q", ref)
	}
	return revoked, nil
}
