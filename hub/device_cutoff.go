package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/revocation"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/fleet"
	"github.com/fleethub/fleethub/hub/registry"
)

// confirmation is how an operator says that an order is meant, and keeps its proof.
type confirmation struct {
	confirm bool
	count   int
	receipt string
}

func (o *confirmation) flags(c *cobra.Command) {
	c.Flags().BoolVar(&o.confirm, "confirm", false, "do it; without it, only show what it would do")
	c.Flags().IntVar(&o.count, "count", 0, "how many devices you mean; required above 100, refused if there are others by then")
	receiptFlag(c, &o.receipt)
}

func newDeviceSuspend(output *command.Output) *cobra.Command {
	var r remote
	var p picking
	var o confirmation
	var words string
	c := &cobra.Command{
		Use:   "suspend [ID]",
		Short: "Cut a device off until it is resumed, or those that a selector picks (with --confirm)",
		Long:  "Cuts devices off until they are resumed: one at once, several with --confirm.\n\n" + selectHelp,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, selector, err := p.target(args)
			if err != nil {
				return err
			}
			return r.do(func(client *admin.Client) error {
				if selector != "" {
					return orderSelection(c, output, client, fleet.VerbSuspend, admin.SelectionRequest{Select: selector, Note: words}, o)
				}
				receipt, err := client.Suspend(c.Context(), id, words)
				if err != nil {
					return err
				}
				return finishOrder(c, output, client, receipt, o)
			})
		},
	}
	remoteFlags(c, &r)
	p.flags(c)
	o.flags(c)
	c.Flags().StringVar(&words, "reason", "", "why, in a few `words`, for the record")
	return c
}

func newDeviceResume(output *command.Output) *cobra.Command {
	return newDeviceLift(output, fleet.VerbResume, (*admin.Client).Resume, "device %s is %s again and may connect\n", &cobra.Command{
		Use:   "resume [ID]",
		Short: "Lift a suspension, or those of the devices that a selector picks (with --confirm)",
		Long:  "Lifts suspensions: one at once, several with --confirm.\n\n" + selectHelp,
	})
}

// newDeviceLift completes the command c of a verb that lets devices in: one at once, by
// lift, which is told of in the words of a format, or those that a selector picks.
func newDeviceLift(output *command.Output, verb fleet.Verb, lift func(*admin.Client, context.Context, string, string) (admin.Device, error), format string, c *cobra.Command) *cobra.Command {
	var r remote
	var p picking
	var o confirmation
	var words string
	c.Args = cobra.MaximumNArgs(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		id, selector, err := p.target(args)
		if err != nil {
			return err
		}
		return r.do(func(client *admin.Client) error {
			if selector != "" {
				return orderSelection(c, output, client, verb, admin.SelectionRequest{Select: selector, Note: words}, o)
			}
			d, err := lift(client, c.Context(), id, words)
			if err != nil {
				return err
			}
			return output.Print(c.OutOrStdout(), d, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, format, d.ID, d.State)
				return err
			})
		})
	}
	remoteFlags(c, &r)
	p.flags(c)
	o.flags(c)
	c.Flags().StringVar(&words, "reason", "", "why, in a few `words`, for the record")
	return c
}

// reasonUsage names the reasons of RFC 5280 §5.3.1.
const reasonUsage = "RFC 5280 `reason`: keyCompromise, cessationOfOperation, superseded, privilegeWithdrawn, affiliationChanged, cACompromise, aACompromise, unspecified"

func newDeviceRevoke(output *command.Output) *cobra.Command {
	var reasonName string
	c := newDeviceEnd(output, fleet.VerbRevoke, func(e *admin.EndRequest) error {
		reason, err := revocation.ParseReason(reasonName)
		if err != nil {
			return command.Errorf(command.Usage, "--reason: %w", err)
		}
		e.Reason = reason
		return nil
	})
	c.Use = "revoke [ID]"
	c.Short = "Cut a device off for good, or those that a selector picks; without --confirm, show what that would do"
	c.Long = `Cuts devices off for good and revokes every certificate they ever had. They can come
back with a new certificate only (hub device reinstate). The devices of a station's
issuing CA are revoked with hub issuer revoke.

` + selectHelp
	c.Flags().StringVar(&reasonName, "reason", "", reasonUsage)
	c.MarkFlagRequired("reason")
	return c
}

func newDeviceRetire(output *command.Output) *cobra.Command {
	c := newDeviceEnd(output, fleet.VerbRetire, nil)
	c.Use = "retire [ID]"
	c.Short = "Take a device out of service for good, or those that a selector picks; without --confirm, show what that would do"
	c.Long = "Takes devices out of service for good: as revoke, for cessationOfOperation, and shown\nas retired.\n\n" + selectHelp
	return c
}

func newDeviceReplace(output *command.Output) *cobra.Command {
	var by string
	c := newDeviceEnd(output, fleet.VerbReplace, func(e *admin.EndRequest) error {
		e.By = by
		return nil
	})
	c.Use = "replace ID --by OTHER"
	c.Short = "Take a device out of service for good in favour of another; without --confirm, show what that would do"
	c.Args = cobra.ExactArgs(1)
	c.Flags().StringVar(&by, "by", "", "`ID` of the registered device that takes its place")
	c.MarkFlagRequired("by")
	return c
}

// newDeviceEnd returns the command of a verb that takes devices out for good. fill
// completes the request from the command's own flags.
func newDeviceEnd(output *command.Output, verb fleet.Verb, fill func(*admin.EndRequest) error) *cobra.Command {
	var r remote
	var p picking
	var o confirmation
	var note string
	c := &cobra.Command{
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, selector, err := p.target(args)
			if err != nil {
				return err
			}
			e := admin.EndRequest{Device: id, Verb: verb, Note: note}
			if fill != nil {
				if err := fill(&e); err != nil {
					return err
				}
			}
			return r.do(func(client *admin.Client) error {
				if selector != "" {
					request := admin.SelectionRequest{Select: selector, Note: note}
					if verb == fleet.VerbRevoke {
						request.Reason = e.Reason.String()
					}
					return orderSelection(c, output, client, verb, request, o)
				}
				if o.confirm {
					receipt, err := client.End(c.Context(), e)
					if err != nil {
						return err
					}
					return finishOrder(c, output, client, receipt, o)
				}
				plan, err := client.PlanEnd(c.Context(), e)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), plan, func(w io.Writer) error { return writePlan(w, plan) })
			})
		},
	}
	remoteFlags(c, &r)
	if verb != fleet.VerbReplace {
		p.flags(c)
	}
	o.flags(c)
	c.Flags().StringVar(&note, "note", "", "why, in a few `words`, for the record")
	return c
}

func newDeviceReinstate(output *command.Output) *cobra.Command {
	var r remote
	var note string
	var confirm bool
	c := &cobra.Command{
		Use:   "reinstate ID",
		Short: "Let a device that was cut off for good come back with a new certificate",
		Long: `Lets a revoked, retired or replaced device come back: not under any certificate that it
had, but with a new one for a new key, once a station has issued it and its manifest is
imported. Until then the device stays out; the leave is used up by it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return r.do(func(client *admin.Client) error {
				answer, err := client.Reinstate(c.Context(), args[0], note, confirm)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), answer, func(w io.Writer) error {
					d := answer.Device
					if answer.DryRun {
						_, err := fmt.Fprintf(w, "dry run: device %s is %s%s; it could be allowed a new certificate\nnothing was changed; add --confirm to do it\n", d.ID, d.State, because(d.Reason, d.Note))
						return err
					}
					_, err := fmt.Fprintf(w, "device %s is still %s, and may come back with a new certificate for a new key:\nenrol the board again at a station and import its manifest\n", d.ID, d.State)
					return err
				})
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&note, "note", "", "why, in a few `words`, for the record")
	c.Flags().BoolVar(&confirm, "confirm", false, "do it; without it, only show what it would do")
	return c
}

// orderSelection gives an order for those that a selector picks, or shows what it would
// do.
func orderSelection(c *cobra.Command, output *command.Output, client *admin.Client, verb fleet.Verb, request admin.SelectionRequest, o confirmation) error {
	request.Confirm, request.Count = o.confirm, o.count
	answer, err := client.Order(c.Context(), verb, request)
	if err != nil {
		return err
	}
	return printAnswer(c, output, client, answer, o)
}

// printAnswer prints what became of an order for many.
func printAnswer(c *cobra.Command, output *command.Output, client *admin.Client, answer admin.SelectionAnswer, o confirmation) error {
	switch {
	case answer.Receipt != nil && answer.Issuer == nil:
		return finishOrder(c, output, client, *answer.Receipt, o)
	case answer.Receipt != nil:
		if err := saveReceipt(c, client, *answer.Receipt, o.receipt); err != nil {
			return err
		}
	}
	return output.Print(c.OutOrStdout(), answer, func(w io.Writer) error {
		if answer.Issuer != nil {
			if err := writeIssuerReceipt(w, *answer.Issuer); err != nil {
				return err
			}
		}
		switch {
		case answer.Plan != nil:
			return writeRadius(w, *answer.Plan)
		case answer.Receipt != nil:
			return writeReceipt(w, *answer.Receipt)
		case answer.Proposal != nil:
			return writeProposal(w, *answer.Proposal)
		}
		_, err := fmt.Fprintln(w, "it had no devices to revoke")
		return err
	})
}

func writeRadius(w io.Writer, p admin.SelectionPlan) error {
	forGood := ""
	if p.Verb == fleet.VerbRevoke || p.Verb == fleet.VerbRetire {
		forGood = ", for good"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "dry run: %s would be %s%s%s\n", countOf(p.Count, "device"), p.Verb.Past(), because(p.Reason, ""), forGood)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "  %s\t%s\n", name, value)
		}
	}
	row("picked by", p.Select)
	if p.Already+p.Barred > 0 {
		row("picked besides", fmt.Sprintf("%d that are %s already, %d to whom it can't be done", p.Already, p.Verb.Past(), p.Barred))
	}
	var states []string
	for _, s := range registry.States() {
		if n := p.States[s]; n > 0 {
			states = append(states, fmt.Sprintf("%d %s", n, s))
		}
	}
	row("state", strings.Join(states, ", "))
	row("model", shares(p.Models))
	row("batch", shares(p.Batches))
	row("station", shares(p.Stations))
	row("key in", shares(p.Protections))
	row("connected now", fmt.Sprint(p.Online))
	row("seen in 24 hours", fmt.Sprint(p.SeenLately))
	row("certificates", fmt.Sprintf("%d usable now", p.Usable))
	if len(p.Sample) > 0 {
		more := ""
		if p.Count > len(p.Sample) {
			more = ", …"
		}
		row("devices", strings.Join(p.Sample, ", ")+more)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if p.Count == 0 {
		_, err := fmt.Fprintln(w, "nothing would change")
		return err
	}
	count, second := "", ""
	if p.MustCount {
		count = fmt.Sprintf(" --count %d", p.Count)
	}
	if p.FourEyes {
		second = "; a second operator must approve it then"
	}
	_, err := fmt.Fprintf(w, "nothing was changed; add --confirm%s to do it%s\n", count, second)
	return err
}

func shares(all []fleet.Share) string {
	var words []string
	for _, s := range all {
		words = append(words, fmt.Sprintf("%s %d", dash(s.Name), s.Devices))
	}
	return strings.Join(words, ", ")
}

func writePlan(w io.Writer, p admin.RevokePlan) error {
	if p.Already {
		_, err := fmt.Fprintf(w, "device %s is %s already; nothing would change\n", p.ID, p.Verb.Past())
		return err
	}
	session := "it is not connected"
	if p.Session != nil {
		session = fmt.Sprintf("its session from %s would be closed, without its will", p.Session.Address)
	}
	_, err := fmt.Fprintf(w, "dry run: device %s (%s, last seen %s) would be %s for %s, for good\n  certificates revoked: %s\n  %s\nnothing was changed; add --confirm to do it\n",
		p.ID, p.State, when(p.LastSeen), p.Verb.Past(), p.Reason, dash(strings.Join(p.Serials, ", ")), session)
	return err
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
