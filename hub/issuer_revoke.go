package main

import (
	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
)

func newIssuerRevoke(output *command.Output) *cobra.Command {
	var r remote
	var o confirmation
	var reasonName, note string
	c := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take the trust from a station's issuing CA and revoke every device by it; without --confirm, show what that would do",
		Long: `Ends the trust in a station's issuing CA as hub issuer remove does, which cuts all its
devices off at once, and revokes them, which is for good: they stay out though the CA
were trusted again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := revocation.ParseReason(reasonName); err != nil {
				return command.Errorf(command.Usage, "--reason: %w", err)
			}
			return r.do(func(client *admin.Client) error {
				answer, err := client.RevokeIssuer(c.Context(), args[0], admin.SelectionRequest{Reason: reasonName, Note: note, Confirm: o.confirm, Count: o.count})
				if err != nil {
					return err
				}
				return printAnswer(c, output, client, answer, o)
			})
		},
	}
	remoteFlags(c, &r)
	o.flags(c)
	c.Flags().StringVar(&reasonName, "reason", revocation.CACompromise.String(), reasonUsage)
	c.Flags().StringVar(&note, "note", "", "why, in a few `words`, for the record")
	return c
}
