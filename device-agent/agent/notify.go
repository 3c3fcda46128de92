package agent

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier tells systemd how the agent is, if it was started as a unit of
// Type=notify (sd_notify(3)); otherwise it does nothing. A message that can't
// be delivered is nobody's loss.
type notifier struct{}

func (notifier) ready(id string) {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS=running as "+id)
}

func (notifier) stopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }

func (notifier) status(text string) { _, _ = daemon.SdNotify(false, "STATUS="+text) }

// watchdog reports life at half the interval that WatchdogSec asks for, as
// long as alive comes back true, until ctx ends.
func (notifier) watchdog(ctx context.Context, alive func() bool) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if alive() {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		}
	}
}
