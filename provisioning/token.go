package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/station"
)

func tokenCommand(output *command.Output) *cobra.Command {
	var dir string
	o := station.TokenOrder{Count: 1}
	valid := command.Duration(8 * time.Hour)
	c := &cobra.Command{
		Use:   "token --dir S (--order ORDER | --id ID)",
		Short: "Make enrolment tokens, each good for one device's certificate",
		Long: `Make enrolment tokens, each good for one device's certificate, and print them, one
a line. They are secret, told once, and also say by which key the board knows this
station. With --order each is for the order's next device that is free; with --id for
that one, against the open order that has it or a new one.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o.Valid = time.Duration(valid)
				made, err := s.MakeTokens(o)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), made, func(w io.Writer) error {
					for _, t := range made.Tokens {
						if _, err := fmt.Fprintln(w, t); err != nil {
							return err
						}
					}
					return nil
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&o.Order, "order", "", "the order's `name` or number")
	c.Flags().StringVar(&o.ID, "id", "", "the one device's `ID`")
	c.Flags().IntVar(&o.Count, "count", o.Count, "`number` of tokens, up to what the order has left to issue")
	c.Flags().Var(&valid, "valid", "how long they are good")
	attributeFlags(c, &o.OU, &o.Model)
	c.MarkFlagsOneRequired("order", "id")
	c.AddCommand(tokenRevoke(output))
	return c
}

func tokenRevoke(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "revoke --dir S TOKEN",
		Short: "End a token; a certificate it was used for stays",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				t, err := s.RevokeToken(args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), t, func(w io.Writer) error {
					text := "the token is revoked"
					if t.Device != "" {
						text += ", and was used before, for " + t.Device
					}
					_, err := fmt.Fprintln(w, text)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
