package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

func eventsCommand() *cobra.Command {
	root := &cobra.Command{Use: "events", Short: "Events in and out"}
	var from, to, where string
	export := &cobra.Command{Use: "export", Short: "Print events, one JSON object a line", Args: cobra.NoArgs, Example: "  cohortbridge events export --from 2026-11-01 --to 2026-11-30"}
	export.Flags().StringVar(&from, "from", "", "first UTC day, yyyy-mm-dd")
	export.Flags().StringVar(&to, "to", "", "last UTC day, yyyy-mm-dd")
	export.Flags().StringVar(&where, "where", "", `only events for which this is true, e.g. properties["plan"] == "pro"`)
	_ = export.MarkFlagRequired("from")
	_ = export.MarkFlagRequired("to")
	export.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		stream, err := ingestionv1.NewDataServiceClient(c.conn).ExportEvents(ctx, &ingestionv1.ExportEventsRequest{Parent: c.project, FromDate: from, ToDate: to, Where: where})
		if err != nil {
			return err
		}
		out := bufio.NewWriter(c.out)
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return out.Flush()
			}
			if err != nil {
				return err
			}
			for _, e := range chunk.GetEvents() {
				line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(e)
				if err != nil {
					return err
				}
				if _, err := out.Write(append(line, '\n')); err != nil {
					return err
				}
			}
		}
	})
	imp := &cobra.Command{
		Use: "import [FILE]", Short: "Import events, one JSON object a line", Args: cobra.MaximumNArgs(1),
		Long: `Imports events, one JSON object a line:
{"event":"App Launched","time":"2026-11-01T10:00:00Z","distinct_id":"u1","insert_id":"a1","properties":{"plan":"pro"}}
Invalid events are reported with their line and make the command fail; the others are stored.`,
	}
	imp.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		in := cmd.InOrStdin()
		size := int64(-1)
		if len(args) == 1 {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read from
			if st, err := f.Stat(); err == nil {
				size = st.Size()
			}
			in = f
		}
		return c.importEvents(ctx, in, size)
	})
	root.AddCommand(export, imp)
	return root
}

const importBatch = 2000

func (c *client) importEvents(ctx context.Context, in io.Reader, size int64) error {
	bar := progressbar.NewOptions64(size, progressbar.OptionSetWriter(c.err), progressbar.OptionSetVisibility(c.showsProgress()), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 1<<20), 2<<20)
	total := &ingestionv1.ImportEventsResponse{}
	var batch []*ingestionv1.Event
	first, line := 0, 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		resp, err := ingestionv1.NewIngestionServiceClient(c.conn).ImportEvents(ctx, &ingestionv1.ImportEventsRequest{Parent: c.project, Events: batch})
		if err != nil {
			return fmt.Errorf("lines %d to %d were not imported: %w", first+1, line, err)
		}
		total.Imported += resp.GetImported()
		total.Duplicates += resp.GetDuplicates()
		for _, f := range resp.GetFailedRecords() {
			f.Index += int32(first)
			total.FailedRecords = append(total.FailedRecords, f)
		}
		batch, first = batch[:0], line
		return nil
	}
	for lines.Scan() {
		line++
		_ = bar.Add(len(lines.Bytes()) + 1)
		e := &ingestionv1.Event{}
		if err := protojson.Unmarshal(lines.Bytes(), e); err != nil {
			return fmt.Errorf("line %d: %w", line, err)
		}
		if batch = append(batch, e); len(batch) == importBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(lines.Err(), flush()); err != nil {
		return err
	}
	_ = bar.Finish()
	var rows []table.Row
	rows = append(rows, table.Row{total.GetImported(), total.GetDuplicates(), len(total.GetFailedRecords())})
	if err := c.print(total, table.Row{"Imported", "Duplicates", "Refused"}, rows); err != nil {
		return err
	}
	if n := len(total.GetFailedRecords()); n > 0 {
		f := total.GetFailedRecords()[0]
		return fmt.Errorf("%d events refused; the first is line %d: %s", n, f.GetIndex()+1, f.GetMessage())
	}
	return nil
}

// ignoreAliasHelp is of commands that look somebody up by an id.
const ignoreAliasHelp = "LEGACY projects: the user who had the id before it became an alias of another"

func profilesCommand() *cobra.Command {
	var literal bool
	root := &cobra.Command{Use: "profiles", Short: "Profiles and identities"}
	get := &cobra.Command{Use: "get ID", Short: "Show the profile of the user an id belongs to", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := ingestionv1.NewDataServiceClient(c.conn).GetProfile(ctx, &ingestionv1.GetProfileRequest{Parent: c.project, DistinctId: args[0], IgnoreAlias: literal})
		if err != nil {
			return err
		}
		return c.printProperties(resp.GetProfile(), resp.GetProfile().GetProperties())
	})}
	group := &cobra.Command{Use: "group KEY ID", Short: "Show the profile of a group", Example: "  cohortbridge profiles group company acme", Args: cobra.ExactArgs(2), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := ingestionv1.NewDataServiceClient(c.conn).GetGroupProfile(ctx, &ingestionv1.GetGroupProfileRequest{Parent: c.project, GroupKey: args[0], GroupId: args[1]})
		if err != nil {
			return err
		}
		return c.printProperties(resp.GetGroupProfile(), resp.GetGroupProfile().GetProperties())
	})}
	identity := &cobra.Command{Use: "identity ID", Short: "Show all ids of a user, and why", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := ingestionv1.NewIdentityServiceClient(c.conn).LookupIdentity(ctx, &ingestionv1.LookupIdentityRequest{Parent: c.project, DistinctId: args[0], IgnoreAlias: literal})
		if err != nil {
			return err
		}
		var rows []table.Row
		if len(resp.GetIds()) == 0 {
			rows = append(rows, table.Row{resp.GetCanonicalId(), "", "", "the id is an alias of another user now", ""})
		}
		for _, l := range resp.GetIds() {
			rows = append(rows, table.Row{l.GetId(), short(l.GetReason().String(), "REASON_"), l.GetLinkedTo(), l.GetExplanation(), l.GetLinkTime().AsTime().Format("2006-01-02 15:04:05")})
		}
		return c.print(resp, table.Row{"ID", "Why", "Linked to", "Explanation", "Since (UTC)"}, rows)
	})}
	rebuild := &cobra.Command{Use: "rebuild-projection", Short: "Make the copy of the profiles that cohorts read anew", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := ingestionv1.NewDataServiceClient(c.conn).RebuildProjection(ctx, &ingestionv1.RebuildProjectionRequest{Parent: c.project})
		if err != nil {
			return err
		}
		return c.print(resp, table.Row{"Profiles"}, []table.Row{{resp.GetProfiles()}})
	})}
	for _, cmd := range []*cobra.Command{get, identity} {
		cmd.Flags().BoolVar(&literal, "ignore-alias", false, ignoreAliasHelp)
	}
	root.AddCommand(get, group, identity, rebuild)
	return root
}

// printProperties prints a profile by its properties.
func (c *client) printProperties(m proto.Message, s *structpb.Struct) error {
	props := s.AsMap()
	rows := make([]table.Row, 0, len(props))
	for _, k := range slices.Sorted(maps.Keys(props)) {
		v, err := json.Marshal(props[k])
		if err != nil {
			return err
		}
		rows = append(rows, table.Row{k, string(v)})
	}
	return c.print(m, table.Row{"Property", "Value"}, rows)
}
