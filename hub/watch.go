package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/hub/admin"
)

func newWatch(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "watch [FILTER]",
		Short: "Print messages as they arrive, until Ctrl-C",
		Long: `Prints the messages that match an MQTT topic filter, as they arrive, retained ones
first. The default filter is # (everything).`,
		Example: "  hub watch 'd/pi-1/#'\n  hub watch 'presence/+' --output json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			filter := "#"
			if len(args) == 1 {
				filter = args[0]
			}
			return r.do(func(client *admin.Client) error {
				err := client.Watch(c.Context(), filter, func(m admin.Message) error { return printMessage(c, output, m) })
				if errors.Is(err, context.Canceled) {
					return nil // Ctrl-C
				}
				return err
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func printMessage(c *cobra.Command, output *command.Output, m admin.Message) error {
	w := c.OutOrStdout()
	if output.JSON() {
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", escapeControls(line))
		return err
	}
	if m.Dropped > 0 {
		if _, err := fmt.Fprintf(w, "(%d messages were not shown: this screen is slower than they come)\n", m.Dropped); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s  %s  %s\n", m.Time.Local().Format("15:04:05.000"), printable([]byte(m.Topic)), printable(m.Payload))
	return err
}

// escapeControls escapes the control characters that JSON lets through, U+007F to
// U+009F: a device must not be able to steer an operator's terminal here either.
func escapeControls(line []byte) []byte {
	var b []byte
	for _, r := range string(line) {
		if r >= 0x7f && r <= 0x9f {
			b = fmt.Appendf(b, "\\u%04x", r)
		} else {
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

// printable shows text as it is and anything else quoted: a device must not be able to
// steer an operator's terminal.
func printable(b []byte) string {
	if utf8.Valid(b) {
		plain := true
		for _, r := range string(b) {
			plain = plain && unicode.IsPrint(r)
		}
		if plain {
			return string(b)
		}
	}
	return strconv.QuoteToGraphic(string(b))
}
