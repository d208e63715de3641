package registryclient_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/registryclient"
)

// answering is a registry that gives one project or one error.
type answering struct {
	registryv1.CredentialServiceClient
	project *registryv1.Project
	err     error
}

func (a *answering) ResolveProject(context.Context, *registryv1.ResolveProjectRequest, ...grpc.CallOption) (*registryv1.ResolveProjectResponse, error) {
	return &registryv1.ResolveProjectResponse{Project: a.project}, a.err
}

func (a *answering) AuthenticateIngest(context.Context, *registryv1.AuthenticateIngestRequest, ...grpc.CallOption) (*registryv1.AuthenticateIngestResponse, error) {
	return &registryv1.AuthenticateIngestResponse{Project: a.project}, a.err
}

func TestProjectsAreReadWithTheirSettings(t *testing.T) {
	c := registryclient.New(&answering{project: &registryv1.Project{
		Name: "projects/7", Token: "tok", IdentitySystem: typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL,
		Mtu: &registryv1.MtuSettings{MatchByNameOnly: true, ByEventTime: true, ClevertapSources: []string{"ct"}, PartnerMarkers: map[string]*registryv1.MarkerValues{"braze": {Values: []string{"b1"}}}},
	}})
	p, err := c.ByToken(context.Background(), "tok")
	if err != nil || p.ID != 7 || p.Token != "tok" || p.Identity != project.Original || !p.MTU.NameOnly || !p.MTU.ByEventTime || p.MTU.Sources["clevertap"][0] != "ct" || p.MTU.Sources["braze"][0] != "b1" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRefusalsKeepTheirKindAndTellNothing(t *testing.T) {
	for code, want := range map[codes.Code]fault.Code{
		codes.NotFound: fault.NotFound, codes.Unauthenticated: fault.Unauthenticated, codes.InvalidArgument: fault.Unauthenticated,
		codes.PermissionDenied: fault.Denied, codes.Unavailable: fault.Unavailable, codes.Internal: fault.Unavailable,
	} {
		c := registryclient.New(&answering{err: status.Error(code, "secret hush is wrong")})
		_, err := c.Authenticate(context.Background(), project.Credential{Username: "robot", Secret: "hush"})
		if !fault.Is(err, want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%v became %v", code, err)
		}
		if _, err := c.ByID(context.Background(), 1); !fault.Is(err, want) {
			t.Errorf("%v became %v", code, err)
		}
	}
	if _, err := registryclient.New(nil).ByToken(context.Background(), strings.Repeat("x", 500)); !fault.Is(err, fault.NotFound) {
		t.Errorf("an endless token: %v", err)
	}
}

func TestARightCredentialThatMayNotImportIsToldWhyInOurWords(t *testing.T) {
	for reason, want := range map[string]string{"PROJECT_ID_REQUIRED": "project_id", "WRONG_PROJECT": "project_id", "ROLE_REQUIRED": "ADMIN"} {
		c := registryclient.New(&answering{err: rpc.ToStatus(context.Background(), fault.New(fault.Denied, reason, "secret hush of projects/4711"))})
		_, err := c.Authenticate(context.Background(), project.Credential{Username: "robot", Secret: "hush"})
		f := fault.As(err)
		if f == nil || f.Code != fault.Denied || f.Reason != reason || !strings.Contains(f.Public, want) || strings.Contains(f.Public, "hush") || strings.Contains(f.Public, "4711") {
			t.Errorf("%s became %v", reason, err)
		}
	}
	for what, answer := range map[string]error{
		"another refusal":            rpc.ToStatus(context.Background(), fault.New(fault.Denied, "ROLE", "not for projects/4711")),
		"a reason with another code": rpc.ToStatus(context.Background(), fault.New(fault.Unauthenticated, "ROLE_REQUIRED", "x")),
	} {
		_, err := registryclient.New(&answering{err: answer}).Authenticate(context.Background(), project.Credential{Username: "robot", Secret: "hush"})
		if f := fault.As(err); f == nil || f.Public != "Invalid credentials" {
			t.Errorf("%s became %v", what, err)
		}
	}
}
