package roles

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// writeDevCredentials makes the project demo with a service account, once, and
// writes where to find everything, at every start.
func writeDevCredentials(ctx context.Context, client registryv1.ProjectServiceClient, dataDir string, addrs Addresses) error {
	path := filepath.Join(dataDir, DevCredentialsFile)
	c, err := ReadDevCredentials(path)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = createDevProject(ctx, client)
	}
	if err != nil {
		return err
	}
	c.HTTPAddr, c.GRPCAddr, c.SandboxAddr = addrs.HTTP, addrs.GRPC, addrs.Sandbox
	return c.write(path)
}

func createDevProject(ctx context.Context, client registryv1.ProjectServiceClient) (DevCredentials, error) {
	p, err := client.CreateProject(ctx, &registryv1.CreateProjectRequest{Project: &registryv1.Project{DisplayName: "demo"}})
	if err != nil {
		return DevCredentials{}, err
	}
	a, err := client.CreateServiceAccount(ctx, &registryv1.CreateServiceAccountRequest{
		Parent:         p.GetProject().GetName(),
		ServiceAccount: &registryv1.ServiceAccount{DisplayName: "demo", Role: typev1.Role_ROLE_OWNER},
	})
	if err != nil {
		return DevCredentials{}, err
	}
	return DevCredentials{
		ProjectID: strings.TrimPrefix(p.GetProject().GetName(), "projects/"), ProjectToken: p.GetProject().GetToken(), ProjectSecret: p.GetSecret(),
		ServiceAccount: a.GetServiceAccount().GetUsername(), ServiceSecret: a.GetSecret(),
	}, nil
}
