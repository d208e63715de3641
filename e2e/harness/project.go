package harness

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// NewProject makes a project as the operator whose key is in the data folder,
// and a client that owns it.
func (p *Process) NewProject(t testing.TB, dir string, identity typev1.IdentitySystem) *Client {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(dir, "operator.key"))
	if err != nil {
		t.Fatal(err)
	}
	Secret("operator key", strings.TrimSpace(string(key)))
	conn, err := grpc.NewClient(p.Creds.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(basicAuth("Bearer "+strings.TrimSpace(string(key)))))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // nothing is pending
	api := registryv1.NewProjectServiceClient(conn)
	pr, err := api.CreateProject(context.Background(), &registryv1.CreateProjectRequest{Project: &registryv1.Project{DisplayName: t.Name(), IdentitySystem: identity}})
	if err != nil {
		t.Fatal(err)
	}
	sa, err := api.CreateServiceAccount(context.Background(), &registryv1.CreateServiceAccountRequest{Parent: pr.GetProject().GetName(), ServiceAccount: &registryv1.ServiceAccount{DisplayName: "e2e", Role: typev1.Role_ROLE_OWNER}})
	if err != nil {
		t.Fatal(err)
	}
	Secret("project secret", pr.GetSecret())
	Secret("service secret", sa.GetSecret())
	c := p.Creds
	c.ProjectID, c.ProjectToken, c.ProjectSecret = strings.TrimPrefix(pr.GetProject().GetName(), "projects/"), pr.GetProject().GetToken(), pr.GetSecret()
	c.ServiceAccount, c.ServiceSecret = sa.GetServiceAccount().GetUsername(), sa.GetSecret()
	return Connect(t, c)
}
