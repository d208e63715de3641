package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

const monthHelp = "yyyy-mm in UTC; default the current month"

func usageCommand() *cobra.Command {
	root := &cobra.Command{Use: "usage", Short: "Monthly tracked users"}
	root.AddCommand(usageGet(), usageMonths(), usageBy(), usageExplain(), usageOrganization(), usageRules(), usageReclassify())
	return root
}

func usageGet() *cobra.Command {
	var month string
	get := &cobra.Command{Use: "get", Short: "Show a month", Args: cobra.NoArgs, Example: "  cohortbridge usage get --month 2026-11"}
	get.Flags().StringVar(&month, "month", "", monthHelp)
	get.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		u, err := ingestionv1.NewUsageServiceClient(c.conn).GetUsage(ctx, &ingestionv1.GetUsageRequest{Parent: c.project, Month: month})
		if err != nil {
			return err
		}
		rows := []table.Row{
			{"month", u.GetMonth()}, {"closed", u.GetClosed()}, {"MTU", u.GetMtu()}, {"users with qualifying events", u.GetUsers()}, {"qualifying events", u.GetQualifyingEvents()},
			{"exempt events", u.GetExemptEvents()}, {"users with exempt events only", u.GetExemptOnlyUsers()}, {"events in the guardrail", u.GetGuardrailEvents()}, {"guardrail decides", u.GetGuardrail()}, {"rules", u.GetRulesVersion()},
		}
		for _, k := range slices.Sorted(maps.Keys(u.GetExemptByRule())) {
			rows = append(rows, table.Row{"exempt by " + k, u.GetExemptByRule()[k]})
		}
		return c.print(u, table.Row{"Figure", "Value"}, rows)
	})
	return get
}

func usageMonths() *cobra.Command {
	var until string
	var n int32
	var asCSV bool
	months := &cobra.Command{Use: "months", Short: "List months, as a table, JSON or CSV", Args: cobra.NoArgs, Example: "  cohortbridge usage months --csv > mtu.csv"}
	months.Flags().StringVar(&until, "until", "", "last month, "+monthHelp)
	months.Flags().Int32Var(&n, "months", 12, "how many, 1 to 36")
	months.Flags().BoolVar(&asCSV, "csv", false, "print CSV")
	months.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		api := ingestionv1.NewUsageServiceClient(c.conn)
		if asCSV {
			body, err := api.ExportUsage(ctx, &ingestionv1.ExportUsageRequest{Parent: c.project, Until: until, Months: n})
			if err != nil {
				return err
			}
			_, err = c.out.Write(body.GetData())
			return err
		}
		resp, err := api.ListUsage(ctx, &ingestionv1.ListUsageRequest{Parent: c.project, Until: until, Months: n})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, u := range resp.GetMonths() {
			rows = append(rows, table.Row{u.GetMonth(), u.GetMtu(), u.GetUsers(), u.GetQualifyingEvents(), u.GetExemptEvents(), u.GetExemptOnlyUsers(), u.GetGuardrail(), u.GetClosed()})
		}
		return c.print(resp, table.Row{"Month", "MTU", "Users", "Qualifying events", "Exempt events", "Users with exempt events only", "Guardrail decides", "Closed"}, rows)
	})
	return months
}

func usageBy() *cobra.Command {
	var month string
	by := &cobra.Command{
		Use: "by DAY|SOURCE|EVENT", Short: "Split a month", Args: cobra.ExactArgs(1), ValidArgs: []string{"DAY", "SOURCE", "EVENT"},
		Long:    "Splits a month. A user is counted in every group that has a qualifying event of theirs.",
		Example: "  cohortbridge usage by EVENT --month 2026-11",
	}
	by.Flags().StringVar(&month, "month", "", monthHelp)
	by.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		v, err := enum(ingestionv1.BreakDownUsageRequest_By_value, "by", "BY_", args[0])
		if err != nil {
			return err
		}
		resp, err := ingestionv1.NewUsageServiceClient(c.conn).BreakDownUsage(ctx, &ingestionv1.BreakDownUsageRequest{Parent: c.project, Month: month, By: ingestionv1.BreakDownUsageRequest_By(v)})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, g := range resp.GetGroups() {
			key := g.GetKey()
			if key == "" { // only an event's source can be missing
				key = "(no source)"
			}
			rows = append(rows, table.Row{key, g.GetUsers(), g.GetQualifyingEvents(), g.GetExemptEvents()})
		}
		return c.print(resp, table.Row{short(ingestionv1.BreakDownUsageRequest_By(v).String(), "BY_"), "Users", "Qualifying events", "Exempt events"}, rows)
	})
	return by
}

func usageExplain() *cobra.Command {
	var month string
	var literal bool
	explain := &cobra.Command{Use: "explain ID", Short: "Say whether a user counted, and why", Args: cobra.ExactArgs(1)}
	explain.Flags().StringVar(&month, "month", "", monthHelp)
	explain.Flags().BoolVar(&literal, "ignore-alias", false, ignoreAliasHelp)
	explain.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		e, err := ingestionv1.NewUsageServiceClient(c.conn).ExplainUser(ctx, &ingestionv1.ExplainUserRequest{Parent: c.project, Month: month, DistinctId: args[0], IgnoreAlias: literal})
		if err != nil {
			return err
		}
		return c.print(e, table.Row{"User", "Counted", "Why", "Qualifying events"}, []table.Row{{e.GetCanonicalId(), e.GetCounted(), e.GetExplanation(), e.GetQualifyingEvents()}})
	})
	return explain
}

func usageOrganization() *cobra.Command {
	var month string
	org := &cobra.Command{Use: "organization", Short: "Add up all projects (needs --operator-key-file)", Args: cobra.NoArgs, Example: "  cohortbridge usage organization --operator-key-file data/operator.key"}
	org.Flags().StringVar(&month, "month", "", monthHelp)
	org.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := ingestionv1.NewUsageServiceClient(c.conn).GetOrganizationUsage(ctx, &ingestionv1.GetOrganizationUsageRequest{Month: month})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, p := range resp.GetProjects() {
			rows = append(rows, table.Row{p.GetProject(), p.GetUsage().GetMtu()})
		}
		return c.print(resp, table.Row{"Project", "MTU in " + resp.GetMonth()}, append(rows, table.Row{"all", resp.GetMtu()}))
	})
	return org
}

func usageRules() *cobra.Command {
	return &cobra.Command{Use: "rules", Short: "List the events that don't count", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := ingestionv1.NewUsageServiceClient(c.conn).ListMtuRules(ctx, &ingestionv1.ListMtuRulesRequest{})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, r := range resp.GetRules() {
			rows = append(rows, table.Row{r.GetId(), len(r.GetEvents()), r.GetMarkerProperty(), r.GetMarkerValues()})
		}
		return c.print(resp, table.Row{"Rule", "Events", "Marker", "Values"}, rows)
	})}
}

func usageReclassify() *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use: "reclassify", Short: "Judge stored events again by the rules and settings of now, and wait", Args: cobra.NoArgs,
		Long: `Judges stored events again by the rules and project settings in force now. The
figures of the months it touches change, of closed ones too. It goes on when this
command is interrupted; "usage reclassify" says so while one is running.`,
		Example: "  cohortbridge usage reclassify --from 2026-11-01",
	}
	cmd.Flags().StringVar(&from, "from", "", "first UTC day of event time, yyyy-mm-dd; default the first")
	cmd.Flags().StringVar(&to, "to", "", "last UTC day of event time, yyyy-mm-dd; default the last")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		api := ingestionv1.NewUsageServiceClient(c.conn)
		resp, err := api.CreateReclassification(ctx, &ingestionv1.CreateReclassificationRequest{Parent: c.project, FromDate: from, ToDate: to})
		if err != nil {
			return err
		}
		j := resp.GetReclassification()
		bar := progressbar.NewOptions64(j.GetTotalEvents(), progressbar.OptionSetWriter(c.err), progressbar.OptionSetVisibility(c.showsProgress()), progressbar.OptionClearOnFinish())
		stream, err := api.WatchReclassification(ctx, &ingestionv1.WatchReclassificationRequest{Name: j.GetName()})
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			j = m.GetReclassification()
			_ = bar.Set64(j.GetDoneEvents())
		}
		_ = bar.Finish()
		if err := c.print(j, table.Row{"ID", "State", "Events", "Changed"}, []table.Row{{id(j.GetName()), short(j.GetState().String(), "STATE_"), j.GetDoneEvents(), j.GetChangedEvents()}}); err != nil {
			return err
		}
		if j.GetError() != "" {
			return fmt.Errorf("the reclassification failed: %s", j.GetError())
		}
		return nil
	})
	return cmd
}
