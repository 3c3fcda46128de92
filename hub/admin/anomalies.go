package admin

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Anomalies are the latest cases of devices that behaved as devices don't, since the hub
// started; the audit log has all (action device.anomaly).
type Anomalies struct {
	Anomalies []Anomaly      `json:"anomalies"`        // newest first, one page of them
	Next      string         `json:"next,omitempty"`   // the after of the following page, empty on the last
	Scores    map[string]int `json:"scores,omitempty"` // now, by signal; of one device only
}

// Anomaly is a score of a device that has reached its threshold.
type Anomaly struct {
	At        time.Time `json:"at"`
	Device    string    `json:"device"`
	Signal    string    `json:"signal"`
	Score     int       `json:"score"`
	Threshold int       `json:"threshold"`
	Detail    string    `json:"detail"`
}

func (a *api) listAnomalies(r *http.Request) (Anomalies, error) {
	answer := a.config.Anomalies(r.URL.Query().Get("device"))
	var err error
	answer.Anomalies, answer.Next, err = newestFirst(r, answer.Anomalies, func(n Anomaly) string {
		return n.At.UTC().Format(fixedTime) + "/" + n.Device + "/" + n.Signal
	})
	return answer, err
}

// Anomalies returns the latest anomalies of a device, with its scores, or of all if id is
// empty.
func (c *Client) Anomalies(ctx context.Context, id string) (Anomalies, error) {
	var query url.Values
	if id != "" {
		query = url.Values{"device": {id}}
	}
	var answer Anomalies
	anomalies, err := all(ctx, c, "/v1/anomalies", query, func(a Anomalies) ([]Anomaly, string) {
		answer = a
		return a.Anomalies, a.Next
	})
	answer.Anomalies = anomalies
	return answer, err
}
