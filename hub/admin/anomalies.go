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
	Anomalies []Anomaly      `json:"anomalies"`        // newest first
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

func (a *api) listAnomalies(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, a.config.Anomalies(r.URL.Query().Get("device")))
}

// Anomalies returns the latest anomalies of a device, with its scores, or of all if id is
// empty.
func (c *Client) Anomalies(ctx context.Context, id string) (Anomalies, error) {
	var query url.Values
	if id != "" {
		query = url.Values{"device": {id}}
	}
	return get[Anomalies](ctx, c, "/v1/anomalies", query)
}
