package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
)

// ListMediaType is the content type of a certificate revocation list, RFC 2585 §4.2.
const ListMediaType = "application/pkix-crl"

// Lists are the hub's certificate revocation lists: those it signs, and those it has
// taken in from issuers whose key is elsewhere.
type Lists interface {
	Lists(ctx context.Context) ([]CRL, error)
	// List returns the list of an issuer of the hub's own, by name, in DER.
	List(ctx context.Context, name string) ([]byte, error)
	// ImportList takes a foreign issuer's list in, and cuts off whom it revokes. Its
	// error matches one of package revocation's if the list is refused.
	ImportList(ctx context.Context, data []byte, actor fleet.Actor) (CRLReceipt, error)
}

// CRL is one issuer's certificate revocation list.
type CRL struct {
	Issuer     string    `json:"issuer"` // its name
	KeyID      string    `json:"key_id"`
	Own        bool      `json:"own"` // the hub signs it
	Number     string    `json:"number"`
	ThisUpdate time.Time `json:"this_update,omitzero"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int       `json:"entries"`
	Problem    string    `json:"problem,omitempty"` // such as that it is out of date
}

// CRLReceipt says what taking in a list did.
type CRLReceipt struct {
	CRL
	Lifted int      `json:"lifted"` // entries of the list before that this one doesn't have
	Cut    []string `json:"cut"`    // devices revoked or suspended by it
}

// CRLList is one page of the lists that the hub signs or has taken in, in order of issuer.
// Next is the after of the following page, empty on the last.
type CRLList struct {
	Lists []CRL  `json:"lists"`
	Next  string `json:"next,omitempty"`
}

// ListFile is a list as it is signed.
type ListFile struct {
	DER []byte `json:"der"`
}

// ErrNoList is in the chain of the error about a list that there isn't.
var ErrNoList = errors.New("the hub has signed no revocation list of that name")

func (a *api) showLists(r *http.Request) (CRLList, error) {
	lists, err := a.config.Lists.Lists(r.Context())
	if err != nil {
		return CRLList{}, err
	}
	page, next, err := pageOf(r, lists, func(l CRL) string { return l.Issuer + "/" + l.KeyID })
	return CRLList{Lists: page, Next: next}, err
}

func (a *api) showList(r *http.Request) (ListFile, error) {
	der, err := a.config.Lists.List(r.Context(), r.PathValue("name"))
	if errors.Is(err, ErrNoList) {
		err = problem(http.StatusNotFound, codeUnknownIssuer, err.Error())
	}
	return ListFile{DER: der}, err
}

func (a *api) importList(r *http.Request, data []byte) (receipt CRLReceipt, err error) {
	err = a.config.Fleet.Audited(r.Context(), actor(r), fleet.Note{Action: "crl.import", Subject: "revocation list"}, func() (string, error) {
		var err error
		receipt, err = a.config.Lists.ImportList(context.WithoutCancel(r.Context()), data, actor(r))
		return fmt.Sprintf("list %s of issuer %s, %d entries, devices cut off: %d", receipt.Number, receipt.Issuer, receipt.Entries, len(receipt.Cut)), err
	})
	if err != nil {
		err = listProblem(err)
	}
	return receipt, err
}

// listProblem says why a list is refused.
func listProblem(err error) error {
	for _, refusal := range []struct {
		err    error
		status int
		code   string
	}{
		{revocation.ErrMalformed, http.StatusBadRequest, "crl-malformed"},
		{revocation.ErrIssuer, http.StatusUnprocessableEntity, "crl-issuer"},
		{revocation.ErrOlder, http.StatusConflict, "crl-older"},
		{revocation.ErrStale, http.StatusConflict, "crl-stale"},
	} {
		if errors.Is(err, refusal.err) {
			return problem(refusal.status, refusal.code, err.Error())
		}
	}
	return err
}

// Lists returns the hub's revocation lists.
func (c *Client) Lists(ctx context.Context) ([]CRL, error) {
	return all(ctx, c, "/v1/crls", nil, func(l CRLList) ([]CRL, string) { return l.Lists, l.Next })
}

// List returns the revocation list of one of the hub's own issuers, by name, in DER.
func (c *Client) List(ctx context.Context, name string) ([]byte, error) {
	file, err := get[ListFile](ctx, c, "/v1/crls/"+url.PathEscape(name), nil)
	return file.DER, err
}

// ImportList hands a foreign issuer's revocation list, in DER or PEM, to the hub.
func (c *Client) ImportList(ctx context.Context, data []byte) (CRLReceipt, error) {
	return exchange[CRLReceipt](ctx, c, call{method: http.MethodPost, path: "/v1/crls", body: data, contentType: ListMediaType, timeout: importTimeout})
}
