package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

func projectsCommand() *cobra.Command {
	root := &cobra.Command{Use: "projects", Short: "Projects and their service accounts"}
	list := &cobra.Command{Use: "list", Short: "List the projects you have a role in", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := registryv1.NewProjectServiceClient(c.conn).ListProjects(ctx, &registryv1.ListProjectsRequest{PageSize: 1000})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, p := range resp.GetProjects() {
			rows = append(rows, table.Row{id(p.GetName()), p.GetDisplayName(), short(p.GetIdentitySystem().String(), "IDENTITY_SYSTEM_"), p.GetToken()})
		}
		return c.print(resp, table.Row{"ID", "Name", "Identity", "Token"}, rows)
	})}
	var identity string
	create := &cobra.Command{
		Use: "create NAME", Short: "Create a project (needs --operator-key-file)", Args: cobra.ExactArgs(1),
		Example: "  cohortbridge projects create shop --operator-key-file data/operator.key --identity ORIGINAL",
		RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
			sys, err := enum(typev1.IdentitySystem_value, "--identity", "IDENTITY_SYSTEM_", identity)
			if err != nil {
				return err
			}
			resp, err := registryv1.NewProjectServiceClient(c.conn).CreateProject(ctx, &registryv1.CreateProjectRequest{Project: &registryv1.Project{DisplayName: args[0], IdentitySystem: typev1.IdentitySystem(sys)}})
			if err != nil {
				return err
			}
			return c.print(resp, table.Row{"ID", "Name", "Token", "Secret (shown once)"}, []table.Row{{id(resp.GetProject().GetName()), resp.GetProject().GetDisplayName(), resp.GetProject().GetToken(), resp.GetSecret()}})
		}),
	}
	create.Flags().StringVar(&identity, "identity", "SIMPLIFIED", "SIMPLIFIED, ORIGINAL or LEGACY; fixed from then on")
	var role string
	account := &cobra.Command{Use: "create-account NAME", Short: "Create a service account in the project", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		r, err := enum(typev1.Role_value, "--role", "ROLE_", role)
		if err != nil {
			return err
		}
		resp, err := registryv1.NewProjectServiceClient(c.conn).CreateServiceAccount(ctx, &registryv1.CreateServiceAccountRequest{Parent: c.project, ServiceAccount: &registryv1.ServiceAccount{DisplayName: args[0], Role: typev1.Role(r)}})
		if err != nil {
			return err
		}
		a := resp.GetServiceAccount()
		return c.print(resp, table.Row{"ID", "Username", "Role", "Secret (shown once)"}, []table.Row{{id(a.GetName()), a.GetUsername(), role, resp.GetSecret()}})
	})}
	account.Flags().StringVar(&role, "role", "CONSUMER", "OWNER, ADMIN, ANALYST or CONSUMER")
	root.AddCommand(list, create, projectsGetCommand(), projectsUpdateCommand(), account)
	return root
}

// printProject shows a project's settings one below the other.
func (c *client) printProject(p *registryv1.Project) error {
	mtu := p.GetMtu()
	rows := []table.Row{
		{"ID", id(p.GetName())}, {"Name", p.GetDisplayName()}, {"Token", p.GetToken()}, {"Identity", short(p.GetIdentitySystem().String(), "IDENTITY_SYSTEM_")},
		{"MTU: month of", map[bool]string{false: "processing time", true: "event time"}[mtu.GetByEventTime()]},
		{"MTU: partner events are exempt by", map[bool]string{false: "name and marker", true: "name alone"}[mtu.GetMatchByNameOnly()]},
		{"MTU: markers of clevertap", strings.Join(mtu.GetClevertapSources(), ", ")},
	}
	for _, rule := range slices.Sorted(maps.Keys(mtu.GetPartnerMarkers())) {
		rows = append(rows, table.Row{"MTU: markers of " + rule, strings.Join(mtu.GetPartnerMarkers()[rule].GetValues(), ", ")})
	}
	return c.print(p, table.Row{"Setting", "Value"}, rows)
}

func projectsGetCommand() *cobra.Command {
	return &cobra.Command{Use: "get", Short: "Show the project's settings", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := registryv1.NewProjectServiceClient(c.conn).GetProject(ctx, &registryv1.GetProjectRequest{Name: c.project})
		if err != nil {
			return err
		}
		return c.printProject(resp.GetProject())
	})}
}

func projectsUpdateCommand() *cobra.Command {
	var name string
	var sources, markers []string
	var byEventTime, byNameOnly bool
	update := &cobra.Command{
		Use: "update", Short: "Change the project's settings; what no flag names stays", Args: cobra.NoArgs,
		Example: "  cohortbridge projects update --clevertap-sources clevertap,clevertap-eu\n  cohortbridge projects update --markers braze=braze,braze-eu --markers iterable=",
	}
	f := update.Flags()
	f.StringVar(&name, "name", "", "what people call it")
	f.BoolVar(&byEventTime, "mtu-by-event-time", false, "a month of MTU is one of event time, not of processing time")
	f.BoolVar(&byNameOnly, "mtu-match-by-name-only", false, "partner events are exempt from MTU by name alone, without a marker")
	f.StringSliceVar(&sources, "clevertap-sources", nil, "values of $source that mark CleverTap's events; empty for the default")
	f.StringArrayVar(&markers, "markers", nil, "RULE=VALUE,VALUE: the marker's values of another partner (see usage rules); RULE= for its default; repeat for more rules")
	update.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, _ []string) error {
		api := registryv1.NewProjectServiceClient(c.conn)
		got, err := api.GetProject(ctx, &registryv1.GetProjectRequest{Name: c.project})
		if err != nil {
			return err
		}
		p := got.GetProject() // its etag keeps others' changes from being overwritten
		if p.Mtu == nil {
			p.Mtu = &registryv1.MtuSettings{}
		}
		mask := &fieldmaskpb.FieldMask{}
		for _, set := range []struct {
			flag, path string
			do         func() error
		}{
			{"name", "display_name", func() error { p.DisplayName = name; return nil }},
			{"mtu-by-event-time", "mtu.by_event_time", func() error { p.Mtu.ByEventTime = byEventTime; return nil }},
			{"mtu-match-by-name-only", "mtu.match_by_name_only", func() error { p.Mtu.MatchByNameOnly = byNameOnly; return nil }},
			{"clevertap-sources", "mtu.clevertap_sources", func() error { p.Mtu.ClevertapSources = sources; return nil }},
			{"markers", "mtu.partner_markers", func() error { return setMarkers(p.GetMtu(), markers) }},
		} {
			if !cmd.Flags().Changed(set.flag) {
				continue
			}
			if err := set.do(); err != nil {
				return err
			}
			mask.Paths = append(mask.Paths, set.path)
		}
		if len(mask.GetPaths()) == 0 {
			return errors.New("nothing to change: give at least one flag, see --help")
		}
		resp, err := api.UpdateProject(ctx, &registryv1.UpdateProjectRequest{Project: p, UpdateMask: mask})
		if err != nil {
			return err
		}
		return c.printProject(resp.GetProject())
	})
	return update
}

// setMarkers changes the markers of the rules that are named, each as RULE=VALUE,VALUE.
func setMarkers(m *registryv1.MtuSettings, list []string) error {
	for _, s := range list {
		rule, values, ok := strings.Cut(s, "=")
		switch {
		case !ok || rule == "":
			return fmt.Errorf("--markers: want RULE=VALUE,VALUE, got %q", s)
		case rule == "clevertap":
			return errors.New("--markers: CleverTap's are set with --clevertap-sources")
		case values == "":
			delete(m.GetPartnerMarkers(), rule)
		default:
			if m.PartnerMarkers == nil {
				m.PartnerMarkers = map[string]*registryv1.MarkerValues{}
			}
			m.PartnerMarkers[rule] = &registryv1.MarkerValues{Values: strings.Split(values, ",")}
		}
	}
	return nil
}

// short takes the prefix off an enum's name.
func short(s, prefix string) string { return strings.TrimPrefix(s, prefix) }

func enum(values map[string]int32, flag, prefix, s string) (int32, error) {
	v, ok := values[prefix+strings.ToUpper(s)]
	if !ok || v == 0 {
		var names []string
		for _, n := range slices.SortedFunc(maps.Keys(values), func(a, b string) int { return int(values[a] - values[b]) }) {
			if values[n] != 0 {
				names = append(names, short(n, prefix))
			}
		}
		return 0, fmt.Errorf("%s: unknown value %q; want one of %s", flag, s, strings.Join(names, ", "))
	}
	return v, nil
}

func connectorRow(cn *registryv1.Connector) table.Row {
	ct := cn.GetClevertap()
	return table.Row{id(cn.GetName()), cn.GetDisplayName(), ct.GetAccountId(), ct.GetRegion(), short(ct.GetChannel().String(), "CHANNEL_"), short(cn.GetState().String(), "STATE_"), cn.GetStateReason()}
}

var connectorHeader = table.Row{"ID", "Name", "Account", "Region", "Channel", "State", "Why"}

func connectorsCommand() *cobra.Command {
	root := &cobra.Command{Use: "connectors", Short: "Destinations: CleverTap projects with their credentials"}
	list := &cobra.Command{Use: "list", Short: "List connectors", Args: cobra.NoArgs, RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		resp, err := registryv1.NewConnectorServiceClient(c.conn).ListConnectors(ctx, &registryv1.ListConnectorsRequest{Parent: c.project, PageSize: 1000})
		if err != nil {
			return err
		}
		var rows []table.Row
		for _, cn := range resp.GetConnectors() {
			rows = append(rows, connectorRow(cn))
		}
		return c.print(resp, connectorHeader, rows)
	})}
	get := &cobra.Command{Use: "get ID", Short: "Show a connector", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := registryv1.NewConnectorServiceClient(c.conn).GetConnector(ctx, &registryv1.GetConnectorRequest{Name: c.name("connectors", args[0])})
		if err != nil {
			return err
		}
		return c.print(resp.GetConnector(), connectorHeader, []table.Row{connectorRow(resp.GetConnector())})
	})}
	verify := &cobra.Command{Use: "verify ID", Short: "Run the connect check now", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		resp, err := registryv1.NewConnectorServiceClient(c.conn).VerifyConnector(ctx, &registryv1.VerifyConnectorRequest{Name: c.name("connectors", args[0])})
		if err != nil {
			return err
		}
		return c.print(resp.GetConnector(), connectorHeader, []table.Row{connectorRow(resp.GetConnector())})
	})}
	remove := &cobra.Command{Use: "delete ID", Short: "Delete a connector and its credentials", Args: cobra.ExactArgs(1), RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
		_, err := registryv1.NewConnectorServiceClient(c.conn).DeleteConnector(ctx, &registryv1.DeleteConnectorRequest{Name: c.name("connectors", args[0])})
		return err
	})}
	root.AddCommand(list, get, verify, remove, createConnectorCommand(), updateConnectorCommand())
	return root
}

// passcodeHelp says where the passcode comes from; flags are visible to others.
const passcodeHelp = "The passcode is read from the file --passcode-file, or from COHORTBRIDGE_PASSCODE."

func readPasscode(path string) (string, error) {
	if path == "" {
		return os.Getenv("COHORTBRIDGE_PASSCODE"), nil
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

type connectorFlags struct {
	account, region, channel, host, partner, email, passcodeFile, identityProperty string
	columns                                                                        []string
}

func (f *connectorFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.region, "region", "eu1", "data center: eu1, in1, sg1, us1, aps3, mec1")
	c.Flags().StringVar(&f.channel, "channel", "PARTNER", "PARTNER, CUSTOM_LIST or API_SEGMENT")
	c.Flags().StringVar(&f.host, "host-url", "", "base URL instead of the region's, e.g. http://127.0.0.1:8090 for the sandbox")
	c.Flags().StringVar(&f.partner, "partner-url", "", "URL of the partner channel, given by CleverTap")
	c.Flags().StringVar(&f.email, "admin-email", "", "address of an admin of the CleverTap account; CUSTOM_LIST needs it")
	c.Flags().StringVar(&f.passcodeFile, "passcode-file", "", "file with the passcode")
	c.Flags().StringVar(&f.identityProperty, "identity-property", "", "property with the CleverTap identity (default $CleverTap_user_id)")
	c.Flags().StringSliceVar(&f.columns, "column", nil, "PROPERTY or PROPERTY=FIELD to export; repeat; default names, e-mail and phone")
}

func (f *connectorFlags) clevertap() (*registryv1.CleverTap, error) {
	ch, err := enum(registryv1.CleverTap_Channel_value, "--channel", "CHANNEL_", f.channel)
	if err != nil {
		return nil, err
	}
	pass, err := readPasscode(f.passcodeFile)
	if err != nil {
		return nil, err
	}
	ct := &registryv1.CleverTap{AccountId: f.account, Passcode: pass, Region: f.region, Channel: registryv1.CleverTap_Channel(ch), HostUrl: f.host, PartnerUrl: f.partner, AdminEmail: f.email, IdentityProperty: f.identityProperty}
	for _, col := range f.columns {
		prop, field, _ := strings.Cut(col, "=")
		ct.Columns = append(ct.Columns, &registryv1.Column{Property: prop, Field: field})
	}
	return ct, nil
}

func createConnectorCommand() *cobra.Command {
	var f connectorFlags
	create := &cobra.Command{
		Use: "create NAME", Short: "Create a connector and check it", Args: cobra.ExactArgs(1), Long: "Creates a connector and checks it with CleverTap. " + passcodeHelp,
		Example: "  COHORTBRIDGE_PASSCODE=SAN-DBO-XXPC cohortbridge connectors create sandbox --account SBX-000-000Z --host-url http://127.0.0.1:8090",
		RunE: run(func(ctx context.Context, c *client, _ *cobra.Command, args []string) error {
			ct, err := f.clevertap()
			if err != nil {
				return err
			}
			resp, err := registryv1.NewConnectorServiceClient(c.conn).CreateConnector(ctx, &registryv1.CreateConnectorRequest{
				Parent: c.project, Connector: &registryv1.Connector{DisplayName: args[0], Destination: &registryv1.Connector_Clevertap{Clevertap: ct}},
			})
			if err != nil {
				return err
			}
			return c.print(resp.GetConnector(), connectorHeader, []table.Row{connectorRow(resp.GetConnector())})
		}),
	}
	create.Flags().StringVar(&f.account, "account", "", "CleverTap Project ID")
	_ = create.MarkFlagRequired("account")
	f.add(create)
	return create
}

func updateConnectorCommand() *cobra.Command {
	var f connectorFlags
	var name string
	update := &cobra.Command{Use: "update ID", Short: "Change a connector", Args: cobra.ExactArgs(1), Long: "Changes what the flags name. " + passcodeHelp}
	f.add(update)
	update.Flags().StringVar(&name, "name", "", "new name")
	paths := map[string]string{"region": "clevertap.region", "channel": "clevertap.channel", "host-url": "clevertap.host_url", "partner-url": "clevertap.partner_url", "admin-email": "clevertap.admin_email", "identity-property": "clevertap.identity_property", "column": "clevertap.columns", "name": "display_name"}
	update.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		api := registryv1.NewConnectorServiceClient(c.conn)
		old, err := api.GetConnector(ctx, &registryv1.GetConnectorRequest{Name: c.name("connectors", args[0])})
		if err != nil {
			return err
		}
		ct, err := f.clevertap()
		if err != nil {
			return err
		}
		// Validation looks at the whole message, so what stays is sent as it was.
		ct.AccountId = old.GetConnector().GetClevertap().GetAccountId()
		mask := &fieldmaskpb.FieldMask{}
		for flag, path := range paths {
			if cmd.Flags().Changed(flag) {
				mask.Paths = append(mask.Paths, path)
			}
		}
		if ct.GetPasscode() != "" {
			mask.Paths = append(mask.Paths, "clevertap.passcode")
		}
		if len(mask.GetPaths()) == 0 {
			return errors.New("nothing to change: give at least one flag")
		}
		if name == "" {
			name = old.GetConnector().GetDisplayName()
		}
		resp, err := api.UpdateConnector(ctx, &registryv1.UpdateConnectorRequest{UpdateMask: mask, Connector: &registryv1.Connector{
			Name: old.GetConnector().GetName(), DisplayName: name, Etag: old.GetConnector().GetEtag(), Destination: &registryv1.Connector_Clevertap{Clevertap: ct},
		}})
		if err != nil {
			return err
		}
		return c.print(resp.GetConnector(), connectorHeader, []table.Row{connectorRow(resp.GetConnector())})
	})
	return update
}
