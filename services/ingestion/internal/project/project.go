// Package project is what ingestion knows of a project: whose data this is and
// by which rules it is read. The truth is the registry's; a bounded cache with a
// short life stands in front of it, because every request needs it.
package project

import (
	"context"
	"time"
)

// IdentitySystem says how ids become one user. The three systems are Mixpanel's.
type IdentitySystem uint8

const (
	// Simplified links `$device_id` to `$user_id` on ordinary events.
	Simplified IdentitySystem = 1
	// Original links by `$identify`, `$create_alias` and `$merge` events.
	Original IdentitySystem = 2
	// Legacy knows `$create_alias` only, without effect on earlier events.
	Legacy IdentitySystem = 3
)

// String returns the system's name in upper case.
func (s IdentitySystem) String() string {
	switch s {
	case Simplified:
		return "SIMPLIFIED"
	case Original:
		return "ORIGINAL"
	case Legacy:
		return "LEGACY"
	default:
		return "UNSPECIFIED"
	}
}

// MTU is how a project counts monthly tracked users.
type MTU struct {
	// NameOnly exempts partner events by name alone, as Mixpanel's
	// `$all_mtu_events` does; otherwise the partner's marker must be there too.
	NameOnly bool
	// Sources are the accepted marker values by rule id, in place of those of the
	// rules; compared without regard to case.
	Sources map[string][]string
	// ByEventTime makes a month one of event time instead of processing time.
	ByEventTime bool
}

// Project is one project as far as ingestion needs it.
type Project struct {
	// ID is the decimal project id, positive.
	ID int64
	// Token is the public identifier that senders put into events.
	Token string
	// Identity is the system asked for; the ledger freezes the one first used.
	Identity IdentitySystem
	// MTU are the counting settings.
	MTU MTU
}

// Credential is what a sender presented: HTTP Basic and the project_id of the query.
type Credential struct {
	// Username is a service account's name, a project secret or a project token.
	Username string
	// Secret is the password; empty with a project secret or token.
	Secret string
	// ProjectID is the decimal project_id of the query, or empty.
	ProjectID string
}

// Registry answers who may write where. An unknown project is a NotFound fault,
// a wrong credential an Unauthenticated one. A right credential that may not is a
// Denied one, whose text says what it lacks and is shown to its owner.
type Registry interface {
	// ByToken finds a project by its public token.
	ByToken(ctx context.Context, token string) (*Project, error)
	// ByID finds a project by its id.
	ByID(ctx context.Context, id int64) (*Project, error)
	// Authenticate says which project a credential may import into.
	Authenticate(ctx context.Context, c Credential) (*Project, error)
}

// Clock tells the time; tests inject their own.
type Clock func() time.Time
