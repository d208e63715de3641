// Package store is what the registry needs of its database. Every engine passes
// storetest.
package store

import (
	"context"

	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
)

// Store keeps projects, accounts and connectors. What is not there is a
// NotFound fault; a lost race on a version is a Conflict fault. Lists are in
// order of id and return ids greater than after.
type Store interface {
	// CreateProject stores a project and the hash of its secret. When requestID
	// is not empty and was used before, the earlier project is returned with created false.
	CreateProject(ctx context.Context, p project.Project, secretHash, requestID string) (stored project.Project, created bool, err error)
	// Project returns a project by id.
	Project(ctx context.Context, id int64) (project.Project, error)
	// ProjectByToken returns a project by token.
	ProjectByToken(ctx context.Context, token string) (project.Project, error)
	// ProjectBySecret returns a project by the hash of its secret.
	ProjectBySecret(ctx context.Context, secretHash string) (project.Project, error)
	// Projects lists projects; ids nil means all.
	Projects(ctx context.Context, ids []int64, after int64, limit int) ([]project.Project, error)
	// UpdateProject stores p if the stored version is p.Version, and raises it.
	UpdateProject(ctx context.Context, p project.Project) (project.Project, error)

	// CreateAccount stores an account of an existing project.
	CreateAccount(ctx context.Context, a account.Account) (account.Account, error)
	// AccountByUsername returns an account.
	AccountByUsername(ctx context.Context, username string) (account.Account, error)
	// Accounts lists a project's accounts.
	Accounts(ctx context.Context, projectID, after int64, limit int) ([]account.Account, error)
	// DeleteAccount removes an account.
	DeleteAccount(ctx context.Context, projectID, id int64) error

	// CreateConnector stores a connector with its encrypted passcode, like
	// CreateProject with regard to requestID. encrypt is called with the new id.
	CreateConnector(ctx context.Context, c connector.Connector, requestID string, encrypt func(id int64) ([]byte, error)) (stored connector.Connector, created bool, err error)
	// Connector returns a connector and its encrypted passcode.
	Connector(ctx context.Context, projectID, id int64) (connector.Connector, []byte, error)
	// Connectors lists a project's connectors.
	Connectors(ctx context.Context, projectID, after int64, limit int) ([]connector.Connector, error)
	// UpdateConnector stores c if the stored version is c.Version, and raises it.
	UpdateConnector(ctx context.Context, c connector.Connector, passcode []byte) (connector.Connector, error)
	// SetConnectorState stores the result of a check; the version stays.
	SetConnectorState(ctx context.Context, c connector.Connector) error
	// DeleteConnector removes a connector.
	DeleteConnector(ctx context.Context, projectID, id int64) error

	// Close releases the store.
	Close() error
}
