package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/fleethub/fleethub/hub/fleet"
)

// backupMediaType is the content type of a backup.
const backupMediaType = "application/x-tar"

// backup streams a backup. It may take longer than other answers.
func (a *api) backup(w http.ResponseWriter, r *http.Request) {
	// An error means that the deadlines stay: then a large backup ends early, and
	// whoever reads it finds that it is cut off.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", backupMediaType)
	err := a.config.Fleet.Audited(r.Context(), actor(r), fleet.Note{Action: "hub.backup", Subject: "hub"}, func() (string, error) {
		return "", a.config.Backup(r.Context(), w)
	})
	if err != nil {
		a.config.Log.Error("backup failed", "error", err)
		panic(http.ErrAbortHandler) // half of it is sent: the connection must not end well
	}
}

// Backup writes a backup of the hub to w. What was written before an error is of no
// use.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	response, err := c.send(ctx, call{method: http.MethodGet, path: "/v1/backup"})
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(w, response.Body); err != nil {
		return fmt.Errorf("read the backup: %w", err)
	}
	return nil
}
