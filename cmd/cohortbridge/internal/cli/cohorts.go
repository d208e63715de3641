package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

func cohortRow(co *cohortsyncv1.Cohort) table.Row {
	size, asOf := "-", "never"
	if e := co.GetLastEvaluation(); e != nil {
		size, asOf = fmt.Sprint(e.GetIdentifiedUsers()), e.GetAsOf().AsTime().Format("2006-01-02 15:04:05")
	}
	return table.Row{id(co.GetName()), co.GetDisplayName(), size, asOf, short(co.GetFreshness().String(), "FRESHNESS_"), co.GetSummary()}
}

var cohortHeader = table.Row{"ID", "Name", "Users", "As of (UTC)", "Freshness", "Definition"}

const definitionHelp = `The definition is JSON, e.g. {"all_of":{"operands":[
  {"behavior":{"events":["Add To Cart"],"threshold":3,"window":{"last":{"amount":30,"unit":"UNIT_DAY"}}}},
  {"not":{"behavior":{"events":["Purchase"],"window":{"last":{"amount":30,"unit":"UNIT_DAY"}}}}}]}}
Its form is cohortbridge.type.v1.Expression: every field is described in
proto/cohortbridge/type/v1/expression.proto and on the page /docs/ of a running system.`

func readDefinition(path string, stdin io.Reader) (*typev1.Expression, error) {
	var b []byte
	var err error
	if path == "-" {
		b, err = io.ReadAll(stdin)
	} else {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, err
	}
	e := &typev1.Expression{}
	if err := protojson.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	return e, nil
}

func cohortsCommand() *cobra.Command {
	root := &cobra.Command{Use: "cohorts", Short: "Cohorts: named sets of users"}
	list := &cobra.Command{Use: "list", Short: "List cohorts", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).ListCohorts(ctx, &cohortsyncv1.ListCohortsRequest{Parent: c.project, PageSize: 1000})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, co := range resp.GetCohorts() {
			rows = append(rows, cohortRow(co))
		}
		return c.print(resp, cohortHeader, rows)
	})}
	get := &cobra.Command{Use: "get ID", Short: "Show a cohort", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).GetCohort(ctx, &cohortsyncv1.GetCohortRequest{Name: c.name("cohorts", args[0])})
		if err != nil {
			return err
		}
		return c.print(resp.GetCohort(), cohortHeader, []table.Row{cohortRow(resp.GetCohort())})
	})}
	remove := &cobra.Command{Use: "delete ID", Short: "Delete a cohort no sync uses", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		_, err := cohortsyncv1.NewCohortServiceClient(c.conn).DeleteCohort(ctx, &cohortsyncv1.DeleteCohortRequest{Name: c.name("cohorts", args[0])})
		return err
	})}
	var file, description string
	create := &cobra.Command{Use: "create NAME", Short: "Create a cohort from a definition file", Long: definitionHelp, Args: cobra.ExactArgs(1), Example: "  cohortbridge cohorts create \"Cart abandoners\" -f cohort.json"}
	create.Flags().StringVarP(&file, "file", "f", "-", "file with the definition, - for standard input")
	create.Flags().StringVar(&description, "description", "", "what it is for")
	create.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		def, err := readDefinition(file, cmd.InOrStdin())
		if err != nil {
			return err
		}
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: c.project, Cohort: &cohortsyncv1.Cohort{DisplayName: args[0], Description: description, Definition: def}})
		if err != nil {
			return err
		}
		return c.print(resp.GetCohort(), cohortHeader, []table.Row{cohortRow(resp.GetCohort())})
	})
	update := updateCohortCommand()
	var previewFile string
	preview := &cobra.Command{Use: "preview [ID]", Short: "Count a cohort's users now, changing nothing", Long: definitionHelp, Args: cobra.MaximumNArgs(1), Example: "  cohortbridge cohorts preview 1\n  cohortbridge cohorts preview -f cohort.json"}
	preview.Flags().StringVarP(&previewFile, "file", "f", "-", "file with a definition, when no ID is given")
	preview.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		req := &cohortsyncv1.PreviewCohortRequest{Parent: c.project, SampleSize: 5}
		if len(args) == 1 {
			req.Cohort = c.name("cohorts", args[0])
		} else {
			def, err := readDefinition(previewFile, cmd.InOrStdin())
			if err != nil {
				return err
			}
			req.Definition = def
		}
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).PreviewCohort(ctx, req)
		if err != nil {
			return err
		}
		e := resp.GetEvaluation()
		rows := []table.Row{{resp.GetSummary(), e.GetUsers(), e.GetIdentifiedUsers(), e.GetDuration().AsDuration()}}
		for _, l := range e.GetLeaves() {
			rows = append(rows, table.Row{"  " + l.GetSummary(), l.GetUsers(), "", l.GetDuration().AsDuration()})
		}
		return c.print(resp, table.Row{"Users who", "Users", "Identified", "Time"}, rows)
	})
	members := &cobra.Command{Use: "members ID", Short: "List who is in a cohort now", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		req := &cohortsyncv1.ListMembersRequest{Parent: c.name("cohorts", args[0]), PageSize: 10000}
		all := &cohortsyncv1.ListMembersResponse{}
		for {
			resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).ListMembers(ctx, req)
			if err != nil {
				return err
			}
			all.Members, all.Total = append(all.Members, resp.GetMembers()...), resp.GetTotal()
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		var rows []table.Row
		for _, m := range all.GetMembers() {
			rows = append(rows, table.Row{m.GetUserNo(), m.GetDistinctId(), m.GetPartnerId(), m.GetIdentified()})
		}
		return c.print(all, table.Row{"No", "Distinct ID", "Partner ID", "Identified"}, rows)
	})}
	root.AddCommand(list, get, create, update, preview, members, remove, uploadCommand(), historyCommand(), exportCohortsCommand(), importCohortsCommand())
	return root
}

func updateCohortCommand() *cobra.Command {
	var file, name, description string
	cmd := &cobra.Command{Use: "update ID", Short: "Change a cohort's definition, name or description", Long: definitionHelp, Args: cobra.ExactArgs(1), Example: "  cohortbridge cohorts update 1 -f cohort.json"}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the new definition, - for standard input")
	cmd.Flags().StringVar(&name, "name", "", "new name")
	cmd.Flags().StringVar(&description, "description", "", "new description")
	cmd.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		in := &cohortsyncv1.Cohort{Name: c.name("cohorts", args[0]), DisplayName: name, Description: description}
		mask := &fieldmaskpb.FieldMask{}
		for flag, path := range map[string]string{"name": "display_name", "description": "description", "file": "definition"} {
			if cmd.Flags().Changed(flag) {
				mask.Paths = append(mask.Paths, path)
			}
		}
		if len(mask.GetPaths()) == 0 {
			return errors.New("nothing to change: give -f, --name or --description")
		}
		if file != "" {
			def, err := readDefinition(file, cmd.InOrStdin())
			if err != nil {
				return err
			}
			in.Definition = def
		}
		resp, err := cohortsyncv1.NewCohortServiceClient(c.conn).UpdateCohort(ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: in, UpdateMask: mask})
		if err != nil {
			return err
		}
		return c.print(resp.GetCohort(), cohortHeader, []table.Row{cohortRow(resp.GetCohort())})
	})
	return cmd
}
