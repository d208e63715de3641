// Package ledger is the transactional truth of ingestion: which ids are which
// user, the users' profiles, and what went wrong on the way. The interface is
// implemented by store/sqlledger; ledgertest is the suite every implementation passes.
package ledger

import (
	"context"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Reason is why an id belongs to a user. The numbers are stored.
type Reason uint8

const (
	// FirstSeen is the id a user was first seen with.
	FirstSeen Reason = 1
	// DeviceLink is `$device_id` and `$user_id` on one event.
	DeviceLink Reason = 2
	// Identify is an `$identify` event.
	Identify Reason = 3
	// Alias is a `$create_alias` event.
	Alias Reason = 4
	// MergeCall is a `$merge` event.
	MergeCall Reason = 5
	// PartnerAlias is the value of a partner's id property on the profile.
	PartnerAlias Reason = 6
)

// ID is one distinct id.
type ID struct {
	// DistinctID is the id itself.
	DistinctID string
	// UserNo is the number its events are stored under; it never changes, but for
	// an alias in a LEGACY project and a partner id that another user takes over.
	UserNo uint64
	// Canonical is the number of the user it belongs to now.
	Canonical uint64
	// Reason and At say why and since when.
	Reason Reason
	At     time.Time
	// LinkedTo is the id that the link named; empty for a first id.
	LinkedTo string
	// Former is the number of the user who lost the id by it, 0 for none; only
	// Cluster says it.
	Former uint64
	// Alias says that UserNo was made for another id.
	Alias bool
}

// Merge is one number that got another canonical user.
type Merge struct {
	// Seq is the sequence of the change.
	Seq uint64
	// UserNo is the number, Canonical the user it belongs to from At on.
	UserNo, Canonical uint64
	// At is when, Unix milliseconds.
	AtMS int64
}

// User is one user number.
type User struct {
	// No is the number, from 1, dense per project, never used again.
	No uint64
	// Canonical is the user it was merged into, or No.
	Canonical uint64
	// DistinctID is the id the number was made for.
	DistinctID string
	// IDs is the number of ids of the cluster; only right on the canonical user.
	IDs int
	// Seq is the sequence of the last change of the profile or identity; 0 for none.
	Seq uint64
}

// Profile is a user's stored profile.
type Profile struct {
	// UserNo is the canonical user's number.
	UserNo uint64
	// Props is the JSON object of the properties.
	Props []byte
	// Updated is when it last changed.
	Updated time.Time
}

// Change is one changed user, as the projection needs it.
type Change struct {
	// UserNo is the user; Canonical another number when it was merged away.
	UserNo, Canonical uint64
	// Seq is the sequence of the change.
	Seq uint64
	// Props is the profile's JSON; nil when there is none.
	Props []byte
}

// Member is one canonical user with the profile.
type Member struct {
	// UserNo and DistinctID are the canonical user's.
	UserNo     uint64
	DistinctID string
	// Props is the profile's JSON; nil when there is none.
	Props []byte
	// Updated is when the profile last changed.
	Updated time.Time
	// Taken says that DistinctID belongs to another user now (see Former); only
	// Members says it.
	Taken bool
}

// Group is a group's profile.
type Group struct {
	// Key is the kind of group, ID which one.
	Key, ID string
	// Props is the JSON object of the properties.
	Props []byte
	// Updated is when it last changed.
	Updated time.Time
}

// Waiting is a user whose partner property holds a value of another user.
type Waiting struct {
	// UserNo and Property are the user's.
	UserNo   uint64
	Property string
}

// Cluster is a user with all ids.
type Cluster struct {
	// User is the canonical user.
	User User
	// IDs are all ids, oldest first.
	IDs []ID
	// Conflicts are partner properties whose value was not linked.
	Conflicts []Conflict
	// Identified says whether a profile exists.
	Identified bool
}

// Conflict is a partner property of a user whose value is not the user's.
type Conflict struct {
	// Property is its name; Value is empty when the value can't be anybody's id.
	Property, Value string
	// Owner is the canonical id of the user who has the value, or empty.
	Owner string
}

// Warning counts one kind of trouble.
type Warning struct {
	// Kind is stable, e.g. PARTNER_ALIAS_CONFLICT.
	Kind string
	// Count is how often; First and Last when.
	Count       int64
	First, Last time.Time
}

// State is a project's counters.
type State struct {
	// System is the identity system, frozen with the first data.
	System project.IdentitySystem
	// Seq is the sequence of the newest profile or identity change.
	Seq uint64
	// Users counts canonical users; Profiles those with a profile.
	Users, Profiles int64
}

// Ledger is the store. Times are kept in milliseconds. All methods are safe for
// concurrent use; errors are the engine's unless said otherwise.
type Ledger interface {
	// Freeze returns the identity system of a project: asked at the first call,
	// the same for ever after.
	Freeze(ctx context.Context, projectID int64, asked project.IdentitySystem) (project.IdentitySystem, error)
	// Update runs fn in one transaction on a project that Freeze knows: all of it
	// is durable when Update returns nil, nothing of it otherwise. Updates of one
	// project are serial.
	Update(ctx context.Context, projectID int64, fn func(Tx) error) error

	// IDs looks ids up; unknown ones are missing from the answer.
	IDs(ctx context.Context, projectID int64, ids []string) (map[string]ID, error)
	// Former returns the number of the user that was first seen with an id and lost
	// it to another by Repoint; 0 when there is none.
	Former(ctx context.Context, projectID int64, id string) (uint64, error)
	// Cluster returns the user an id belongs to, nil for an unknown id. literal
	// prefers the former user.
	Cluster(ctx context.Context, projectID int64, id string, literal bool) (*Cluster, error)
	// Members reads canonical users in ascending order of nos, which must be
	// sorted; merged-away and unknown numbers are left out. At most 1,000 nos.
	Members(ctx context.Context, projectID int64, nos []uint64) ([]Member, error)
	// Profiles pages through profiles with user number > after, ascending.
	Profiles(ctx context.Context, projectID int64, after uint64, limit int) ([]Member, error)
	// Names returns for each number the number and distinct id of its canonical user.
	Names(ctx context.Context, projectID int64, nos []uint64) (map[uint64]Name, error)
	// Changes returns users changed after since, in order of sequence, at most limit.
	Changes(ctx context.Context, projectID int64, since uint64, limit int) ([]Change, error)
	// ChangedUsers returns the numbers of users changed after since, merged-away
	// ones and their canonical users included.
	ChangedUsers(ctx context.Context, projectID int64, since uint64) ([]uint64, error)
	// Merges returns the merges with since < sequence ≤ upTo, in order.
	Merges(ctx context.Context, projectID int64, since, upTo uint64) ([]Merge, error)
	// UserBefore returns the user that an id belonged to before an instant, with
	// all numbers; nil for an unknown id. Aliases that moved are taken as they are
	// now; literal prefers the former user.
	UserBefore(ctx context.Context, projectID int64, id string, before time.Time, literal bool) (*PastUser, error)
	// Projects lists the projects that Freeze knows, by id.
	Projects(ctx context.Context) ([]int64, error)
	Reclassifications
	// Warnings lists a project's warnings by kind.
	Warnings(ctx context.Context, projectID int64) ([]Warning, error)
	// Seq returns the newest sequence, cheaply; 0 for an unknown project.
	Seq(ctx context.Context, projectID int64) (uint64, error)
	// State returns a project's counters; zero for an unknown project.
	State(ctx context.Context, projectID int64) (State, error)
	// Groups pages through group profiles after (key, id), ascending by both; only
	// those of one key when only is not empty.
	Groups(ctx context.Context, projectID int64, only, afterKey, afterID string, limit int) ([]Group, error)
	// Group returns a group's profile, nil when there is none.
	Group(ctx context.Context, projectID int64, key, id string) (*Group, error)
	// Close releases the store.
	Close() error
}

// PastUser is a user as of an instant.
type PastUser struct {
	// Canonical is the number and DistinctID the id of the canonical user then.
	Canonical  uint64
	DistinctID string
	// Nos are all numbers of the user then, Canonical included.
	Nos []uint64
}

// Name is the canonical user of a number.
type Name struct {
	// Canonical is its number.
	Canonical uint64
	// DistinctID is its id.
	DistinctID string
	// Own is the id the asked number was made for.
	Own string
}

// Link is why two ids belong together.
type Link struct {
	// Reason is the kind of link, At when it was made.
	Reason Reason
	At     time.Time
	// To is the id of the user that the link named.
	To string
}

// Tx is one transaction on one project. It sees its own writes.
type Tx interface {
	// IDs looks ids up.
	IDs(ids []string) (map[string]ID, error)
	// Former is Ledger.Former.
	Former(id string) (uint64, error)
	// Users looks numbers up.
	Users(nos []uint64) (map[uint64]User, error)
	// NewUsers makes a user for each id, all unknown and different, and returns
	// them in order. A number that the transaction does not commit is used again.
	NewUsers(ids []string, at time.Time) ([]ID, error)
	// AddAlias makes an unknown id one of canonical user no's. l says why.
	AddAlias(id string, no uint64, l Link) (ID, error)
	// Repoint makes a known id one of user no's from now on, without its earlier
	// events. The user it had keeps them; both get the next sequence.
	Repoint(id string, no uint64, l Link) error
	// Merge makes every number of canonical user from one of canonical user into,
	// and gives each of them and into the next sequence.
	Merge(from, into uint64, l Link) error
	// Profiles reads profiles of canonical users.
	Profiles(nos []uint64) (map[uint64]Profile, error)
	// PutProfiles writes profiles and gives each user the next sequence.
	PutProfiles(p []Profile) error
	// DeleteProfiles removes profiles and gives each user the next sequence.
	DeleteProfiles(nos []uint64) error
	// SetConflict notes, or with an empty value forgets, that the partner property
	// of a user holds a value that belongs to another user.
	SetConflict(no uint64, property, value string) error
	// Waiting lists who waits for a value, by user number.
	Waiting(value string) ([]Waiting, error)
	// Warn counts a warning.
	Warn(kind string, at time.Time) error
	// Group and PutGroup read and write a group profile; nil props delete it.
	Group(key, id string) (*Group, error)
	PutGroup(key, id string, props []byte, at time.Time) error
}
