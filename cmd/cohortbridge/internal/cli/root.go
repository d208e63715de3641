// Package cli is the command line: the roles, the sandbox, the demo and the
// client commands.
package cli

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Version is the version of the binary, set by the build.
var Version = "dev"

// Root is the command tree.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "cohortbridge",
		Short: "Cohorts out of product analytics into CleverTap, campaign events back in",
		Long: `cohortbridge takes user cohorts out of product analytics into CleverTap, and
takes CleverTap's campaign events back in.

"cohortbridge standalone --dev --sandbox-addr 127.0.0.1:8090" runs everything on
this machine. The client commands talk gRPC to it and read their credentials
from data/dev-credentials.json unless told otherwise.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.AddGroup(&cobra.Group{ID: "serve", Title: "Serve:"}, &cobra.Group{ID: "client", Title: "Work with a running system:"})
	for _, c := range []*cobra.Command{standaloneCommand(), roleCommand("registry"), roleCommand("ingestion"), roleCommand("cohortsync"), roleCommand("gateway"), sandboxCommand(), demoCommand()} {
		c.GroupID = "serve"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{projectsCommand(), connectorsCommand(), cohortsCommand(), syncsCommand(), runsCommand(), usageCommand(), eventsCommand(), profilesCommand()} {
		c.GroupID = "client"
		addClientFlags(c)
		root.AddCommand(c)
	}
	return root
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && Version == "dev" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return "dev-" + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return Version
}

// ErrorText is what a person reads: the message, the fields at fault, and what
// to do where it is known.
func ErrorText(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	var b strings.Builder
	b.WriteString(s.Message())
	for _, d := range s.Details() {
		if br, ok := d.(*errdetails.BadRequest); ok && len(br.GetFieldViolations()) > 1 {
			for _, v := range br.GetFieldViolations() {
				fmt.Fprintf(&b, "\n  %s: %s", v.GetField(), v.GetDescription())
			}
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		b.WriteString("\nIs it running? Start it with: cohortbridge standalone --dev")
	case codes.Unauthenticated:
		b.WriteString("\nCredentials come from --credentials, or from COHORTBRIDGE_USERNAME and COHORTBRIDGE_SECRET.")
	default: // the message says it
	}
	return b.String()
}
