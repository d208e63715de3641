// Package registryclient answers project questions from the registry over gRPC.
package registryclient

import (
	"context"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/platform/rpc"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Client is a project.Registry.
type Client struct {
	credentials registryv1.CredentialServiceClient
}

var _ project.Registry = (*Client)(nil)

// New makes a client.
func New(c registryv1.CredentialServiceClient) *Client { return &Client{credentials: c} }

// ByToken implements project.Registry.
func (c *Client) ByToken(ctx context.Context, token string) (*project.Project, error) {
	if token == "" || len(token) > 200 {
		return nil, fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no project has this token")
	}
	return c.resolve(ctx, &registryv1.ResolveProjectRequest{By: &registryv1.ResolveProjectRequest_Token{Token: token}})
}

// ByID implements project.Registry.
func (c *Client) ByID(ctx context.Context, id int64) (*project.Project, error) {
	return c.resolve(ctx, &registryv1.ResolveProjectRequest{By: &registryv1.ResolveProjectRequest_ProjectId{ProjectId: strconv.FormatInt(id, 10)}})
}

func (c *Client) resolve(ctx context.Context, req *registryv1.ResolveProjectRequest) (*project.Project, error) {
	resp, err := c.credentials.ResolveProject(ctx, req)
	if err != nil {
		return nil, translate(err)
	}
	return convert(resp.GetProject())
}

// Authenticate implements project.Registry.
func (c *Client) Authenticate(ctx context.Context, cr project.Credential) (*project.Project, error) {
	if len(cr.Username) > 200 || len(cr.Secret) > 200 || len(cr.ProjectID) > 20 {
		return nil, fault.New(fault.Unauthenticated, "CREDENTIAL_INVALID", wrong)
	}
	resp, err := c.credentials.AuthenticateIngest(ctx, &registryv1.AuthenticateIngestRequest{Username: cr.Username, Secret: cr.Secret, ProjectId: cr.ProjectID})
	if err != nil {
		return nil, translate(err)
	}
	return convert(resp.GetProject())
}

// wrong is all that somebody without a right credential is told.
const wrong = "Invalid credentials"

// lacks is what the owner of a right credential is told, by the registry's reason.
var lacks = map[string]string{
	"PROJECT_ID_REQUIRED": "project_id is required with a service account, as a number, in the query or the form",
	"WRONG_PROJECT":       "project_id is not the project of this credential",
	"ROLE_REQUIRED":       "the service account needs the role ADMIN or OWNER to import",
}

// translate turns the registry's status into a fault that keeps nothing of the credential.
func translate(err error) error {
	switch status.Code(err) {
	case codes.NotFound:
		return fault.New(fault.NotFound, "PROJECT_NOT_FOUND", "no such project").Wrap(err)
	case codes.Unauthenticated, codes.InvalidArgument, codes.FailedPrecondition:
		return fault.New(fault.Unauthenticated, "CREDENTIAL_INVALID", wrong).Wrap(err)
	case codes.PermissionDenied:
		if f := fault.As(rpc.FromStatus(err)); f != nil && lacks[f.Reason] != "" {
			return fault.New(fault.Denied, f.Reason, "%s", lacks[f.Reason]).Wrap(err)
		}
		return fault.New(fault.Denied, "CREDENTIAL_DENIED", wrong).Wrap(err)
	default:
		return fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry does not answer").Retry(2e9).Wrap(err)
	}
}

func convert(p *registryv1.Project) (*project.Project, error) {
	ids, err := resource.IDs("project.name", p.GetName(), "projects")
	if err != nil {
		return nil, err
	}
	out := &project.Project{ID: ids[0], Token: p.GetToken(), MTU: project.MTU{NameOnly: p.GetMtu().GetMatchByNameOnly(), ByEventTime: p.GetMtu().GetByEventTime()}}
	out.MTU.Sources = map[string][]string{}
	if s := p.GetMtu().GetClevertapSources(); len(s) > 0 {
		out.MTU.Sources["clevertap"] = s
	}
	for rule, v := range p.GetMtu().GetPartnerMarkers() {
		out.MTU.Sources[rule] = v.GetValues()
	}
	switch p.GetIdentitySystem() {
	case typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL:
		out.Identity = project.Original
	case typev1.IdentitySystem_IDENTITY_SYSTEM_LEGACY:
		out.Identity = project.Legacy
	default:
		out.Identity = project.Simplified
	}
	return out, nil
}
