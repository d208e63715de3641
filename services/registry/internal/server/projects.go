// Package server adapts the registry's domain to its gRPC contracts.
package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
)

// Projects implements ProjectService.
type Projects struct {
	registryv1.UnimplementedProjectServiceServer
	Store   store.Store
	Checker *account.Checker
	Now     func() time.Time
}

const pageDefault, pageMax = 100, 1000

// CreateProject implements ProjectService.
func (s *Projects) CreateProject(ctx context.Context, req *registryv1.CreateProjectRequest) (*registryv1.CreateProjectResponse, error) {
	in := req.GetProject()
	if in.GetDisplayName() == "" {
		return nil, fault.Field("project.display_name", "is required")
	}
	p := project.Project{DisplayName: in.GetDisplayName(), Identity: project.Identity(in.GetIdentitySystem())}
	setMtu(&p, in.GetMtu(), mtuPaths)
	p, secret := project.New(p, s.Now())
	stored, created, err := s.Store.CreateProject(ctx, p, project.Hash(secret), req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if !created {
		secret = ""
	}
	return &registryv1.CreateProjectResponse{Project: projectProto(stored), Secret: secret}, nil
}

func (s *Projects) find(ctx context.Context, field, name string) (project.Project, error) {
	ids, err := resource.IDs(field, name, "projects")
	if err != nil {
		return project.Project{}, err
	}
	return s.Store.Project(ctx, ids[0])
}

// GetProject implements ProjectService.
func (s *Projects) GetProject(ctx context.Context, req *registryv1.GetProjectRequest) (*registryv1.GetProjectResponse, error) {
	p, err := s.find(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	return &registryv1.GetProjectResponse{Project: projectProto(p)}, nil
}

// ListProjects implements ProjectService.
func (s *Projects) ListProjects(ctx context.Context, req *registryv1.ListProjectsRequest) (*registryv1.ListProjectsResponse, error) {
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var ids []int64
	if p := auth.FromContext(ctx); !p.Operator && !p.Internal {
		ids = []int64{}
		for name := range p.Roles {
			id, err := resource.IDs("grant", name, "projects")
			if err != nil {
				return nil, err
			}
			ids = append(ids, id[0])
		}
	}
	size := resource.PageSize(req.GetPageSize(), pageDefault, pageMax)
	list, err := s.Store.Projects(ctx, ids, after, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(p project.Project) int64 { return p.ID })
	out := &registryv1.ListProjectsResponse{NextPageToken: next}
	for _, p := range list {
		out.Projects = append(out.Projects, projectProto(p))
	}
	return out, nil
}

// UpdateProject implements ProjectService.
func (s *Projects) UpdateProject(ctx context.Context, req *registryv1.UpdateProjectRequest) (*registryv1.UpdateProjectResponse, error) {
	in := req.GetProject()
	p, err := s.find(ctx, "project.name", in.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkEtag(in.GetEtag(), p.Version); err != nil {
		return nil, err
	}
	paths, err := maskPaths(req.GetUpdateMask(), in, append([]string{"display_name"}, mtuPaths...), []string{"name", "token", "identity_system", "create_time", "etag"})
	if err != nil {
		return nil, err
	}
	if got := project.Identity(in.GetIdentitySystem()); got != 0 && got != p.Identity {
		return nil, fault.Field("project.identity_system", "is fixed when the project is created; leave it out, or make a new project")
	}
	if slices.Contains(paths, "display_name") {
		if p.DisplayName = in.GetDisplayName(); p.DisplayName == "" {
			return nil, fault.Field("project.display_name", "can't be empty")
		}
	}
	setMtu(&p, in.GetMtu(), paths)
	p.Defaults()
	p, err = s.Store.UpdateProject(ctx, p)
	if err != nil {
		return nil, err
	}
	return &registryv1.UpdateProjectResponse{Project: projectProto(p)}, nil
}

func checkEtag(got string, version int64) error {
	if got != "" && got != etag(version) {
		return fault.New(fault.Conflict, "ETAG_MISMATCH", "etag: the resource changed meanwhile; read it again")
	}
	return nil
}

// CreateServiceAccount implements ProjectService.
func (s *Projects) CreateServiceAccount(ctx context.Context, req *registryv1.CreateServiceAccountRequest) (*registryv1.CreateServiceAccountResponse, error) {
	p, err := s.find(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	in := req.GetServiceAccount()
	if own := auth.FromContext(ctx).RoleIn(projectName(p.ID)); in.GetRole() > own {
		return nil, fault.Field("service_account.role", "can't be above your own role")
	}
	a := account.Account{ProjectID: p.ID, DisplayName: in.GetDisplayName(), Role: int32(in.GetRole())}
	if in.GetExpireTime() != nil {
		a.ExpireTime = in.GetExpireTime().AsTime()
		if !a.ExpireTime.After(s.Now()) {
			return nil, fault.Field("service_account.expire_time", "must be in the future")
		}
	}
	a, secret := account.New(a, s.Now())
	a, err = s.Store.CreateAccount(ctx, a)
	if err != nil {
		return nil, err
	}
	return &registryv1.CreateServiceAccountResponse{ServiceAccount: accountProto(a), Secret: secret}, nil
}

// ListServiceAccounts implements ProjectService.
func (s *Projects) ListServiceAccounts(ctx context.Context, req *registryv1.ListServiceAccountsRequest) (*registryv1.ListServiceAccountsResponse, error) {
	p, err := s.find(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), pageDefault, pageMax)
	list, err := s.Store.Accounts(ctx, p.ID, after, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(a account.Account) int64 { return a.ID })
	out := &registryv1.ListServiceAccountsResponse{NextPageToken: next}
	for _, a := range list {
		out.ServiceAccounts = append(out.ServiceAccounts, accountProto(a))
	}
	return out, nil
}

// DeleteServiceAccount implements ProjectService.
func (s *Projects) DeleteServiceAccount(ctx context.Context, req *registryv1.DeleteServiceAccountRequest) (*emptypb.Empty, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "serviceAccounts")
	if err != nil {
		return nil, err
	}
	if auth.FromContext(ctx).Name == req.GetName() {
		return nil, fault.New(fault.Precondition, "OWN_ACCOUNT", "name: you can't delete the account you are using; use another one, or the operator's key")
	}
	if err := s.Store.DeleteAccount(ctx, ids[0], ids[1]); err != nil {
		return nil, err
	}
	s.Checker.Forget(ids[1])
	return &emptypb.Empty{}, nil
}

func grants(a account.Account) []*registryv1.Grant {
	return []*registryv1.Grant{{Project: projectName(a.ProjectID), Role: typev1.Role(a.Role)}}
}
