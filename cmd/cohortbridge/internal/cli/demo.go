package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/demo"
	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	"github.com/cohortbridge/cohortbridge/platform/lifecycle"
	"github.com/cohortbridge/cohortbridge/platform/telemetry"
)

func demoCommand() *cobra.Command {
	d := roles.Default()
	var output string
	var stay bool
	cmd := &cobra.Command{Use: "demo", Short: "Show the whole product on made-up data", Args: cobra.NoArgs,
		Long: `Starts everything on an empty data folder, imports 20,000 events, exports a cohort
once and dynamically to the sandbox, takes campaign events back and reports MTU.
It fails when the segment and the cohort differ by one user.

With --stay it keeps serving afterwards; a data folder that was used before is
served as it is.`}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&stay, "stay", false, "keep serving")
	cmd.Flags().String("data-dir", "", "folder of the stores (default: a temporary one, removed at the end)")
	cmd.Flags().String("http-addr", "127.0.0.1:0", "where REST is served")
	cmd.Flags().String("grpc-addr", "127.0.0.1:0", "where gRPC is served")
	cmd.Flags().String("sandbox-addr", "127.0.0.1:0", "where the sandbox is served")
	cmd.Flags().String("log-level", "warn", "debug, info, warn or error")
	cmd.Flags().String("jaeger-url", "", "base URL of a Jaeger UI to link traces to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if output != "text" && output != "json" {
			return fmt.Errorf("--output: want text or json, got %q", output)
		}
		cfg := *d
		str := func(name string) string { s, _ := cmd.Flags().GetString(name); return s }
		cfg.DataDir, cfg.HTTPAddr, cfg.GRPCAddr, cfg.SandboxAddr = str("data-dir"), str("http-addr"), str("grpc-addr"), str("sandbox-addr")
		cfg.LogLevel, cfg.JaegerURL, cfg.Dev = str("log-level"), str("jaeger-url"), true
		if cfg.DataDir == "" {
			if cfg.DataDir, err = os.MkdirTemp("", "cohortbridge-demo-"); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, os.RemoveAll(cfg.DataDir)) }()
		}
		if err := cfg.Validate(); err != nil {
			return err
		}
		level, err := cfg.Level()
		if err != nil {
			return err
		}
		telemetry.SetupLogging(os.Stderr, level)
		return runDemo(cmd, &cfg, output == "json", stay)
	}
	return cmd
}

func runDemo(cmd *cobra.Command, cfg *roles.Config, asJSON, stay bool) (err error) {
	ctx := cmd.Context()
	flush, err := telemetry.SetupTracing(ctx, "cohortbridge", version())
	if err != nil {
		return err
	}
	var g lifecycle.Group
	g.OnStop("telemetry", flush)
	stopped := false
	defer func() {
		if !stopped {
			err = errors.Join(err, g.Stop(context.WithoutCancel(ctx)))
		}
	}()
	credsPath := filepath.Join(cfg.DataDir, roles.DevCredentialsFile)
	_, statErr := os.Stat(credsPath)
	used := !errors.Is(statErr, fs.ErrNotExist)
	if used && !stay {
		return fmt.Errorf("--data-dir: %s was used before; the demo needs an empty folder", cfg.DataDir)
	}
	addrs, err := roles.Standalone(context.WithoutCancel(ctx), cfg, &g)
	if err != nil {
		return err
	}
	creds, err := roles.ReadDevCredentials(credsPath)
	if err != nil {
		return err
	}
	progress := cmd.OutOrStdout()
	if asJSON {
		progress = cmd.ErrOrStderr()
	}
	var sum *demo.Summary
	if used {
		_, _ = fmt.Fprintf(progress, "%s was used before and is served as it is.\n", cfg.DataDir)
		if err := demo.Again(ctx, creds, progress); err != nil {
			return err
		}
	} else if sum, err = demo.Run(ctx, creds, progress); err != nil {
		return err
	}
	if sum != nil {
		if err := printSummary(cmd.OutOrStdout(), sum, asJSON, cfg.JaegerURL); err != nil {
			return err
		}
	}
	if !stay {
		return nil
	}
	printURLs(progress, addrs, credsPath)
	if err := ready(cmd, addrs); err != nil {
		return err
	}
	slog.Info("serving")
	stopped = true
	return g.Wait(ctx)
}

func printSummary(w io.Writer, s *demo.Summary, asJSON bool, jaeger string) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	link := s.TraceID
	if jaeger != "" {
		link = jaeger + "/trace/" + s.TraceID
	}
	_, err := fmt.Fprintf(w, `
  events imported   %d
  profiles          %d
  cohort            %d identified users; left out: %s
  segment           %q, %s, %d users
  second run        %d added, %d removed, %d updated in %d calls; segment has %d users
  warnings          %s
  campaign events   %d
  MTU               %d (%d events exempt)
  trace             %s
  time              %.1f s

  The segment holds exactly the cohort's identified users, after each run.
`, s.EventsImported, s.Profiles, s.CohortSize, counts(s.Skipped), s.SegmentName, s.SegmentType, s.SegmentSize,
		s.SecondRun.Added, s.SecondRun.Removed, s.SecondRun.Updated, s.SecondRun.Calls, s.SegmentSizeAfter,
		counts(s.Warnings), s.CampaignEvents, s.MTU, s.MTUExemptEvents, link, s.Seconds)
	return err
}

// counts is "2 of this, 3 of that".
func counts(m map[string]int64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

func printURLs(w io.Writer, a roles.Addresses, creds string) {
	_, _ = fmt.Fprintf(w, `
  API docs          http://%s/docs/
  sandbox segments  http://%s/
  gRPC              %s
  credentials       %s

  Ctrl-C stops it.
`, a.HTTP, a.Sandbox, a.GRPC, creds) // progress only
}
