package admin

import (
	"context"
	"net/url"
)

// Policy returns which policy is in force.
func (c *Client) Policy(ctx context.Context) (PolicyState, error) {
	return get[PolicyState](ctx, c, "/v1/policy", nil)
}

// ReloadPolicy has the hub read its policy file again. A file that can't be used is an
// error, and the former policy stays in force.
func (c *Client) ReloadPolicy(ctx context.Context, reason string) (PolicyReload, error) {
	return postWithin[PolicyReload](ctx, c, importTimeout, "/v1/policy/reload", change{Reason: reason})
}

// ExplainPolicy asks what the policy in force decides, and why. An unknown device is an
// error that matches ErrNotFound.
func (c *Client) ExplainPolicy(ctx context.Context, q PolicyQuestion) (PolicyAnswer, error) {
	return get[PolicyAnswer](ctx, c, "/v1/policy/explain", url.Values{
		"role": {string(q.Role)}, "id": {q.ID}, "action": {q.Action.String()}, "topic": {q.Topic},
	})
}
