package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	"github.com/cohortbridge/cohortbridge/platform/config"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
	"github.com/cohortbridge/cohortbridge/platform/telemetry"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

const configHelp = `Settings come from flags, then the environment (COHORTBRIDGE_HTTP_ADDR sets
--http-addr), then the YAML file of --config (http_addr: …), then defaults.
OTEL_EXPORTER_OTLP_ENDPOINT turns the export of traces on.
When it serves, it prints one line of JSON: {"event":"ready", …addresses}.`

func commonFlags(f *pflag.FlagSet, d *roles.Config) {
	f.String("config", "", "YAML file with settings")
	f.String("log-level", d.LogLevel, "debug, info, warn or error")
}

func serverFlags(f *pflag.FlagSet, d *roles.Config) {
	commonFlags(f, d)
	f.String("data-dir", d.DataDir, "folder of the stores")
	f.String("grpc-addr", d.GRPCAddr, "where gRPC is served; port 0 takes a free one")
	f.Bool("allow-private-destinations", false, "let connectors call private and loopback addresses (implied by --sandbox-addr)")
	f.Duration("retry-initial", d.RetryInitial, "first pause before a delivery is tried again")
	f.Duration("retry-window", d.RetryWindow, "how long a delivery is tried within a run")
}

func httpFlags(f *pflag.FlagSet, d *roles.Config) {
	f.String("http-addr", d.HTTPAddr, "where REST and Mixpanel's routes are served; port 0 takes a free one")
	f.String("tls-cert", "", "PEM file; serves HTTPS instead of HTTP")
	f.String("tls-key", "", "PEM file of the certificate's key")
	f.Duration("body-timeout", d.BodyTimeout, "how long the body of a request may take to arrive")
	f.Int("query-per-hour", d.QueryPerHour, "queries of one project over Mixpanel's routes in a rolling hour; 0 for no limit")
	f.Int("query-concurrent", d.QueryConcurrent, "such queries of one project at one time; 0 for no limit")
	f.Int("export-per-hour", d.ExportPerHour, "raw exports of one project in a rolling hour; 0 for no limit")
	f.Int("export-per-second", d.ExportPerSecond, "raw exports of one project in a rolling second; 0 for no limit")
	f.Int("export-concurrent", d.ExportConcurrent, "raw exports of one project at one time; 0 for no limit")
}

// senderFlags bound what event senders may cost; the gateway and ingestion have
// them each.
func senderFlags(f *pflag.FlagSet, d *roles.Config) {
	f.Int64("max-body-bytes", d.MaxBodyBytes, "largest request body as sent, in bytes; larger ones are answered 413")
	f.Int("max-concurrent", d.MaxConcurrent, "requests of event senders that are worked on at one time; more are answered 429")
	f.Int64("max-in-flight-bytes", d.MaxInFlightBytes, "bytes of their bodies that are worked on at one time; more are answered 429")
}

// ingestFlags are ingestion's own bounds.
func ingestFlags(f *pflag.FlagSet, d *roles.Config) {
	f.Int64("max-decompressed-bytes", d.MaxDecompressedBytes, "largest body of an event sender after decompression, in bytes; larger ones are answered 413")
	f.Int("queue-depth", d.QueueDepth, "events that may wait to be stored, at least 2000; more are answered 429")
	f.Int64("project-events-per-minute", d.ProjectEventsPerMinute, "events one project may send in a rolling minute; 0 for no limit")
	f.Int64("project-bytes-per-minute", d.ProjectBytesPerMinute, "bytes of uncompressed JSON one project may send in a rolling minute; 0 for no limit")
}

// load reads the settings and sets logging and tracing up.
func load(cmd *cobra.Command, service string) (*roles.Config, func(context.Context) error, error) {
	cfg := roles.Default()
	path, _ := cmd.Flags().GetString("config")
	if err := config.Load(cfg, path, cmd.Flags()); err != nil {
		return nil, nil, err
	}
	level, err := cfg.Level()
	if err != nil {
		return nil, nil, err
	}
	telemetry.SetupLogging(os.Stderr, level)
	flush, err := telemetry.SetupTracing(cmd.Context(), service, version())
	if err != nil {
		return nil, nil, err
	}
	slog.Info("starting", "role", service, "version", version(), "config", config.Masked(cfg))
	return cfg, flush, nil
}

// ready prints the line that says where the process serves.
func ready(w *cobra.Command, addrs roles.Addresses) error {
	b, err := json.Marshal(struct {
		Event string `json:"event"`
		roles.Addresses
	}{"ready", addrs})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w.OutOrStdout(), string(b))
	return err
}

// serve starts a role, says where it serves, and serves until it is told to stop.
func serve(service string, start func(context.Context, *roles.Config, *lifecycle.Group) (roles.Addresses, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cfg, flush, err := load(cmd, service)
		if err != nil {
			return err
		}
		var g lifecycle.Group
		g.OnStop("telemetry", flush)
		// Parts end when they are stopped, in order, not all at once with the signal.
		ctx := context.WithoutCancel(cmd.Context())
		addrs, err := start(ctx, cfg, &g)
		if err != nil {
			_ = g.Stop(ctx) // the first error is the one to report
			return err
		}
		if err := ready(cmd, addrs); err != nil {
			return err
		}
		return g.Wait(cmd.Context())
	}
}

func standaloneCommand() *cobra.Command {
	d := roles.Default()
	cmd := &cobra.Command{Use: "standalone", Short: "Run everything in one process", Long: "Runs the registry, ingestion, the sync engine and the gateway in one process on embedded stores.\n\n" + configHelp, Args: cobra.NoArgs,
		Example: "  cohortbridge standalone --dev --sandbox-addr 127.0.0.1:8090"}
	serverFlags(cmd.Flags(), d)
	httpFlags(cmd.Flags(), d)
	senderFlags(cmd.Flags(), d)
	ingestFlags(cmd.Flags(), d)
	cmd.Flags().String("sandbox-addr", "", "where a CleverTap sandbox is served; none by default")
	cmd.Flags().Bool("dev", false, "make the project demo and write dev-credentials.json to the data folder")
	cmd.RunE = serve("cohortbridge", roles.Standalone)
	return cmd
}

var roleText = map[string]string{
	"registry":   "Run the connector registry alone",
	"ingestion":  "Run event ingestion alone",
	"cohortsync": "Run the cohort sync engine alone",
	"gateway":    "Run the REST gateway alone",
}

func roleCommand(role string) *cobra.Command {
	d := roles.Default()
	cmd := &cobra.Command{Use: role, Short: roleText[role], Long: roleText[role] + `, for a system of several processes.
All of them share one key, given by COHORTBRIDGE_INTERNAL_KEY or internal_key in
the config file; gRPC between them is not encrypted, so keep it on a private network.

` + configHelp, Args: cobra.NoArgs}
	if role == "gateway" {
		commonFlags(cmd.Flags(), d)
		httpFlags(cmd.Flags(), d)
	} else {
		serverFlags(cmd.Flags(), d)
	}
	if role == "gateway" || role == "ingestion" {
		senderFlags(cmd.Flags(), d)
	}
	if role == "ingestion" {
		ingestFlags(cmd.Flags(), d)
	}
	for name, text := range map[string]string{"registry": d.RegistryAddr, "ingestion": d.IngestionAddr, "cohortsync": d.CohortSyncAddr} {
		if name != role {
			cmd.Flags().String(name+"-addr", text, "gRPC address of "+name)
		}
	}
	cmd.RunE = serve(role, func(ctx context.Context, cfg *roles.Config, g *lifecycle.Group) (roles.Addresses, error) {
		return roles.Single(ctx, role, cfg, g)
	})
	return cmd
}

func sandboxCommand() *cobra.Command {
	var addr string
	var accounts []string
	var knobs sandbox.Knobs
	cmd := &cobra.Command{Use: "sandbox", Short: "Run a CleverTap that is local", Args: cobra.NoArgs,
		Long: `Runs a stand-in for CleverTap: the API calls cohortbridge makes, a Segments page
at /, and knobs to make it misbehave (GET and PUT /sandbox/knobs).
It keeps everything in memory.`,
		Example: "  cohortbridge sandbox --addr 127.0.0.1:8090 --latency 100ms --rate-429 0.1"}
	f := cmd.Flags()
	var latency time.Duration
	f.StringVar(&addr, "addr", "127.0.0.1:8090", "where it is served; port 0 takes a free one")
	f.StringSliceVar(&accounts, "account", []string{sandbox.DefaultAccountID + ":" + sandbox.DefaultPasscode}, "ID:PASSCODE; repeat for several accounts")
	f.DurationVar(&latency, "latency", 0, "time added to every API call")
	f.Float64Var(&knobs.Rate429, "rate-429", 0, "share of calls refused with 429")
	f.Float64Var(&knobs.Rate5xx, "rate-5xx", 0, "share of calls answered with a 5xx")
	f.Float64Var(&knobs.PartialRate, "partial-rate", 0, "share of upload records refused with 555")
	f.StringVar(&knobs.PartialPattern, "partial-pattern", "", "refuse upload records whose identity matches")
	f.Uint64Var(&knobs.Seed, "seed", 0, "seed of the random refusals; 0 takes the clock's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		knobs.LatencyMS = int(latency.Milliseconds())
		cfg := sandbox.Config{Accounts: map[string]string{}, Knobs: knobs}
		for _, a := range accounts {
			id, pass, ok := strings.Cut(a, ":")
			if !ok {
				return fmt.Errorf("--account: want ID:PASSCODE")
			}
			cfg.Accounts[id] = pass
		}
		var g lifecycle.Group
		got, err := roles.Sandbox(context.WithoutCancel(cmd.Context()), addr, cfg, &g)
		if err != nil {
			return err
		}
		if err := ready(cmd, roles.Addresses{Sandbox: got}); err != nil {
			return err
		}
		return g.Wait(cmd.Context())
	}
	cmd.AddCommand(campaignCommand())
	return cmd
}

func campaignCommand() *cobra.Command {
	var addr, credentials, name, segment string
	cmd := &cobra.Command{Use: "campaign", Short: "Send a campaign's engagement events to /import, as CleverTap does", Args: cobra.NoArgs,
		Long: "Asks a running sandbox to send the 20 engagement events for each member of a segment\nto the project of the credentials file, marked with $source.", Example: "  cohortbridge sandbox campaign --segment \"Cart abandoners\""}
	cmd.Flags().StringVar(&addr, "sandbox", "", "address of the sandbox (default from the credentials file)")
	cmd.Flags().StringVar(&credentials, "credentials", "data/"+roles.DevCredentialsFile, "file with credentials, as --dev writes it")
	cmd.Flags().StringVar(&name, "name", "Winter sale", "name of the campaign")
	cmd.Flags().StringVar(&segment, "segment", "", "name of the segment, as the Segments page shows it")
	_ = cmd.MarkFlagRequired("segment")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := roles.ReadDevCredentials(credentials)
		if err != nil {
			return err
		}
		addr = firstSet(addr, c.SandboxAddr)
		id, err := segmentID(cmd, addr, segment)
		if err != nil {
			return err
		}
		body, err := json.Marshal(sandbox.Campaign{Segment: id, Name: name, ImportURL: "http://" + c.HTTPAddr + "/import", ProjectID: c.ProjectID, Username: c.ServiceAccount, Secret: c.ServiceSecret})
		if err != nil {
			return err
		}
		var answer sandbox.CampaignResult
		if err := callSandbox(cmd, http.MethodPost, addr, "/sandbox/campaign", body, &answer); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d events of %d members sent in %d batches\n", answer.Events, answer.Members, answer.Batches)
		return err
	}
	return cmd
}

// segmentID finds the sandbox's own number of the segment of a name.
func segmentID(cmd *cobra.Command, addr, name string) (int64, error) {
	var list sandbox.Segments
	if err := callSandbox(cmd, http.MethodGet, addr, "/sandbox/segments", nil, &list); err != nil {
		return 0, err
	}
	var names []string
	for _, s := range list.Segments {
		if s.Name == name {
			return s.ID, nil
		}
		names = append(names, strconv.Quote(s.Name))
	}
	return 0, fmt.Errorf("--segment: no segment %q; the sandbox has %s", name, firstSet(strings.Join(names, ", "), "none"))
}

// callSandbox calls the sandbox's own JSON.
func callSandbox(cmd *cobra.Command, method, addr, path string, body []byte, out any) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("--sandbox: want host:port")
	}
	req, err := http.NewRequestWithContext(cmd.Context(), method, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		var failure struct {
			Error string `json:"error"`
		}
		_ = json.NewDecoder(resp.Body).Decode(&failure) // the status tells it otherwise
		return fmt.Errorf("sandbox: HTTP %d %s", resp.StatusCode, failure.Error)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}
