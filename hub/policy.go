package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/certs/identity"
	"github.com/fleethub/fleethub/hub/admin"
	"github.com/fleethub/fleethub/hub/policy"
	"github.com/fleethub/fleethub/hub/server"
)

func newPolicy(output *command.Output) *cobra.Command {
	group := &cobra.Command{Use: "policy", Short: "Who may use which topic: check, test, explain and reload the rules"}
	group.AddCommand(newPolicyShow(output), newPolicyCheck(output), newPolicyTest(output), newPolicyExplain(output), newPolicyReload(output))
	return group
}

func newPolicyShow(output *command.Output) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "show",
		Short: "Show which rules are in force on a running hub",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				state, err := client.Policy(c.Context())
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), state, func(w io.Writer) error { return writePolicyState(w, state) })
			})
		},
	}
	remoteFlags(c, &r)
	return c
}

func writePolicyState(w io.Writer, s admin.PolicyState) error {
	_, err := fmt.Fprintf(w, "%d rules in force since %s\nfrom %s\nsum  %s\n", s.Rules, when(s.Since), s.Source, s.Sum)
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	if s.Refused != "" {
		_, err = fmt.Fprintf(w, "the file as it was at the last reload is NOT in force: %s\n", s.Refused)
	}
	return err
}

func newPolicyReload(output *command.Output) *cobra.Command {
	var r remote
	var reason string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have a running hub read its policy file again, and take what it no longer allows from live and stored sessions",
		Long: `Has a running hub read its policy file again, as SIGHUP does. The rules are in force for
every decision from then on, and subscriptions that they don't allow, of connected clients
and of stored sessions, are removed and counted. A file with a mistake in it changes nothing.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.do(func(client *admin.Client) error {
				report, err := client.ReloadPolicy(c.Context(), reason)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), report, func(w io.Writer) error { return writePolicyReload(w, report) })
			})
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&reason, "reason", "", "why, in a few `words`, for the record")
	return c
}

func writePolicyReload(w io.Writer, r admin.PolicyReload) error {
	if err := writePolicyState(w, r.PolicyState); err != nil {
		return err
	}
	change := "as before"
	if r.Changed {
		change = "changed"
	}
	_, err := fmt.Fprintf(w, "the rules are %s; of %s, %s removed from connected clients, %d from stored ones\n",
		change, countOf(r.Sessions, "session"), countOf(r.Live, "subscription"), r.Stored)
	for _, s := range r.Removed {
		fmt.Fprintf(w, "  %s  %s\n", s.Session, s.Filter)
	}
	if more := r.Live + r.Stored - len(r.Removed); more > 0 {
		_, err = fmt.Fprintf(w, "  and %d more\n", more)
	}
	return err
}

// policyReport is what hub policy check prints.
type policyReport struct {
	File     string   `json:"file"`
	Rules    int      `json:"rules"`
	Sum      string   `json:"sum"`
	Warnings []string `json:"warnings,omitempty"`
}

func newPolicyCheck(output *command.Output) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a policy file: what is wrong with it, and what is probably not meant",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := policyOf(args[0])
			if err != nil {
				return err
			}
			report := policyReport{args[0], p.Rules(), p.Sum(), p.Warnings()}
			return output.Print(c.OutOrStdout(), report, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: good, %s\nsum %s\n", report.File, countOf(report.Rules, "rule"), report.Sum)
				for _, warning := range report.Warnings {
					fmt.Fprintf(w, "warning: %s\n", warning)
				}
				return err
			})
		},
	}
}

// maxPolicyFile is how large a file with rules or expected decisions may be: more than hub/policy takes.
const maxPolicyFile = 2 << 20

// policyOf reads a policy; what is wrong with it exits 78.
func policyOf(file string) (*policy.Policy, error) {
	data, err := readBounded(file, maxPolicyFile)
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse(data)
	if err != nil {
		return nil, command.Errorf(command.BadConfig, "%s: %w", file, err)
	}
	return p, nil
}

// policyTestReport is what hub policy test prints.
type policyTestReport struct {
	Policy    string            `json:"policy"`
	Decisions int               `json:"decisions"`
	Surprises []policy.Surprise `json:"surprises,omitempty"`
}

func newPolicyTest(output *command.Output) *cobra.Command {
	var dir, file string
	c := &cobra.Command{
		Use:   "test FILE",
		Short: "Hold a policy against a file of expected decisions",
		Long: `Holds a policy, by default the file of the hub in --dir, against expected decisions:

  tests:
    - who: {role: device, id: pi-1, label: {site: north}, protection: tpm}
      allowed:
        publish: [d/pi-1/tele/machine]
        subscribe: [d/pi-1/cmd/#, g/site=north/cmd/#]
      denied:
        subscribe: ["#", d/pi-2/cmd/#]
    - who: {role: service, id: grafana, ou: [monitoring]}
      by: service-system        # the rule that decides; may be left out
      allowed: {subscribe: $SYS/#}

Any other decision is named with its reason, and the exit code is 1.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, source, err := policyFor(dir, file)
			if err != nil {
				return err
			}
			data, err := readBounded(args[0], maxPolicyFile)
			if err != nil {
				return err
			}
			expected, err := policy.ParseExpectations(data)
			if err != nil {
				return command.Errorf(command.BadConfig, "%s: %w", args[0], err)
			}
			report := policyTestReport{Policy: source}
			if report.Decisions, report.Surprises, err = expected.Check(p); err != nil {
				return err
			}
			if err := output.Print(c.OutOrStdout(), report, report.write); err != nil {
				return err
			}
			if n := len(report.Surprises); n > 0 {
				return fmt.Errorf("%d of %d decisions by %s are not as %s expects", n, report.Decisions, source, args[0])
			}
			return nil
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&file, "policy", "", "a policy `file` (default: that of the hub in --dir)")
	return c
}

func (r policyTestReport) write(w io.Writer) error {
	for _, s := range r.Surprises {
		got := "denied"
		if s.Got.Allowed {
			got = "allowed"
		}
		fmt.Fprintf(w, "test %d: %s, %s %q: expected %s, is %s: %s\n", s.Test, s.Got.Who, s.Got.Action, s.Got.Topic, s.Expected, got, s.Got.Why)
	}
	_, err := fmt.Fprintf(w, "%s by %s, %d not as expected\n", countOf(r.Decisions, "decision"), r.Policy, len(r.Surprises))
	return err
}

// policyFor returns a policy file or, without one, the policy of the hub in dir.
func policyFor(dir, file string) (*policy.Policy, string, error) {
	if file != "" {
		p, err := policyOf(file)
		return p, file, err
	}
	config, err := loadConfig(dir)
	if err != nil {
		return nil, "", err
	}
	p, source, err := server.ReadPolicy(config)
	return p, source, command.WithCode(command.BadConfig, err)
}

func newPolicyExplain(output *command.Output) *cobra.Command {
	var r remote
	var file, role string
	var who policy.Who
	var labels []string
	c := &cobra.Command{
		Use:   "explain ID publish|subscribe|receive TOPIC",
		Short: "Say which rule decides, and why",
		Long: `Asks a running hub what it decides about a device or service, by the rules in force and
what it knows now. With --policy, it decides by that file about a subject that the other
flags describe, and asks nobody.`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			action, err := policy.ParseAction(args[1])
			if err != nil {
				return command.WithCode(command.Usage, err)
			}
			who.Role, who.ID = identity.Role(role), args[0]
			if who.Role != identity.RoleDevice && who.Role != identity.RoleService {
				return command.Errorf(command.Usage, "--role: %.40q is neither device nor service, and nobody else uses topics", role)
			}
			if file == "" {
				for _, name := range describing {
					if c.Flags().Changed(name) {
						return command.Errorf(command.Usage, "--%s describes a subject for --policy; a running hub knows whom it has", name)
					}
				}
				q := admin.PolicyQuestion{Role: who.Role, ID: who.ID, Action: action, Topic: args[2]}
				return r.do(func(client *admin.Client) error {
					answer, err := client.ExplainPolicy(c.Context(), q)
					if err != nil {
						return err
					}
					return output.Print(c.OutOrStdout(), answer, func(w io.Writer) error { return writeExplanation(w, answer) })
				})
			}
			p, err := policyOf(file)
			if err != nil {
				return err
			}
			if who.Label, err = assignments("label", labels); err != nil {
				return err
			}
			subject, err := who.Subject()
			if err != nil {
				return command.WithCode(command.Usage, err)
			}
			e := p.Explain(subject, action, args[2])
			return output.Print(c.OutOrStdout(), e, func(w io.Writer) error { return writeExplanation(w, admin.PolicyAnswer{Explanation: e}) })
		},
	}
	remoteFlags(c, &r)
	c.Flags().StringVar(&role, "role", string(identity.RoleDevice), "`role`: device or service")
	c.Flags().StringVar(&file, "policy", "", "decide by this `file`, not by a running hub")
	c.Flags().StringSliceVar((*[]string)(&who.OU), "ou", nil, "with --policy: organizational `unit` of its certificate; may repeat")
	c.Flags().StringSliceVar((*[]string)(&who.SAN), "san", nil, "with --policy: alternative `name` in its certificate, such as dns:pi-1.example; may repeat")
	c.Flags().StringSliceVar(&labels, "label", nil, "with --policy: `KEY=VALUE`; may repeat")
	c.Flags().StringVar(&who.Model, "model", "", "with --policy: its `model`")
	c.Flags().StringVar(&who.Protection, "protection", "", "with --policy: where its `key` lives, such as tpm")
	c.Flags().StringVar(&who.Batch, "batch", "", "with --policy: its `batch`")
	c.Flags().StringVar(&who.Station, "station", "", "with --policy: its `station`")
	return c
}

// describing are the flags of explain that describe a subject.
var describing = []string{"ou", "san", "label", "model", "protection", "batch", "station"}

func writeExplanation(w io.Writer, a admin.PolicyAnswer) error {
	verdict := "DENIED"
	if a.Allowed {
		verdict = "allowed"
	}
	fmt.Fprintf(w, "%s: %s, %s %q\n  %s\n", verdict, a.Who, a.Action, a.Topic, a.Why)
	if known := knownOf(a.Who); known != "" {
		fmt.Fprintf(w, "  known of it: %s\n", known)
	}
	if a.Who.Unseen {
		fmt.Fprintln(w, "  its certificate isn't known, for it isn't connected: what depends on ou and san counts against it")
	}
	if a.State != "" {
		fmt.Fprintf(w, "  the device is %s; whether it may connect is not a matter of policy\n", a.State)
	}
	if len(a.Considered) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tNAME\t\tTOPIC\t")
	for _, r := range a.Considered {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\n", r.Number, r.Rule, r.Effect, r.Topic, r.Why)
	}
	return t.Flush()
}

func knownOf(who policy.Who) string {
	var words []string
	for _, of := range []struct {
		name   string
		values []string
	}{{"ou", who.OU}, {"san", who.SAN}, {"model", one(who.Model)}, {"protection", one(who.Protection)}, {"batch", one(who.Batch)}, {"station", one(who.Station)}} {
		if len(of.values) > 0 {
			words = append(words, of.name+" "+strings.Join(of.values, ", "))
		}
	}
	if len(who.Label) > 0 {
		words = append(words, "label "+pairs(who.Label))
	}
	return strings.Join(words, "; ")
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
