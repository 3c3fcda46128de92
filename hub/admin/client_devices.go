package admin

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/fleet"
)

// NewOrderID makes up an ID for an order's receipt: the time and 32 random bits. Whoever
// repeats an order that got no answer does so under the same one.
func NewOrderID(now time.Time) string {
	var random [4]byte
	rand.Read(random[:])
	return now.UTC().Format("20060102T150405Z-") + hex.EncodeToString(random[:])
}

// Devices returns a page of devices after an ID. A limit of 0 is the hub's default.
func (c *Client) Devices(ctx context.Context, after string, limit int) (DevicePage, error) {
	return c.Select(ctx, "", after, limit)
}

// Select returns a page of the devices that a selector picks (registry.Selector; empty
// picks all), those after an ID.
func (c *Client) Select(ctx context.Context, selector, after string, limit int) (DevicePage, error) {
	query := url.Values{}
	if selector != "" {
		query.Set("select", selector)
	}
	if after != "" {
		query.Set("after", after)
	}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	return get[DevicePage](ctx, c, "/v1/devices", query)
}

// Device returns one device, or an error that matches ErrNotFound.
func (c *Client) Device(ctx context.Context, id string) (Device, error) {
	return get[Device](ctx, c, devicePath(id, ""), nil)
}

// Suspend cuts a device off until Resume.
func (c *Client) Suspend(ctx context.Context, id, note string) (fleet.Receipt, error) {
	return post[fleet.Receipt](ctx, c, devicePath(id, "/suspend"), change{ID: NewOrderID(time.Now()), Note: note})
}

// Resume lifts a suspension.
func (c *Client) Resume(ctx context.Context, id, note string) (Device, error) {
	return post[Device](ctx, c, devicePath(id, "/resume"), change{Note: note})
}

// ApproveDevice lets a quarantined device in.
func (c *Client) ApproveDevice(ctx context.Context, id, note string) (Device, error) {
	return post[Device](ctx, c, devicePath(id, "/approve"), change{Note: note})
}

// PlanRevoke returns what Revoke would do, and changes nothing.
func (c *Client) PlanRevoke(ctx context.Context, id string, reason revocation.Reason) (RevokePlan, error) {
	return c.PlanEnd(ctx, EndRequest{Device: id, Verb: fleet.VerbRevoke, Reason: reason})
}

// Revoke cuts a device off for good.
func (c *Client) Revoke(ctx context.Context, id string, reason revocation.Reason) (fleet.Receipt, error) {
	return c.End(ctx, EndRequest{Device: id, Verb: fleet.VerbRevoke, Reason: reason})
}

// EndRequest is what takes a device out for good: revoke, retire or replace.
type EndRequest struct {
	Device string
	Verb   fleet.Verb
	Reason revocation.Reason // of revoke
	Note   string
	By     string // of replace
}

func (r EndRequest) body(confirm bool) change {
	body := change{Note: r.Note, By: r.By, Confirm: confirm}
	if r.Verb == fleet.VerbRevoke {
		body.Reason = r.Reason.String()
	}
	if confirm {
		body.ID = NewOrderID(time.Now())
	}
	return body
}

// PlanEnd returns what End would do, and changes nothing.
func (c *Client) PlanEnd(ctx context.Context, r EndRequest) (RevokePlan, error) {
	answer, err := post[Revocation](ctx, c, devicePath(r.Device, "/"+string(r.Verb)), r.body(false))
	if err == nil && answer.Plan == nil {
		err = fmt.Errorf("the hub at %s answered without a plan", c.base)
	}
	if err != nil {
		return RevokePlan{}, err
	}
	return *answer.Plan, nil
}

// End takes a device out for good.
func (c *Client) End(ctx context.Context, r EndRequest) (fleet.Receipt, error) {
	answer, err := post[Revocation](ctx, c, devicePath(r.Device, "/"+string(r.Verb)), r.body(true))
	if err == nil && answer.Receipt == nil {
		err = fmt.Errorf("the hub at %s answered without a receipt", c.base)
	}
	if err != nil {
		return fleet.Receipt{}, err
	}
	return *answer.Receipt, nil
}

// Reinstate lets a device that was cut off for good come back with a new certificate, or
// without confirm only says whether it could.
func (c *Client) Reinstate(ctx context.Context, id, note string, confirm bool) (Reinstatement, error) {
	return post[Reinstatement](ctx, c, devicePath(id, "/reinstate"), change{Note: note, Confirm: confirm})
}

// Label changes what a device is known by, or the devices that r.Select picks if id is
// empty; those only with r.Confirm.
func (c *Client) Label(ctx context.Context, id string, r LabelRequest) (LabelAnswer, error) {
	path := "/v1/selections/label"
	if id != "" {
		path = devicePath(id, "/label")
	}
	return postWithin[LabelAnswer](ctx, c, importTimeout, path, r)
}

// Order gives an order for the devices that a selector picks. Without r.Confirm the
// answer is a plan and nothing is changed.
func (c *Client) Order(ctx context.Context, verb fleet.Verb, r SelectionRequest) (SelectionAnswer, error) {
	if r.ID == "" {
		r.ID = NewOrderID(time.Now())
	}
	return postWithin[SelectionAnswer](ctx, c, importTimeout, "/v1/selections/"+string(verb), r)
}

// RevokeIssuer takes the hub's trust from an issuing CA and revokes every device by it.
// Without r.Confirm the answer is a plan and nothing is changed.
func (c *Client) RevokeIssuer(ctx context.Context, name string, r SelectionRequest) (SelectionAnswer, error) {
	if r.ID == "" {
		r.ID = NewOrderID(time.Now())
	}
	return postWithin[SelectionAnswer](ctx, c, importTimeout, issuerPath(name, "/revoke"), r)
}
