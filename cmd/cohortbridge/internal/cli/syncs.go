package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
)

func syncRow(s *cohortsyncv1.Sync) table.Row {
	state := short(s.GetState().String(), "STATE_")
	if p := s.GetPause(); p != nil {
		state += ": " + p.GetText()
	}
	last := "-"
	if r := s.GetLastRun(); r != nil {
		last = short(r.GetState().String(), "STATE_")
	}
	next := "-"
	if t := s.GetNextRunTime(); t != nil {
		next = t.AsTime().Format("15:04:05")
	}
	return table.Row{id(s.GetName()), id(s.GetCohort()), id(s.GetConnector()), short(s.GetMode().String(), "MODE_"), state, s.GetMembers(), last, next}
}

var syncHeader = table.Row{"ID", "Cohort", "Connector", "Mode", "State", "Members", "Last run", "Next (UTC)"}

func syncsCommand() *cobra.Command {
	root := &cobra.Command{Use: "syncs", Short: "Syncs: a cohort exported through a connector"}
	list := &cobra.Command{Use: "list", Short: "List syncs", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).ListSyncs(ctx, &cohortsyncv1.ListSyncsRequest{Parent: c.project, PageSize: 1000})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, s := range resp.GetSyncs() {
			rows = append(rows, syncRow(s))
		}
		return c.print(resp, syncHeader, rows)
	})}
	get := &cobra.Command{Use: "get ID", Short: "Show a sync", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).GetSync(ctx, &cohortsyncv1.GetSyncRequest{Name: c.name("syncs", args[0])})
		if err != nil {
			return err
		}
		return c.print(resp.GetSync(), syncHeader, []table.Row{syncRow(resp.GetSync())})
	})}
	remove := &cobra.Command{Use: "delete ID", Short: "End a sync; the segment stays", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		_, err := cohortsyncv1.NewSyncServiceClient(c.conn).DeleteSync(ctx, &cohortsyncv1.DeleteSyncRequest{Name: c.name("syncs", args[0])})
		return err
	})}
	var why string
	pause := &cobra.Command{Use: "pause ID", Short: "Stop scheduling a sync", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).PauseSync(ctx, &cohortsyncv1.PauseSyncRequest{Name: c.name("syncs", args[0]), Text: why})
		if err != nil {
			return err
		}
		return c.print(resp.GetSync(), syncHeader, []table.Row{syncRow(resp.GetSync())})
	})}
	pause.Flags().StringVar(&why, "reason", "", "why, shown to others")
	root.AddCommand(list, get, createSyncCommand(), dryRunCommand(), runSyncCommand(), resumeSyncCommand(), pause, remove)
	return root
}

func createSyncCommand() *cobra.Command {
	var cohort, connector, mode string
	var interval time.Duration
	var watch bool
	cmd := &cobra.Command{Use: "create", Short: "Export a cohort, once or again and again", Args: cobra.NoArgs, Example: "  cohortbridge syncs create --cohort 1 --connector 1 --mode DYNAMIC --interval 15m --watch"}
	cmd.Flags().StringVar(&cohort, "cohort", "", "cohort id")
	cmd.Flags().StringVar(&connector, "connector", "", "connector id")
	cmd.Flags().StringVar(&mode, "mode", "ONE_TIME", "ONE_TIME or DYNAMIC")
	cmd.Flags().DurationVar(&interval, "interval", 15*time.Minute, "time between dynamic runs, 1m to 24h")
	cmd.Flags().BoolVar(&watch, "watch", false, "follow the first run")
	_ = cmd.MarkFlagRequired("cohort")
	_ = cmd.MarkFlagRequired("connector")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		m, err := enum(cohortsyncv1.Sync_Mode_value, "--mode", "MODE_", mode)
		if err != nil {
			return err
		}
		s := &cohortsyncv1.Sync{Cohort: c.name("cohorts", cohort), Connector: c.name("connectors", connector), Mode: cohortsyncv1.Sync_Mode(m)}
		if s.GetMode() == cohortsyncv1.Sync_MODE_DYNAMIC {
			s.Interval = durationpb.New(interval)
		}
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).CreateSync(ctx, &cohortsyncv1.CreateSyncRequest{Parent: c.project, Sync: s})
		if err != nil {
			return err
		}
		if watch {
			return c.watch(ctx, resp.GetRun().GetName())
		}
		return c.print(resp.GetSync(), syncHeader, []table.Row{syncRow(resp.GetSync())})
	})
	return cmd
}

func dryRunCommand() *cobra.Command {
	var cohort, connector string
	var full bool
	cmd := &cobra.Command{
		Use: "dry-run [ID]", Short: "Say what a run would do and cost, doing nothing", Args: cobra.MaximumNArgs(1),
		Example: "  cohortbridge syncs dry-run 1\n  cohortbridge syncs dry-run --cohort 1 --connector 1",
	}
	cmd.Flags().StringVar(&cohort, "cohort", "", "cohort of a sync that is not made yet")
	cmd.Flags().StringVar(&connector, "connector", "", "connector of a sync that is not made yet")
	cmd.Flags().BoolVar(&full, "full", false, "as if everyone were sent again")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		req := &cohortsyncv1.DryRunSyncRequest{Parent: c.project, Full: full}
		switch {
		case len(args) == 1:
			req.Sync = c.name("syncs", args[0])
		case cohort != "" && connector != "":
			req.Cohort, req.Connector = c.name("cohorts", cohort), c.name("connectors", connector)
		default:
			return errors.New("give a sync, or --cohort and --connector")
		}
		d, err := cohortsyncv1.NewSyncServiceClient(c.conn).DryRunSync(ctx, req)
		if err != nil {
			return err
		}
		rows := []table.Row{
			{"users in the cohort", d.GetEvaluation().GetUsers()}, {"would be added", d.GetAdded()}, {"would be updated", d.GetUpdated()}, {"would be removed", d.GetRemoved()}, {"are in already", d.GetUnchanged()},
			{"would be left out", d.GetSkipped()}, {"calls", d.GetCalls()}, {"data points (estimate)", d.GetDataPoints()}, {"everyone is sent", d.GetFull()},
		}
		for _, why := range slices.Sorted(maps.Keys(d.GetSkippedByReason())) {
			rows = append(rows, table.Row{"  left out: " + why, d.GetSkippedByReason()[why]})
		}
		for _, kind := range slices.Sorted(maps.Keys(d.GetWarnings())) {
			rows = append(rows, table.Row{"  warning: " + kind, d.GetWarnings()[kind]})
		}
		for _, text := range []string{d.GetBlockedText(), d.GetRefusedText()} {
			if text != "" {
				rows = append(rows, table.Row{"held back", text})
			}
		}
		return c.print(d, table.Row{"What", "Now"}, rows)
	})
	return cmd
}

func runSyncCommand() *cobra.Command {
	var full, watch bool
	cmd := &cobra.Command{Use: "run ID", Short: "Run a sync now", Args: cobra.ExactArgs(1), Example: "  cohortbridge syncs run 1 --watch"}
	cmd.Flags().BoolVar(&full, "full", false, "send everyone again")
	cmd.Flags().BoolVar(&watch, "watch", false, "follow the run")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).RunSync(ctx, &cohortsyncv1.RunSyncRequest{Name: c.name("syncs", args[0]), Full: full})
		if err != nil {
			return err
		}
		return c.follow(ctx, resp.GetRun(), watch)
	})
	return cmd
}

func resumeSyncCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{Use: "resume ID", Short: "Start scheduling a paused sync again", Args: cobra.ExactArgs(1)}
	cmd.Flags().BoolVar(&watch, "watch", false, "follow the run")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewSyncServiceClient(c.conn).ResumeSync(ctx, &cohortsyncv1.ResumeSyncRequest{Name: c.name("syncs", args[0])})
		if err != nil {
			return err
		}
		return c.follow(ctx, resp.GetRun(), watch)
	})
	return cmd
}

func (c *client) follow(ctx context.Context, r *cohortsyncv1.Run, watch bool) error {
	if watch {
		return c.watch(ctx, r.GetName())
	}
	return c.printRun(r)
}

func isFinal(s cohortsyncv1.Run_State) bool {
	switch s {
	case cohortsyncv1.Run_STATE_SUCCEEDED, cohortsyncv1.Run_STATE_PARTIAL, cohortsyncv1.Run_STATE_FAILED, cohortsyncv1.Run_STATE_CANCELLED, cohortsyncv1.Run_STATE_BLOCKED:
		return true
	default:
		return false
	}
}

// watch follows a run with a progress bar and prints its result. A run that did
// not succeed is an error, for scripts.
func (c *client) watch(ctx context.Context, name string) error {
	stream, err := cohortsyncv1.NewRunServiceClient(c.conn).WatchRun(ctx, &cohortsyncv1.WatchRunRequest{Name: name})
	if err != nil {
		return err
	}
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(c.err), progressbar.OptionSetVisibility(c.showsProgress()), progressbar.OptionClearOnFinish(), progressbar.OptionShowCount(), progressbar.OptionSetWidth(30))
	var r *cohortsyncv1.Run
	for r == nil || !isFinal(r.GetState()) {
		resp, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("watching the run broke off; it goes on: %w", err)
		}
		r = resp.GetRun()
		t := r.GetTotals()
		bar.Describe(strings.ToLower(short(r.GetState().String(), "STATE_")))
		if t.GetEvaluated() > 0 {
			bar.ChangeMax64(t.GetEvaluated())
			_ = bar.Set64(t.GetEvaluated() - t.GetPending())
		}
	}
	_ = bar.Finish()
	if err := c.printRun(r); err != nil {
		return err
	}
	if r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		return fmt.Errorf("run %s: %s %s", id(r.GetName()), short(r.GetState().String(), "STATE_"), r.GetReasonText())
	}
	return nil
}

var runHeader = table.Row{"ID", "State", "Evaluated", "Added", "Updated", "Removed", "Unchanged", "Skipped", "Failed", "Pending", "Calls", "Trace", "Why"}

func runRow(r *cohortsyncv1.Run) table.Row {
	t := r.GetTotals()
	skipped := fmt.Sprint(t.GetSkipped())
	var why []string
	for _, k := range slices.Sorted(maps.Keys(t.GetSkippedByReason())) {
		why = append(why, fmt.Sprintf("%s %d", k, t.GetSkippedByReason()[k]))
	}
	if len(why) > 0 {
		skipped += " (" + strings.Join(why, ", ") + ")"
	}
	return table.Row{id(r.GetName()), short(r.GetState().String(), "STATE_"), t.GetEvaluated(), t.GetAdded(), t.GetUpdated(), t.GetRemoved(), t.GetUnchanged(), skipped, t.GetFailed(), t.GetPending(), t.GetCalls(), r.GetTraceId(), r.GetReasonText()}
}

func (c *client) printRun(r *cohortsyncv1.Run) error {
	return c.print(r, runHeader, []table.Row{runRow(r)})
}

func runsCommand() *cobra.Command {
	root := &cobra.Command{Use: "runs", Short: "Runs of a sync", Long: "A run is named SYNC/RUN, e.g. 3/17."}
	api := func(c *client) cohortsyncv1.RunServiceClient { return cohortsyncv1.NewRunServiceClient(c.conn) }
	list := &cobra.Command{Use: "list SYNC", Short: "List runs, newest first", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := api(c).ListRuns(ctx, &cohortsyncv1.ListRunsRequest{Parent: c.name("syncs", args[0])})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, r := range resp.GetRuns() {
			rows = append(rows, runRow(r))
		}
		return c.print(resp, runHeader, rows)
	})}
	runName := func(c *client, arg string) (string, error) {
		if strings.HasPrefix(arg, "projects/") {
			return arg, nil
		}
		s, r, ok := strings.Cut(arg, "/")
		if !ok {
			return "", fmt.Errorf("want SYNC/RUN, e.g. 3/17, got %q", arg)
		}
		return c.project + "/syncs/" + s + "/runs/" + r, nil
	}
	verb := func(use, text string, fn func(ctx context.Context, c *client, name string) error) *cobra.Command {
		return &cobra.Command{Use: use + " SYNC/RUN", Short: text, Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
			n, err := runName(c, args[0])
			if err != nil {
				return err
			}
			return fn(ctx, c, n)
		})}
	}
	root.AddCommand(list,
		verb("get", "Show a run", func(ctx context.Context, c *client, n string) error {
			resp, err := api(c).GetRun(ctx, &cohortsyncv1.GetRunRequest{Name: n})
			if err != nil {
				return err
			}
			return c.printRun(resp.GetRun())
		}),
		verb("watch", "Follow a run to its end", func(ctx context.Context, c *client, n string) error { return c.watch(ctx, n) }),
		verb("cancel", "Stop a run", func(ctx context.Context, c *client, n string) error {
			resp, err := api(c).CancelRun(ctx, &cohortsyncv1.CancelRunRequest{Name: n})
			if err != nil {
				return err
			}
			return c.printRun(resp.GetRun())
		}),
		verb("approve", "Let a blocked run go on", func(ctx context.Context, c *client, n string) error {
			resp, err := api(c).ApproveRun(ctx, &cohortsyncv1.ApproveRunRequest{Name: n})
			if err != nil {
				return err
			}
			return c.printRun(resp.GetRun())
		}),
		runUsersCommand(runName),
	)
	return root
}

func runUsersCommand(runName func(*client, string) (string, error)) *cobra.Command {
	var outcome string
	cmd := &cobra.Command{Use: "users SYNC/RUN", Short: "What happened to each user", Args: cobra.ExactArgs(1), Example: "  cohortbridge runs users 1/2 --outcome FAILED"}
	cmd.Flags().StringVar(&outcome, "outcome", "", "SENT, SKIPPED, FAILED, UNKNOWN or PENDING; all by default")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		n, err := runName(c, args[0])
		if err != nil {
			return err
		}
		req := &cohortsyncv1.ListRunUsersRequest{Parent: n, PageSize: 10000}
		if outcome != "" {
			o, err := enum(cohortsyncv1.RunUser_Outcome_value, "--outcome", "OUTCOME_", outcome)
			if err != nil {
				return err
			}
			req.Outcome = cohortsyncv1.RunUser_Outcome(o)
		}
		all := &cohortsyncv1.ListRunUsersResponse{}
		for {
			resp, err := cohortsyncv1.NewRunServiceClient(c.conn).ListRunUsers(ctx, req)
			if err != nil {
				return err
			}
			all.Users = append(all.Users, resp.GetUsers()...)
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		var rows []table.Row
		for _, u := range all.GetUsers() {
			rows = append(rows, table.Row{u.GetUserNo(), u.GetIdentifier(), short(u.GetOperation().String(), "OPERATION_"), short(u.GetOutcome().String(), "OUTCOME_"), u.GetReason(), strings.Join(u.GetWarnings(), " ")})
		}
		return c.print(all, table.Row{"User", "Identifier", "Operation", "Outcome", "Why", "Warnings"}, rows)
	})
	return cmd
}
