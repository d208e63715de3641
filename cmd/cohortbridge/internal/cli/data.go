package cli

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

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
