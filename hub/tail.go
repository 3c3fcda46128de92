package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/consumer"
)

// tail is what hub tail was told, and how far it has come.
type tail struct {
	filter, from string
	name         string // of the consumer; "": none
	count        int    // messages to print; 0: no end
	follow       bool

	client *admin.Client
	output *command.Output
	w      io.Writer

	place   consumer.Position // the consumer's, as the hub has it
	printed int
}

func newTail(output *command.Output) *cobra.Command {
	var r remote
	t := tail{output: output}
	c := &cobra.Command{
		Use:   "tail [FILTER]",
		Short: "Print what devices have sent, from any moment that is kept, and what follows",
		Long: `Prints the messages of devices that match an MQTT topic filter (default #, everything), in
the order in which the hub accepted them, each with its position in the hub's journal, then
waits for more until Ctrl-C. How far back they are kept is set by journal.retain_age and
retain_bytes in hub.yaml.

With --consumer the hub remembers how far this reader has come: the next run under that name
goes on there. The place is stored after what was printed, so a run that is cut off repeats
some messages and loses none. For a name that is new, --from says where to begin, and FILTER
is kept with it; hub consumer lists, moves and removes them.`,
		Example: "  hub tail 'd/pi-1/#' --from -1h\n  hub tail --from start --follow=false --output json\n  hub tail 'd/+/tele/#' --consumer warehouse",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				t.filter = args[0]
			}
			if err := validFrom(t.from); err != nil {
				return err
			}
			if t.count < 0 {
				return command.Errorf(command.Usage, "--count: %d is less than 0", t.count)
			}
			t.w = c.OutOrStdout()
			return r.do(func(client *admin.Client) error {
				t.client = client
				if err := t.run(c.Context()); !errors.Is(err, context.Canceled) {
					return err
				}
				return nil // Ctrl-C
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&t.from, "from", "now", "`where` to begin: start (of what is kept), now, a position, a time such as 2026-03-01T08:00:00Z, or -1h")
	c.Flags().StringVar(&t.name, "consumer", "", "`name` (a-z, 0-9, -) under which the hub remembers how far this reader has come")
	c.Flags().IntVar(&t.count, "count", 0, "end after so `many` messages (0: don't)")
	c.Flags().BoolVar(&t.follow, "follow", true, "wait for messages that are yet to come")
	return c
}

func (t *tail) run(ctx context.Context) error {
	from, err := t.begin(ctx)
	if err != nil {
		return err
	}
	for {
		q := admin.MessageQuery{Filter: t.filter, From: from, Limit: consumer.MaxLimit}
		if t.follow {
			q.Wait = consumer.MaxWait
		}
		if t.count > 0 {
			q.Limit = min(q.Limit, t.count-t.printed)
		}
		page, err := t.client.Messages(ctx, q)
		if gap, ok := errors.AsType[*consumer.Gap](err); ok {
			if err := t.printGap(gap); err != nil {
				return err
			}
			from = position(gap.First)
			continue
		}
		if err != nil {
			return err
		}
		err = t.print(page.Messages)
		if err == nil {
			err = t.commit(ctx, page.Next)
		}
		if err != nil || t.count > 0 && t.printed == t.count || page.CaughtUp && !t.follow {
			return err
		}
		from = position(page.Next)
	}
}

// begin returns where to begin, and makes the consumer if there is one to make.
func (t *tail) begin(ctx context.Context) (string, error) {
	if t.name == "" {
		if t.from != "now" {
			return t.from, nil
		}
		list, err := t.client.Consumers(ctx) // "now" is to mean the same in the next request
		return position(list.End), err
	}
	one, err := t.client.Consumer(ctx, t.name)
	if errors.Is(err, admin.ErrNotFound) {
		one, err = t.client.CreateConsumer(ctx, t.name, admin.ConsumerPlace{From: t.from, Filter: t.filter})
		if errors.Is(err, admin.ErrMoved) { // made meanwhile
			one, err = t.client.Consumer(ctx, t.name)
		}
	}
	switch {
	case err != nil:
		return "", err
	case one.Sink:
		return "", command.Errorf(command.Usage, "--consumer: %s is a sink's, which reads for itself; choose another name", t.name)
	case t.filter != "" && t.filter != one.Filter:
		return "", command.Errorf(command.Usage, "consumer %s has the filter %s, not %s: leave FILTER out, choose another name, or remove it with `hub consumer delete`", t.name, one.Filter, t.filter)
	}
	t.filter, t.place = one.Filter, one.Next
	return position(one.Next), nil
}

// validFrom refuses what is no place to begin. Whether the journal has it is the hub's to say.
func validFrom(text string) error {
	if text == "start" || text == "now" {
		return nil
	}
	if _, err := strconv.ParseUint(text, 10, 64); err == nil {
		return nil
	}
	if _, err := time.Parse(time.RFC3339, text); err == nil {
		return nil
	}
	if _, err := time.ParseDuration(text); err == nil && strings.HasPrefix(text, "-") {
		return nil
	}
	return command.Errorf(command.Usage, "--from: %.40q is no place to begin: give start, now, a position such as 48213, a time such as 2026-03-01T08:00:00Z, or how long ago such as -1h", text)
}

// commit has the hub remember what was printed, even if the person wants no more.
func (t *tail) commit(ctx context.Context, next consumer.Position) error {
	if t.name == "" || next == t.place {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := t.client.MoveConsumer(ctx, t.name, t.place, admin.ConsumerPlace{Next: next})
	if errors.Is(err, admin.ErrMoved) {
		return fmt.Errorf("%w: does another hub tail run under that name?", err)
	}
	t.place = next
	return err
}

func (t *tail) print(messages []consumer.Message) error {
	for _, m := range messages {
		var err error
		if t.output.JSON() {
			err = t.printJSON(m)
		} else {
			_, err = fmt.Fprintf(t.w, "%d  %s  %s  %s\n", m.Position, m.Time.Local().Format("2006-01-02 15:04:05.000"), printable([]byte(m.Topic)), printable(m.Payload))
		}
		if err != nil {
			return err
		}
		t.printed++
	}
	return nil
}

// tailGap is the line of JSON for what is lost.
type tailGap struct {
	Gap *consumer.Gap `json:"gap"`
}

func (t *tail) printGap(gap *consumer.Gap) error {
	if t.output.JSON() {
		return t.printJSON(tailGap{gap})
	}
	_, err := fmt.Fprintf(t.w, "(lost: %v)\n", gap)
	return err
}

func (t *tail) printJSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(t.w, "%s\n", escapeControls(line))
	return err
}

func position(p consumer.Position) string { return strconv.FormatUint(uint64(p), 10) }
