// Package registry is the connector registry: projects, service accounts with
// roles, and connectors with their encrypted credentials.
package registry

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connect"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/secret"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/server"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store/sqlstore"
)

// Config says where the registry keeps its data.
type Config struct {
	// DataDir holds registry.db and keyring.json.
	DataDir string
	// AllowPrivateDestinations lets connectors point at private and loopback
	// addresses, as the sandbox's.
	AllowPrivateDestinations bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Validate says what is wrong with the config.
func (c Config) Validate() error {
	if c.DataDir == "" {
		return errors.New("data_dir is required")
	}
	return nil
}

// Service is the registry.
type Service struct {
	store       store.Store
	connect     *connect.Client
	projects    *server.Projects
	connectors  *server.Connectors
	credentials *server.Credentials
}

// New opens the registry's store and key ring.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	st, err := sqlstore.Open(ctx, "sqlite:"+filepath.Join(cfg.DataDir, "registry.db"))
	if err != nil {
		return nil, err
	}
	aead, err := secret.Open(filepath.Join(cfg.DataDir, "keyring.json"))
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	s := &Service{store: st, connect: connect.New(cfg.AllowPrivateDestinations)}
	checker := account.NewChecker(st, cfg.Now)
	s.projects = &server.Projects{Store: st, Checker: checker, Now: cfg.Now}
	s.connectors = &server.Connectors{Store: st, AEAD: aead, Checker: s.connect, Now: cfg.Now}
	s.credentials = &server.Credentials{Store: st, Checker: checker, Connectors: s.connectors, Now: cfg.Now}
	return s, nil
}

// Register adds the registry's services to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	registryv1.RegisterProjectServiceServer(r, s.projects)
	registryv1.RegisterConnectorServiceServer(r, s.connectors)
	registryv1.RegisterCredentialServiceServer(r, s.credentials)
}

// Close releases the store.
func (s *Service) Close(context.Context) error {
	s.connect.Close()
	return s.store.Close()
}

// Authenticator checks credentials through a registry, near or far.
func Authenticator(client registryv1.CredentialServiceClient) auth.Authenticator {
	return auth.AuthenticatorFunc(func(ctx context.Context, username, secret string) (*auth.Principal, error) {
		resp, err := client.Authenticate(ctx, &registryv1.AuthenticateRequest{Username: username, Secret: secret})
		if err != nil {
			return nil, err
		}
		p := &auth.Principal{Name: resp.GetServiceAccount(), Roles: map[string]typev1.Role{}}
		if name := resp.GetSecretOfProject(); name != "" {
			p.Name, p.ProjectSecret, p.Roles[name] = name, true, typev1.Role_ROLE_CONSUMER
		}
		for _, g := range resp.GetGrants() {
			p.Roles[g.GetProject()] = g.GetRole()
		}
		return p, nil
	})
}
