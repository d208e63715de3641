package server

import (
	"context"
	"fmt"
	"strconv"
	"time"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
)

// Credentials implements CredentialService, which only our own services call.
type Credentials struct {
	registryv1.UnimplementedCredentialServiceServer
	Store      store.Store
	Checker    *account.Checker
	Connectors *Connectors
	Now        func() time.Time
}

// Authenticate implements CredentialService.
func (s *Credentials) Authenticate(ctx context.Context, req *registryv1.AuthenticateRequest) (*registryv1.AuthenticateResponse, error) {
	if req.GetSecret() == "" {
		p, err := s.Store.ProjectBySecret(ctx, project.Hash(req.GetUsername()))
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "the project secret is wrong; a service account needs its secret")
		}
		if err != nil {
			return nil, err
		}
		return &registryv1.AuthenticateResponse{SecretOfProject: projectProto(p).GetName()}, nil
	}
	a, err := s.Checker.Check(ctx, req.GetUsername(), req.GetSecret())
	if err != nil {
		return nil, err
	}
	return &registryv1.AuthenticateResponse{ServiceAccount: accountProto(a).GetName(), Grants: grants(a)}, nil
}

// Refusals of AuthenticateIngest. All but the first are of a credential that is
// right; none says whether a project other than the credential's exists.
var (
	errIngestCredential = fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "Invalid credentials")
	errNoProjectID      = fault.New(fault.Denied, "PROJECT_ID_REQUIRED", "project_id is required with a service account, as a number")
	errWrongProject     = fault.New(fault.Denied, "WRONG_PROJECT", "project_id: the credential belongs to another project")
	errIngestRole       = fault.New(fault.Denied, "ROLE_REQUIRED", "the service account needs the role ADMIN or OWNER to import")
)

// AuthenticateIngest implements CredentialService. Mixpanel's senders present a
// service account (with project_id), or a project secret or token as the user
// with an empty password (https://developer.mixpanel.com/reference/authentication).
func (s *Credentials) AuthenticateIngest(ctx context.Context, req *registryv1.AuthenticateIngestRequest) (*registryv1.AuthenticateIngestResponse, error) {
	p, err := s.ingestProject(ctx, req)
	if fault.Is(err, fault.NotFound) {
		err = errIngestCredential
	}
	if err != nil {
		return nil, err
	}
	if id := req.GetProjectId(); id != "" && id != strconv.FormatInt(p.ID, 10) {
		return nil, errWrongProject
	}
	return &registryv1.AuthenticateIngestResponse{Project: projectProto(p)}, nil
}

func (s *Credentials) ingestProject(ctx context.Context, req *registryv1.AuthenticateIngestRequest) (project.Project, error) {
	if req.GetSecret() == "" {
		p, err := s.Store.ProjectBySecret(ctx, project.Hash(req.GetUsername()))
		if fault.Is(err, fault.NotFound) {
			return s.Store.ProjectByToken(ctx, req.GetUsername())
		}
		return p, err
	}
	a, err := s.Checker.Check(ctx, req.GetUsername(), req.GetSecret())
	if err != nil {
		return project.Project{}, fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "Invalid service account credentials").Wrap(err)
	}
	id, perr := strconv.ParseInt(req.GetProjectId(), 10, 64)
	if perr != nil {
		return project.Project{}, errNoProjectID
	}
	if id != a.ProjectID {
		return project.Project{}, errWrongProject
	}
	if a.Role < int32(typev1.Role_ROLE_ADMIN) {
		return project.Project{}, errIngestRole
	}
	return s.Store.Project(ctx, id)
}

// ResolveProject implements CredentialService.
func (s *Credentials) ResolveProject(ctx context.Context, req *registryv1.ResolveProjectRequest) (*registryv1.ResolveProjectResponse, error) {
	var p project.Project
	var err error
	switch by := req.GetBy().(type) {
	case *registryv1.ResolveProjectRequest_ProjectId:
		id, perr := strconv.ParseInt(by.ProjectId, 10, 64)
		if perr != nil {
			return nil, fault.Field("project_id", "want a number")
		}
		p, err = s.Store.Project(ctx, id)
	case *registryv1.ResolveProjectRequest_Token:
		p, err = s.Store.ProjectByToken(ctx, by.Token)
	default:
		return nil, fault.Field("by", "want project_id or token")
	}
	if err != nil {
		return nil, err
	}
	return &registryv1.ResolveProjectResponse{Project: projectProto(p)}, nil
}

// ResolveConnector implements CredentialService.
func (s *Credentials) ResolveConnector(ctx context.Context, req *registryv1.ResolveConnectorRequest) (*registryv1.ResolveConnectorResponse, error) {
	c, err := s.Connectors.load(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	out := connectorProto(c)
	out.GetClevertap().HostUrl, out.GetClevertap().PartnerUrl = c.BaseURL(), c.PartnerEndpoint()
	return &registryv1.ResolveConnectorResponse{Connector: out, Passcode: c.Passcode}, nil
}

// ReportConnectorState implements CredentialService.
func (s *Credentials) ReportConnectorState(ctx context.Context, req *registryv1.ReportConnectorStateRequest) (*registryv1.ReportConnectorStateResponse, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "connectors")
	if err != nil {
		return nil, err
	}
	state := connector.State(req.GetState())
	if state < connector.Unchecked || state > connector.Unreachable {
		return nil, fault.Field("state", "unknown state %s", fmt.Sprint(req.GetState()))
	}
	return &registryv1.ReportConnectorStateResponse{}, s.Store.SetConnectorState(ctx, connector.Connector{
		ProjectID: ids[0], ID: ids[1], State: state, StateReason: req.GetReason(), CheckTime: s.Now(),
	})
}
