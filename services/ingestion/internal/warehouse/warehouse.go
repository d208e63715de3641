// Package warehouse is the columnar store of events and of what cohorts and
// usage are computed from. It is implemented by store/duck; warehousetest is the
// suite every implementation passes.
package warehouse

import (
	"context"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
)

// Flags of a stored event. The numbers are stored.
const (
	// FlagImport marks events of /import.
	FlagImport = 1
	// FlagGenerated marks events whose insert id was generated: they never deduplicate.
	FlagGenerated = 2
	// FlagGuardrail marks events that count in the MTU guardrail's total.
	FlagGuardrail = 4
)

// Row is one event as it is stored. The byte slices are only read during Append.
type Row struct {
	// ProjectID and UserNo say whose it is; UserNo 0 is nobody.
	ProjectID int64
	UserNo    uint64
	// Name is the event's name.
	Name string
	// TimeMS is the event's time, ReceivedMS the processing time; Unix milliseconds.
	TimeMS, ReceivedMS int64
	// Day and Hash are the dedupe key within the project; ignored with FlagGenerated.
	Day  int32
	Hash uint64
	// InsertID is the sender's or a generated one.
	InsertID []byte
	// Source is `$source`, Rule the MTU rule that exempts the event, empty if it qualifies.
	Source []byte
	Rule   string
	// RulesVersion is the version of the rules that judged it.
	RulesVersion uint16
	// Flags are Flag… bits.
	Flags uint8
	// Props is the JSON object of the properties.
	Props []byte
}

// Appended is the outcome of an Append.
type Appended struct {
	// Stored counts new events.
	Stored int
	// Duplicates counts, per row of the call that was one, nothing else: rows that
	// were there already or twice in the call. Duplicate[i] tells which.
	Duplicates int
	Duplicate  []bool
}

// Exported is one event as it is read back.
type Exported struct {
	// UserNo is the number it is stored under, before merges.
	UserNo uint64
	// Name, TimeMS, ReceivedMS, InsertID, Rule, Flags, Props are as stored.
	Name               string
	TimeMS, ReceivedMS int64
	InsertID, Rule     string
	Flags              uint8
	Props              []byte
}

// ExportQuery asks for events with FromMS ≤ time < ToMS.
type ExportQuery struct {
	// ProjectID is whose.
	ProjectID int64
	// FromMS and ToMS bound the event time, Unix milliseconds.
	FromMS, ToMS int64
	// Names restricts the events; all when empty.
	Names []string
}

// UsageQuery asks for events with FromMS ≤ time < ToMS.
type UsageQuery struct {
	// ProjectID is whose.
	ProjectID int64
	// FromMS and ToMS bound the time, Unix milliseconds.
	FromMS, ToMS int64
	// ByEventTime takes the event's time instead of the processing time.
	ByEventTime bool
	// MergedBeforeMS counts users as they were before an instant, Unix
	// milliseconds; 0 counts them as they are now.
	MergedBeforeMS int64
}

// GroupBy is what usage is split by.
type GroupBy uint8

const (
	// ByDay splits by UTC day of the time asked for.
	ByDay GroupBy = 1
	// BySource splits by `$source`.
	BySource GroupBy = 2
	// ByEvent splits by event name.
	ByEvent GroupBy = 3
)

// UsageGroup is one part of a span.
type UsageGroup struct {
	// Key is the source or name; Day the day counted from 1970-01-01.
	Key string
	Day int64
	// Users are canonical users with a qualifying event in the group.
	Users int64
	// Qualifying and Exempt count events.
	Qualifying, Exempt int64
}

// UserUsage is what one user's events count up to.
type UserUsage struct {
	// Qualifying counts events, ExemptByRule the exempt ones.
	Qualifying   int64
	ExemptByRule map[string]int64
	// First is the qualifying event processed first; nil when there is none.
	First *CountedEvent
}

// CountedEvent is an event that makes a user count.
type CountedEvent struct {
	// Name and Source are as stored; RulesVersion is that of the rules that judged it.
	Name, Source string
	RulesVersion uint16
	// TimeMS is the event's time, ReceivedMS the processing time; Unix milliseconds.
	TimeMS, ReceivedMS int64
}

// Judged is what a verdict depends on, with the verdict that is stored.
type Judged struct {
	// Name, Source and PartnerID are the event's.
	Name, Source, PartnerID string
	// Verdict is the stored one.
	Verdict mtu.Verdict
}

// DayCount is how many events a day has.
type DayCount struct {
	// Day is the UTC day of event time, counted from 1970-01-01.
	Day int32
	// Events is how many.
	Events int64
}

// Usage is what a span of time counts up to.
type Usage struct {
	// Users are canonical users with a qualifying event; ExemptOnly those with
	// exempt events only.
	Users, ExemptOnly int64
	// Qualifying and Exempt count events; Guardrail those in the guardrail's total.
	Qualifying, Exempt, Guardrail int64
	// ExemptByRule counts exempt events by rule.
	ExemptByRule map[string]int64
	// BySource counts all events by `$source`.
	BySource map[string]int64
}

// LeafResult is the answer to one leaf.
type LeafResult struct {
	// Users are the canonical users selected.
	Users *roaring64.Bitmap
	// Took is how long the query ran.
	Took time.Duration
}

// Evaluation is the answer to a set of leaves on one snapshot.
type Evaluation struct {
	// Leaves are the answers in order.
	Leaves []LeafResult
	// Identified are the users with a profile.
	Identified *roaring64.Bitmap
	// NewestMS is the processing time of the newest event seen, 0 for none.
	NewestMS int64
	// Seq is the sequence up to which profiles and merges are included.
	Seq uint64
}

// Warehouse is the store. Errors are the engine's unless said otherwise. All
// methods are safe for concurrent use; Append is called by one writer at a time.
type Warehouse interface {
	// Append stores the rows that are not there yet, in one transaction: all of
	// them are durable when it returns nil, none otherwise.
	Append(ctx context.Context, rows []Row) (Appended, error)
	// Apply brings the projection of profiles and merges up to date with changes
	// and merges in order of sequence, all those after the last upTo up to this one.
	Apply(ctx context.Context, projectID int64, changes []ledger.Change, merges []ledger.Merge, upTo uint64) error
	// AppliedSeq is the upTo of the last Apply, 0 for none.
	AppliedSeq(ctx context.Context, projectID int64) (uint64, error)
	// Reset empties a project's projection, so that it is fed from sequence 0.
	Reset(ctx context.Context, projectID int64) error
	// Sort rewrites a project's projection in the order that reads like best.
	Sort(ctx context.Context, projectID int64) error
	// Evaluate answers leaves with windows and relative times fixed at asOf.
	Evaluate(ctx context.Context, projectID int64, leaves []leaf.Leaf, asOf time.Time) (*Evaluation, error)
	// Export calls fn for each event, in no promised order, until fn fails.
	Export(ctx context.Context, q ExportQuery, fn func(Exported) error) error
	// Usage counts events of a span of time.
	Usage(ctx context.Context, q UsageQuery) (*Usage, error)
	// BreakDown splits a span: days in order, others by events, most first.
	BreakDown(ctx context.Context, q UsageQuery, by GroupBy, limit int) ([]UsageGroup, error)
	// UserUsage counts the events of one user, given by all its numbers.
	UserUsage(ctx context.Context, q UsageQuery, nos []uint64) (*UserUsage, error)
	// Days counts events by day of event time, from day to day inclusive, in order.
	Days(ctx context.Context, projectID int64, from, to int32) ([]DayCount, error)
	// Reclassify judges a day's events again and stores the verdicts that differ,
	// in one transaction. Only events that have one of the names, or are exempt now,
	// are judged. changed counts the events whose verdict is another one.
	Reclassify(ctx context.Context, projectID int64, day int32, names []string, rulesVersion uint16, judge func(Judged) mtu.Verdict) (changed int64, err error)
	// Events counts a project's stored events.
	Events(ctx context.Context, projectID int64) (int64, error)
	// Close makes everything durable and releases the store.
	Close() error
}
