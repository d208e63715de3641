// Package channel is the ways a cohort's membership travels to CleverTap. A
// channel writes users as records, and sends records; what to send, when and
// how often again is not its business.
package channel

import (
	"context"
	"io"
	"strings"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// Member is one user as the ingestion service describes them.
type Member struct {
	// UserNo is the user's number in the project.
	UserNo uint64
	// DistinctID is the user's canonical id.
	DistinctID string
	// PartnerID is the value of the identity property, when it is the user's own.
	PartnerID string
	// PartnerIDInvalid means that the value can't be anybody's id, such as "n/a".
	PartnerIDInvalid bool
	// PartnerIDConflict means that the value belongs to someone else.
	PartnerIDConflict bool
	// Columns is JSON for each of the connector's columns, in order; empty when not set.
	Columns [][]byte
}

// Column maps a profile property to a field at the destination.
type Column struct {
	// Property is the profile property's name.
	Property string
	// Field is the name at the destination.
	Field string
}

// Segment is what members are sent to.
type Segment struct {
	// ProjectID and CohortID are decimal ids; CohortID is the stable key.
	ProjectID, CohortID string
	// Name and Description are the cohort's; they may change.
	Name, Description string
}

// Op is what happens to users in the segment.
type Op uint8

const (
	// Add puts users in; Update sends them again with new columns.
	Add Op = iota + 1
	// Remove takes users out by the identifier that was sent.
	Remove
	// Update sends users who are in again.
	Update
)

// Reasons for leaving a user out.
const (
	SkipInvalidIdentifier  = "invalid_identifier"
	SkipIdentifierConflict = "identifier_conflict"
	SkipNoIdentifier       = "no_identifier"
)

// Kinds of warnings about users who were sent.
const (
	WarnEmail = "INVALID_EMAIL"
	WarnPhone = "INVALID_PHONE"
	WarnValue = "INVALID_VALUE"
)

// Encoded is a user ready to be sent.
type Encoded struct {
	// Identifier is the identity CleverTap knows the user by.
	Identifier string
	// Record is a JSON object.
	Record []byte
	// Warnings are kinds, each at most once.
	Warnings []string
}

// Batch is one call's worth of users.
type Batch struct {
	// Op is what to do with them.
	Op Op
	// Replace says that the session's pages are the whole segment.
	Replace bool
	// SessionID is the same for all batches of one run; Page counts them from 1.
	SessionID   string
	Page, Pages int
	// Records are what Encode and Removal gave.
	Records [][]byte
	// Identifiers are the users', by position.
	Identifiers []string
}

// Refusal is one record that the destination did not store.
type Refusal struct {
	// Index is the record's position in the batch, from 0.
	Index int
	// Code is the destination's.
	Code int
	// Retryable says that it may be stored when sent again.
	Retryable bool
	// Amended says that what it was refused for was left out: it is to be sent
	// again at once.
	Amended bool
}

// Traits say how a channel is to be used.
type Traits struct {
	// MaxRecords and MaxBytes bound a batch.
	MaxRecords, MaxBytes int
	// Concurrency is how many calls CleverTap takes at once for an account.
	Concurrency int
	// Group names the limit that calls count against.
	Group string
	// RemovesByCall says that leavers are taken out by calls; otherwise by the next Publish.
	RemovesByCall bool
	// FullReplaces says that a full run's batches replace the segment.
	FullReplaces bool
}

// ByName says that nothing takes a user out but a call with the identifier, so
// that whoever writes to the segment must know all who are in it.
func (t Traits) ByName() bool { return t.RemovesByCall && !t.FullReplaces }

// Channel writes and sends users.
type Channel interface {
	// Name is the channel's, for spans and reports.
	Name() string
	// Traits are constant.
	Traits() Traits
	// Encode writes a user, or says why the user can't be sent.
	Encode(m Member) (Encoded, string)
	// Removal writes the record that takes an identifier out.
	Removal(identifier string) []byte
	// Send makes one call. Records that were refused are returned; an error, a
	// *clevertap.Error, is about the call as a whole.
	Send(ctx context.Context, s Segment, b Batch) ([]Refusal, error)
}

// Publisher is a channel that also sends the segment's whole membership once
// the batches of a run are through.
type Publisher interface {
	Channel
	// PublishLine is an identifier's line of the file; empty when it can't be there.
	PublishLine(identifier string) string
	// Publish makes the calls that put file, of size bytes, in the segment's
	// place, and returns how many calls it made.
	Publish(ctx context.Context, s Segment, file io.ReaderAt, size int64) (calls int, err error)
}

// Preparer is a channel whose users are first written as profiles and then put
// into a segment that has to be made, by two kinds of calls. Its batches take
// users out by name; an Update changes profiles only.
type Preparer interface {
	Channel
	// Open makes the segment. It is done before the batches of a full run, and may
	// be done again.
	Open(ctx context.Context, s Segment) error
	// Prepare writes profiles, what Encode gave, in one call.
	Prepare(ctx context.Context, records [][]byte) ([]Refusal, error)
	// PrepareTraits are the limits of those calls: Concurrency and Group.
	PrepareTraits() Traits
}

// Amender is a channel that can do without a field that the destination refused.
type Amender interface {
	// Amend writes a record without what the code is about, and the warning that
	// goes with it; nil when the code is about something else.
	Amend(record []byte, code int) (amended []byte, warning string)
}

// Config is what a channel is made of.
type Config struct {
	// Client makes the calls.
	Client *clevertap.Client
	// Account is where they go.
	Account clevertap.Account
	// Columns are sent with each user.
	Columns []Column
}

// forbidden are the values CleverTap refuses as identities.
// Source: https://developer.clevertap.com/docs/upload-user-profiles-api.
var forbidden = map[string]bool{
	"undefined": true, "null": true, "na": true, "n/a": true, "0": true, "nil": true, "-1": true, "infinity": true,
	"-infinity": true, "inf": true, "-inf": true, "nan": true, "-nan": true, "empty": true, "xxxxxx": true, "none": true, "": true,
}

// ValidIdentifier reports whether CleverTap takes the value as an identity.
func ValidIdentifier(id string) bool {
	return len(id) < 1024 && !forbidden[strings.ToLower(strings.TrimSpace(id))]
}

// identify chooses the identifier: the partner id when one is set, else the
// canonical id. A partner id that can't be one is not passed over in favour of the
// canonical id: that would make a second profile at CleverTap for a person who may
// have one.
func identify(m Member) (id, skip string) {
	switch {
	case m.PartnerIDConflict:
		return "", SkipIdentifierConflict
	case m.PartnerIDInvalid:
		return "", SkipInvalidIdentifier
	case m.PartnerID != "" && ValidIdentifier(m.PartnerID):
		return m.PartnerID, ""
	case m.PartnerID != "":
		return "", SkipInvalidIdentifier
	case m.DistinctID == "":
		return "", SkipNoIdentifier
	case ValidIdentifier(m.DistinctID):
		return m.DistinctID, ""
	}
	return "", SkipInvalidIdentifier
}
