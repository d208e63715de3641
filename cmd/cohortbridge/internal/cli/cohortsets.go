package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
)

func uploadCommand() *cobra.Command {
	var mode string
	cmd := &cobra.Command{
		Use: "upload ID [FILE]", Short: "Set, extend or reduce the users of a cohort of uploaded ids", Args: cobra.RangeArgs(1, 2),
		Long: `Uploads a CSV of distinct ids to a cohort whose definition is {"ids":{}}. Its first line names the columns; one of them
is distinct_id or $distinct_id, the others are not looked at. Lines without an id are reported and left out. All of it
takes effect at its end, or nothing of it.`,
		Example: "  echo '{\"ids\":{}}' | cohortbridge cohorts create \"From the shop\"\n  cohortbridge cohorts upload 3 ids.csv",
	}
	cmd.Flags().StringVar(&mode, "mode", "REPLACE", "REPLACE, ADD or REMOVE")
	cmd.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		m, err := enum(cohortsyncv1.UploadIdsRequest_Mode_value, "--mode", "MODE_", mode)
		if err != nil {
			return err
		}
		in, size := cmd.InOrStdin(), int64(-1)
		if len(args) == 2 {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read from
			if st, err := f.Stat(); err == nil {
				size = st.Size()
			}
			in = f
		}
		resp, err := c.upload(ctx, &cohortsyncv1.UploadIdsRequest{Name: c.name("cohorts", args[0]), Mode: cohortsyncv1.UploadIdsRequest_Mode(m)}, in, size)
		if err != nil {
			return err
		}
		if err := c.print(resp, table.Row{"Lines", "Users", "Refused", "Users now"}, []table.Row{{resp.GetLines(), resp.GetUsers(), resp.GetRefused(), resp.GetTotal()}}); err != nil {
			return err
		}
		for _, l := range resp.GetRefusedLines() {
			if c.json {
				break
			}
			if _, err := fmt.Fprintf(c.err, "line %d: %s\n", l.GetLine(), l.GetReason()); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

// uploadPiece is how much of a CSV one message carries.
const uploadPiece = 256 << 10

func (c *client) upload(ctx context.Context, first *cohortsyncv1.UploadIdsRequest, in io.Reader, size int64) (*cohortsyncv1.UploadIdsResponse, error) {
	stream, err := cohortsyncv1.NewCohortServiceClient(c.conn).UploadIds(ctx)
	if err != nil {
		return nil, err
	}
	bar := progressbar.NewOptions64(size, progressbar.OptionSetWriter(c.err), progressbar.OptionSetVisibility(c.showsProgress()), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
	buf := make([]byte, uploadPiece)
	for req, end := first, false; !end; {
		n, err := io.ReadFull(in, buf)
		if end = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); err != nil && !end {
			return nil, err // closing the stream would pass for the end of the CSV
		}
		req.Csv = buf[:n]
		if stream.Send(req) != nil {
			break // the answer says why
		}
		_ = bar.Add(n)
		req = &cohortsyncv1.UploadIdsRequest{}
	}
	_ = bar.Finish()
	return stream.CloseAndRecv()
}

func historyCommand() *cobra.Command {
	var limit int32
	cmd := &cobra.Command{Use: "history ID", Short: "Show a cohort's size over time", Args: cobra.ExactArgs(1)}
	cmd.Flags().Int32Var(&limit, "limit", 100, "how many evaluations, 1 to 1000")
	cmd.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).ListEvaluations(ctx, &cohortsyncv1.ListEvaluationsRequest{Parent: c.name("cohorts", args[0]), PageSize: limit})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, e := range resp.GetEvaluations() {
			row := table.Row{e.GetAsOf().AsTime().Format("2006-01-02 15:04:05"), e.GetUsers(), e.GetIdentifiedUsers(), e.GetVersion(), e.GetDuration().AsDuration(), ""}
			if e.GetReason() != "" { // a failure is no empty cohort
				row[1], row[2], row[5] = "-", "-", e.GetReasonText()
			}
			rows = append(rows, row)
		}
		return c.print(resp, table.Row{"As of (UTC)", "Users", "Identified", "Version", "Time", "Failed"}, rows)
	})
	return cmd
}

func exportCohortsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export [ID...]", Short: "Print definitions as one document, with those they refer to", Example: "  cohortbridge cohorts export > cohorts.json\n  cohortbridge cohorts import cohorts.json --project 2",
		RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
			req := &cohortsyncv1.ExportDefinitionsRequest{Parent: c.project}
			for _, a := range args {
				req.Cohorts = append(req.Cohorts, c.name("cohorts", a))
			}
			resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).ExportDefinitions(ctx, req)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.out, resp.GetDocument())
			return err
		}),
	}
}

func importCohortsCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{Use: "import [FILE]", Short: "Make or change the cohorts of a document, by name: all or none", Args: cobra.MaximumNArgs(1)}
	cmd.Flags().BoolVar(&dry, "validate-only", false, "say what would become of them, changing nothing")
	cmd.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		read := func() ([]byte, error) { return io.ReadAll(cmd.InOrStdin()) }
		if len(args) == 1 {
			read = func() ([]byte, error) { return os.ReadFile(args[0]) }
		}
		doc, err := read()
		if err != nil {
			return err
		}
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).ImportDefinitions(ctx, &cohortsyncv1.ImportDefinitionsRequest{Parent: c.project, Document: string(doc), ValidateOnly: dry})
		if err != nil {
			return err
		}
		var rows []table.Row
		for what, list := range map[string][]*cohortsyncv1.Cohort{"created": resp.GetCreated(), "updated": resp.GetUpdated(), "unchanged": resp.GetUnchanged()} {
			for _, co := range list {
				rows = append(rows, table.Row{co.GetDisplayName(), what, co.GetSummary()})
			}
		}
		return c.print(resp, table.Row{"Name", "What", "Definition"}, rows)
	})
	return cmd
}
