// Package auth says who calls and whether they may: principals, the table of
// what each RPC needs, and the interceptor that enforces it. What is not in
// the table is refused.
package auth

import (
	"context"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Principal is an authenticated caller.
type Principal struct {
	// Name is the service account's resource name, the project's for a project
	// secret, "operator" or "internal".
	Name string
	// ProjectSecret is a caller who presented a project's secret. It opens only what
	// the policy says, and only in that project.
	ProjectSecret bool
	// Operator may create projects and act in all of them.
	Operator bool
	// Internal is one of our own services.
	Internal bool
	// Roles by project resource name (projects/{id}).
	Roles map[string]typev1.Role
}

// RoleIn is the principal's role in a project; operators and services own all.
func (p *Principal) RoleIn(project string) typev1.Role {
	if p == nil {
		return typev1.Role_ROLE_UNSPECIFIED
	}
	if p.Operator || p.Internal {
		return typev1.Role_ROLE_OWNER
	}
	return p.Roles[project]
}

type principalKey struct{}

// NewContext returns a context that carries the principal.
func NewContext(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// FromContext is the caller, or nil on a public RPC called without a credential.
func FromContext(ctx context.Context) *Principal {
	p, _ := ctx.Value(principalKey{}).(*Principal)
	return p
}

// Authenticator checks a Basic credential: of a service account, or, when the
// secret is empty, a project secret in place of the username.
type Authenticator interface {
	// Authenticate returns the principal, or an Unauthenticated fault.
	Authenticate(ctx context.Context, username, secret string) (*Principal, error)
}

// AuthenticatorFunc is a function as an Authenticator.
type AuthenticatorFunc func(ctx context.Context, username, secret string) (*Principal, error)

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, username, secret string) (*Principal, error) {
	return f(ctx, username, secret)
}
