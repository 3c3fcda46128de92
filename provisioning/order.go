package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleethub/fleethub/certs/command"
	"github.com/fleethub/fleethub/provisioning/ledger"
	"github.com/fleethub/fleethub/provisioning/station"
)

func orderCommand(output *command.Output) *cobra.Command {
	c := &cobra.Command{
		Use:   "order",
		Short: "What the station may issue: import, list, show and close orders",
	}
	c.AddCommand(orderImport(output), orderList(output), orderShow(output), orderClose(output))
	return c
}

func orderImport(output *command.Output) *cobra.Command {
	var dir, name string
	c := &cobra.Command{
		Use:   "import --dir S FILE",
		Short: "Open the order in FILE, of CSV or JSON",
		Long: `Open the order in FILE, of CSV or JSON. From then on its devices can be issued, by
token, claim certificate or 'issue', until the order is closed.

The first line of CSV names the columns: id, or pattern with count and, if the counter
is not to go on from the highest, first; and model, ou, labels, protection (tpm,
software or any) and not_after (the certificates' last day), all optional.

  pattern,count,model,ou,labels,protection,not_after
  pi-#####,500,rpi-5,press;line-2,site=bern,tpm,2036-12-31

The same as JSON: {"name": "po-4711", "devices": [{"pattern": "pi-#####", "count": 500,
"model": "rpi-5", "ou": ["press", "line-2"], "labels": {"site": "bern"},
"protection": "tpm", "not_after": "2036-12-31"}]}, and "ids" for a list of IDs.

The same file again is the same order: nothing happens.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o, repeated, err := s.ImportOrder(local(c, args[0]), name)
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), o, func(w io.Writer) error {
					verb := "opened"
					if repeated {
						verb = "was imported already"
					}
					_, err := fmt.Fprintf(w, "order %d (%s) %s: %s, %s to %s\n", o.Number, o.Name, verb, counted(o.Count, "device"), o.First, o.Last)
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&name, "name", "", "the order's `name` (default: the one in FILE, else FILE's own)")
	return c
}

// orderLine is an order with what is left of it, as list and show print it.
type orderLine struct {
	ledger.Order
	Open bool `json:"open"`
}

func orderList(output *command.Output) *cobra.Command {
	var dir string
	var all bool
	c := &cobra.Command{
		Use:   "list --dir S",
		Short: "Show the open orders, or all of them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				orders := []orderLine{}
				err := s.Ledger().Orders(func(o ledger.Order) error {
					if all || !o.Closed() {
						orders = append(orders, orderLine{o, !o.Closed()})
					}
					return nil
				})
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), orders, func(w io.Writer) error { return printOrders(w, orders) })
			})
		},
	}
	dirFlag(c, &dir)
	c.Flags().BoolVar(&all, "all", false, "closed orders, too")
	return c
}

func printOrders(w io.Writer, orders []orderLine) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ORDER\tKIND\tNAME\tDEVICES\tISSUED\tDELIVERED\tSTATE")
	for _, o := range orders {
		state := "open"
		if o.Closed() {
			state = "closed " + o.ClosedAt.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%d\t%d\t%s\n", o.Number, o.Kind, o.Order, o.Count, o.Issued, o.Delivered, state)
	}
	return t.Flush()
}

// orderDetail is what order show prints as JSON.
type orderDetail struct {
	orderLine
	Lines []ledger.Line `json:"lines"`
}

func orderShow(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "show --dir S ORDER",
		Short: "Show an order, by name or number",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o, err := s.FindOrder(args[0])
				if err != nil {
					return err
				}
				d := orderDetail{orderLine: orderLine{o, !o.Closed()}}
				if d.Lines, err = s.Ledger().Lines(o.Number); err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), d, func(w io.Writer) error {
					if err := printOrders(w, []orderLine{d.orderLine}); err != nil {
						return err
					}
					return printLines(w, d.Lines)
				})
			})
		},
	}
	dirFlag(c, &dir)
	return c
}

func printLines(w io.Writer, lines []ledger.Line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICES\tPATTERN\tMODEL\tOU\tLABELS\tPROTECTION\tNOT AFTER")
	for _, l := range lines {
		pattern, protection, notAfter := "(listed)", ledger.AnyProtection, "-"
		if l.Pattern.Width > 0 {
			pattern = l.Pattern.String()
		}
		if l.Protection != "" {
			protection = l.Protection
		}
		if !l.NotAfter.IsZero() {
			notAfter = l.NotAfter.Format(time.DateOnly)
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%q\t%v\t%s\t%s\n", l.Count, pattern, l.Model, l.OU, l.Labels, protection, notAfter)
	}
	return t.Flush()
}

func orderClose(output *command.Output) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "close --dir S ORDER",
		Short: "End an order, by name or number; what it didn't issue it won't",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withStation(c, dir, func(s *station.Station) error {
				o, err := s.CloseOrder(args[0])
				if err != nil {
					return err
				}
				return output.Print(c.OutOrStdout(), o, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "order %d (%s) is closed: it issued %d of %s\n", o.Number, o, o.Issued, counted(o.Count, "device"))
					return err
				})
			})
		},
	}
	dirFlag(c, &dir)
	return c
}
