// Package store declares what the engine keeps: cohorts, syncs, runs with
// their batches, and the ledger of what was sent. Implementations pass the
// suite in storetest.
package store

import (
	"context"
	"strconv"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Cohort is a named definition.
type Cohort struct {
	ID, ProjectID            int64
	DisplayName, Description string
	Definition               *typev1.Expression
	// Version counts changes of the definition, from 1.
	Version int32
	// Revision counts all changes, from 1; it is the etag.
	Revision       int64
	LastEvaluation *Evaluation
	// Failed is the newest evaluation if it failed.
	Failed *EvaluationRecord
	// SyncInterval is that of its most frequent active dynamic sync; 0 without one.
	SyncInterval time.Duration
	// MembersUpdated is when its kept users last changed; zero for none.
	MembersUpdated time.Time
	Created        time.Time
	Updated        time.Time
}

// Evaluation is an evaluation in numbers.
type Evaluation struct {
	AsOf       time.Time     `json:"as_of"`
	Users      int64         `json:"users"`
	Identified int64         `json:"identified"`
	Took       time.Duration `json:"took"`
	Leaves     []LeafStat    `json:"leaves,omitempty"`
	ProfileSeq uint64        `json:"profile_seq"`
}

// LeafStat is one leaf's part in an evaluation.
type LeafStat struct {
	Summary string        `json:"summary"`
	Users   int64         `json:"users"`
	Took    time.Duration `json:"took"`
}

// Mode of a sync.
type Mode int

// Modes; the values are those of the contract and stored.
const (
	OneTime Mode = 1
	Dynamic Mode = 2
)

// SyncState is where a sync stands.
type SyncState int

// States of a sync; the values are those of the contract and stored.
const (
	SyncActive    SyncState = 1
	SyncPaused    SyncState = 2
	SyncCompleted SyncState = 3
)

// Pause reasons.
const (
	PauseRequested        = "REQUESTED"
	PauseRefused          = "DESTINATION_REFUSED"
	PauseConnectorMissing = "CONNECTOR_MISSING"
	PauseTooLarge         = "TOO_LARGE"
)

// Pause says why a sync does not run.
type Pause struct {
	Reason, Text, Actor string
	Since               time.Time
}

// Sync is a cohort exported through a connector.
type Sync struct {
	ID, ProjectID, CohortID, ConnectorID int64
	Mode                                 Mode
	Interval                             time.Duration
	State                                SyncState
	Pause                                *Pause
	// NextRun is when the next scheduled run is due; zero when none is.
	NextRun time.Time
	Created time.Time
	// Origin is the traceparent of the request that created the sync.
	Origin string
	Ledger LedgerState
}

// LedgerState is what is known of a sync's ledger as a whole.
type LedgerState struct {
	// Members is how many users are in.
	Members int64
	// NeedsFull says that the destination's content is not known: the next run sends everyone.
	NeedsFull bool
	// ProfileSeq is the profile sequence up to which changed columns have been looked at.
	ProfileSeq uint64
	// Fingerprint is of the columns and channel that the hashes were made with.
	Fingerprint uint64
	// PublishPending says that the ledger changed since the list was last published.
	PublishPending bool
	// Dirty are users whose columns are to be looked at again whatever the sequence says.
	Dirty *roaring64.Bitmap
	// Confirmed is when a run last confirmed the ledger; zero when none has.
	Confirmed time.Time
}

// RunState is where a run stands.
type RunState int

// States of a run; the values are those of the contract and stored.
const (
	Queued     RunState = 1
	Evaluating RunState = 2
	Planning   RunState = 3
	Delivering RunState = 4
	Confirming RunState = 5
	Succeeded  RunState = 6
	Partial    RunState = 7
	Failed     RunState = 8
	Cancelled  RunState = 9
	Blocked    RunState = 10
)

// String is the state's name in the contract.
func (s RunState) String() string {
	if int(s) >= len(runStates) || s < 0 {
		return strconv.Itoa(int(s))
	}
	return runStates[s]
}

var runStates = [...]string{"UNSPECIFIED", "QUEUED", "EVALUATING", "PLANNING", "DELIVERING", "CONFIRMING", "SUCCEEDED", "PARTIAL", "FAILED", "CANCELLED", "BLOCKED"}

// Final reports whether the run will not change again.
func (s RunState) Final() bool { return s >= Succeeded && s <= Cancelled }

// Active reports whether the run is waiting for its turn or under way.
func (s RunState) Active() bool { return s >= Queued && s <= Confirming }

// Trigger is what asked for a run.
type Trigger int

// Triggers; the values are those of the contract and stored.
const (
	ByRequest  Trigger = 1
	BySchedule Trigger = 2
)

// Run is one execution of a sync.
type Run struct {
	ID, SyncID, ProjectID, ConnectorID int64
	State                              RunState
	Trigger                            Trigger
	Full                               bool
	Evaluation                         *Evaluation
	Totals                             Totals
	// Reason is a stable code; ReasonText is for people.
	Reason, ReasonText string
	// Parent is the traceparent of the request that asked for the run; empty
	// for scheduled runs. Span is that of the run's own span.
	Parent, Span, TraceID     string
	Created, Started, Ended   time.Time
	Attempts                  int
	CancelRequested, Approved bool
	// Plan is set once the plan is written.
	Plan *Plan
}

// Plan is what was decided when the run's batches were written.
type Plan struct {
	// RemovesFirst says that an identifier moves between users, so removals
	// must be through before the other batches start.
	RemovesFirst bool `json:"removes_first,omitempty"`
	// ProfileSeq and Fingerprint are the ledger's once the run is confirmed.
	ProfileSeq  uint64 `json:"profile_seq"`
	Fingerprint uint64 `json:"fingerprint"`
	// Channel is the channel the batches' records were written for.
	Channel string `json:"channel"`
	// Pages is the number of batches by operation; their pages count from 1.
	Pages map[channel.Op]int `json:"pages"`
	// Segment is the key of the destination's segment that the plan is for.
	Segment string `json:"segment,omitempty"`
	// ByName says that users leave that segment by a call with their identifier only.
	ByName bool `json:"by_name,omitempty"`
	// Opened says that the segment was made, where that is a call of its own.
	Opened bool `json:"opened,omitempty"`
}

// Totals are a run's numbers.
type Totals struct {
	Evaluated, Sent, Unchanged, Skipped, Failed, Pending int64
	Added, Updated, Removed, RemovePending, RemoveFailed int64
	SkippedBy, FailedBy, Warnings                        map[string]int64 `json:",omitempty"`
	Batches, BatchesDone, Calls                          int64
}

// Add adds d to t.
func (t *Totals) Add(d Totals) {
	t.Evaluated += d.Evaluated
	t.Sent += d.Sent
	t.Unchanged += d.Unchanged
	t.Skipped += d.Skipped
	t.Failed += d.Failed
	t.Pending += d.Pending
	t.Added += d.Added
	t.Updated += d.Updated
	t.Removed += d.Removed
	t.RemovePending += d.RemovePending
	t.RemoveFailed += d.RemoveFailed
	t.Batches += d.Batches
	t.BatchesDone += d.BatchesDone
	t.Calls += d.Calls
	for _, p := range []struct {
		to   *map[string]int64
		from map[string]int64
	}{{&t.SkippedBy, d.SkippedBy}, {&t.FailedBy, d.FailedBy}, {&t.Warnings, d.Warnings}} {
		for k, n := range p.from {
			if *p.to == nil {
				*p.to = map[string]int64{}
			}
			(*p.to)[k] += n
		}
	}
}

// Balanced reports whether every evaluated user is accounted for exactly once.
func (t Totals) Balanced() bool {
	return t.Evaluated == t.Sent+t.Unchanged+t.Skipped+t.Failed+t.Pending
}

// Outcome is what came of one user of a batch; the values are those of the contract.
type Outcome uint8

// Outcomes.
const (
	Sent      Outcome = 1
	Skipped   Outcome = 2
	FailedOne Outcome = 3
	Unknown   Outcome = 4
	Pending   Outcome = 5
)

// Flags of a user in a batch.
const (
	FlagEmail byte = 1 << iota
	FlagPhone
	FlagValue
	// FlagMoved marks both halves of a changed identifier: the removal of the
	// old one, which takes nobody out of the cohort, and the adding of the new
	// one, which is an update. So is the adding of a user who may be in.
	FlagMoved
)

// Batch is one planned call.
type Batch struct {
	// Index counts a run's batches from 0. Page counts those of one
	// operation from 1.
	Index, Page int
	Op          channel.Op
	// Entries are the users, in ascending order.
	Entries []ledger.Entry
	// Flags has one byte a user.
	Flags []byte
	// Records are what is sent; gone once the run is final.
	Records [][]byte
	Result  *Result
}

// Result is what came of a batch.
type Result struct {
	Index int
	// Outcome and Reason are those of every user not in Except.
	Outcome Outcome
	Reason  string
	// Except are users by position whose outcome differs.
	Except map[int]Exception
	// Attempts counts calls that were answered or timed out; Throttled those refused for load.
	Attempts, Throttled int
}

// Exception is one user's outcome.
type Exception struct {
	Outcome Outcome `json:"o"`
	Reason  string  `json:"r,omitempty"`
	// Flags are warnings that the destination's answers added to the batch's.
	Flags byte `json:"f,omitempty"`
}

// FlagsOf are the warnings that were added for the user at a position.
func (r *Result) FlagsOf(i int) byte {
	if r == nil {
		return 0
	}
	return r.Except[i].Flags
}

// Of is the outcome and reason of the user at a position.
func (r *Result) Of(i int) (Outcome, string) {
	if r == nil {
		return Pending, ""
	}
	if e, ok := r.Except[i]; ok {
		return e.Outcome, e.Reason
	}
	return r.Outcome, r.Reason
}

// BatchHead is a batch without its users.
type BatchHead struct {
	Index, Page int
	Op          channel.Op
	Users       int
	// First and Last bound the users' numbers.
	First, Last uint64
	// Done says that it has a result; Clean that every user was sent.
	Done, Clean bool
}

// Lease is the right to work on a run. Writes with a lease that was lost fail
// with a Conflict fault of reason LEASE_LOST.
type Lease struct {
	RunID, Token int64
}

// Finish is what the end of a run changes.
type Finish struct {
	State              RunState
	Reason, ReasonText string
	// Ledger replaces the sync's ledger state.
	Ledger LedgerState
	// Orphans replace the sync's orphans: identifiers that were sent, belong
	// to no entry any more, and may still be in at the destination.
	Orphans []ledger.Entry
	// Segment is the key of the segment the run wrote to, empty when none. If
	// another sync has become its last writer, nobody is any more: both wrote.
	Segment string
	// KeepLedger leaves the ledger state and orphans as they are.
	KeepLedger bool
	// SyncState, when not 0, and Pause are the sync's new state.
	SyncState SyncState
	Pause     *Pause
}

// TakeResult is what became of trying to take a run.
type TakeResult int

// Results of TakeRun.
const (
	// Taken: the run is ours.
	Taken TakeResult = iota
	// NotMine: the run is final, blocked, or someone else is at it.
	NotMine
	// NotYet: an earlier run of the connector is not through.
	NotYet
)

// Store keeps everything of the engine. Missing things are NotFound faults.
// All methods are safe for concurrent use.
type Store interface {
	Cohorts
	Receiver
	Syncs
	Runs
	Ledgers
	// Close releases the store.
	Close() error
}

// Cohorts keeps definitions.
type Cohorts interface {
	// CreateCohort stores c and returns it with its id. The same requestID
	// again returns the first one's cohort. A taken name is an Exists fault.
	CreateCohort(ctx context.Context, c Cohort, requestID string) (Cohort, error)
	// Cohort reads one.
	Cohort(ctx context.Context, project, id int64) (Cohort, error)
	// ListCohorts reads up to limit with an id above after.
	ListCohorts(ctx context.Context, project, after int64, limit int) ([]Cohort, error)
	// UpdateCohort replaces name, description, definition and version if the
	// stored revision is still c.Revision; else it fails with a Conflict fault.
	UpdateCohort(ctx context.Context, c Cohort) (Cohort, error)
	// DeleteCohort removes one; a Precondition fault while a sync uses it or another
	// cohort refers to it.
	DeleteCohort(ctx context.Context, project, id int64) error
	// SetEvaluation records an evaluation that succeeded.
	SetEvaluation(ctx context.Context, project, id int64, e Evaluation) error
	// SetEvaluationFailed records one that failed; the last successful one stays.
	SetEvaluationFailed(ctx context.Context, project, id int64, f EvaluationRecord) error
	// Evaluations reads up to limit evaluations before an instant, newest first.
	// The newest KeptEvaluations are kept.
	Evaluations(ctx context.Context, project, id int64, before time.Time, limit int) ([]EvaluationRecord, error)
	// CohortMembers are the users that were uploaded to a cohort or that a webhook
	// keeps in it; none for one that never got any.
	CohortMembers(ctx context.Context, project, id int64) (Members, error)
	// ChangeCohortMembers replaces them by what fn makes of them.
	ChangeCohortMembers(ctx context.Context, project, id int64, now time.Time, fn func(*roaring64.Bitmap) *roaring64.Bitmap) (Members, error)
	// ImportCohorts makes or changes cohorts by display name, all or none. resolve
	// gets the numbers of the project's cohorts by display name, the new ones
	// included, and returns the definitions in the order of list.
	ImportCohorts(ctx context.Context, project int64, list []Cohort, now time.Time, resolve func(ids map[string]int64) ([]*typev1.Expression, error)) ([]Cohort, error)
}

// Receiver keeps cohorts that another system sends.
type Receiver interface {
	// ExternalCohort returns the cohort of a source, and makes it at the first call.
	// revive makes it anew when it was deleted; else that is a NotFound fault. Its
	// display name and description become those of want, the name with the source
	// added while another cohort has it.
	ExternalCohort(ctx context.Context, project int64, source string, want Cohort, revive bool, now time.Time) (Cohort, error)
	// AddPage adds a page to a session. A page that came before changes nothing. A
	// session that was overtaken is a Conflict fault; a number of pages that differs
	// from that of the session's other pages is an Invalid fault.
	AddPage(ctx context.Context, project int64, p ExternalPage, now time.Time) (ExternalProgress, error)
}

// ExternalAction is what a session does to a cohort.
type ExternalAction int

// Actions; the values are those of the contract and stored.
const (
	ExternalReplace ExternalAction = 1
	ExternalAdd     ExternalAction = 2
	ExternalRemove  ExternalAction = 3
)

// ExternalPage is a page of a session.
type ExternalPage struct {
	Cohort  int64
	Session string
	Action  ExternalAction
	// Page counts from 1 to Pages.
	Page, Pages int
	Users       *roaring64.Bitmap
}

// ExternalProgress is how far a session is.
type ExternalProgress struct {
	// Pages are there; Complete says that all are, and the cohort is changed.
	Pages    int
	Complete bool
	// Total is how many users the cohort has.
	Total int64
}

// KeptSessions is how long sessions are kept, finished or not: twice as long as the
// sender's own snapshot (https://docs.mixpanel.com/docs/cohort-sync/webhooks).
const KeptSessions = 6 * 24 * time.Hour

// KeptEvaluations is how many evaluations of a cohort are kept: three weeks of one
// every 15 minutes.
const KeptEvaluations = 2000

// EvaluationRecord is an evaluation of the past.
type EvaluationRecord struct {
	AsOf              time.Time
	Users, Identified int64
	Took              time.Duration
	// Version is that of the definition.
	Version int32
	// Reason is empty, or why it failed; ReasonText is for people.
	Reason, ReasonText string
}

// Members are users that are kept for a cohort.
type Members struct {
	Users   *roaring64.Bitmap
	Updated time.Time
}

// Syncs keeps syncs.
type Syncs interface {
	// CreateSync stores s and returns it with its id. The same requestID again
	// returns the first one's sync. More than maxDynamic dynamic syncs in the
	// project are a Precondition fault.
	CreateSync(ctx context.Context, s Sync, requestID string, maxDynamic int) (Sync, error)
	// Sync reads one.
	Sync(ctx context.Context, project, id int64) (Sync, error)
	// ListSyncs reads up to limit with an id above after.
	ListSyncs(ctx context.Context, project, after int64, limit int) ([]Sync, error)
	// SetSyncState sets the state, its pause, and the next run.
	SetSyncState(ctx context.Context, project, id int64, st SyncState, p *Pause, next time.Time) error
	// DeleteSync ends a sync: it is not found any more, its runs are cancelled and its ledger is dropped.
	DeleteSync(ctx context.Context, project, id int64, now time.Time) error
	// StartDue creates a run for each active dynamic sync that is due and has
	// none under way or blocked, sets their next time, and returns the runs.
	StartDue(ctx context.Context, now time.Time, limit int) ([]Run, error)
	// NextDue is when the next sync is due; zero when none is.
	NextDue(ctx context.Context) (time.Time, error)
}

// Runs keeps runs and their batches.
type Runs interface {
	// CreateRun makes a queued run. While one of the sync is active or blocked,
	// that one is returned, and false.
	CreateRun(ctx context.Context, project, sync int64, t Trigger, full bool, parent string, now time.Time) (Run, bool, error)
	// Run reads one.
	Run(ctx context.Context, project, sync, id int64) (Run, error)
	// RunByID reads one by its id alone.
	RunByID(ctx context.Context, id int64) (Run, error)
	// ListRuns reads up to limit with an id below before (0: from the newest), newest first.
	ListRuns(ctx context.Context, project, sync, before int64, limit int) ([]Run, error)
	// LastRun is a sync's newest run; nil when it has none.
	LastRun(ctx context.Context, sync int64) (*Run, error)
	// RequestCancel asks a run to stop; a queued or blocked one is cancelled at once.
	RequestCancel(ctx context.Context, project, sync, id int64, now time.Time) (Run, error)
	// Approve queues a blocked run again; a Precondition fault if it is not blocked.
	Approve(ctx context.Context, project, sync, id int64) (Run, error)

	// TakeRun takes the lease of a run for ttl and counts the attempt.
	TakeRun(ctx context.Context, id int64, holder string, now time.Time, ttl time.Duration) (Run, Lease, TakeResult, error)
	// RenewLease extends a lease and returns whether a cancel was requested.
	RenewLease(ctx context.Context, l Lease, now time.Time, ttl time.Duration) (cancel bool, err error)
	// ReleaseLease gives a lease back; a lost one is no error.
	ReleaseLease(ctx context.Context, l Lease) error
	// ReleaseHolder ends all leases of a holder that is known to be gone.
	ReleaseHolder(ctx context.Context, holder string) error
	// Unattended lists active runs whose turn it is at their connector, that
	// nobody works on and whose wake-up is before now, and sets their wake-up to next.
	Unattended(ctx context.Context, now, next time.Time) ([]int64, error)

	// SaveRun stores state, full, evaluation, totals, reason, span and trace id, plan and start.
	// With a plan and the state Delivering, the run's sync becomes the plan's
	// segment's last writer, and that of no other segment; a run that is not full
	// gets a Conflict fault if the sync isn't the last writer already.
	SaveRun(ctx context.Context, l Lease, r Run) error
	// ClearPlan drops all batches and skips of a run whose plan was not finished.
	ClearPlan(ctx context.Context, l Lease) error
	// AddBatches stores planned batches.
	AddBatches(ctx context.Context, l Lease, bs []Batch) error
	// SetSkips stores the users left out, by reason.
	SetSkips(ctx context.Context, l Lease, by map[string]*roaring64.Bitmap) error
	// BatchHeads lists a run's batches in order.
	BatchHeads(ctx context.Context, run int64) ([]BatchHead, error)
	// Batch reads one batch with users, records and result.
	Batch(ctx context.Context, run int64, index int) (Batch, error)
	// BatchUsers is Batch without the records.
	BatchUsers(ctx context.Context, run int64, index int) (Batch, error)
	// Confirm stores results of batches, adds d to the run's totals, and returns them.
	Confirm(ctx context.Context, l Lease, results []Result, d Totals) (Totals, error)
	// Skips reads the users left out.
	Skips(ctx context.Context, run int64) (map[string]*roaring64.Bitmap, error)
	// FinishRun ends the run and the lease, and drops the records of its batches;
	// details of all but the newest keep runs of the sync are dropped.
	FinishRun(ctx context.Context, l Lease, f Finish, now time.Time, keep int) (Run, error)
}

// Ledgers keeps what was sent.
type Ledgers interface {
	// LedgerMembers are all users in.
	LedgerMembers(ctx context.Context, sync int64) (*roaring64.Bitmap, error)
	// LedgerBlocks lists the numbers of stored blocks, ascending.
	LedgerBlocks(ctx context.Context, sync int64) ([]uint64, error)
	// LedgerBlock reads one block; an absent one is empty.
	LedgerBlock(ctx context.Context, sync int64, no uint64) (ledger.Block, error)
	// SaveBlocks stores blocks of the lease's sync; empty ones are dropped.
	// The base is stored only where rewritten says so.
	SaveBlocks(ctx context.Context, l Lease, sync int64, blocks []ledger.Block, rewritten []bool) error
	// LastWriter is the sync whose ledger says what is in a segment; 0 when none does.
	LastWriter(ctx context.Context, segment string) (sync int64, err error)
	// TakeOver makes the lease's sync the last writer of a segment that users leave
	// by name only, and its ledger and orphans those of who is in there: of the
	// last writer, and of syncs that wrote and were deleted, moved away, or ended
	// after another had begun. What is in its own ledger of another segment stays
	// there for whoever takes that over. It reports whether anything changed; the
	// next run is full then.
	TakeOver(ctx context.Context, l Lease, segment string) (changed bool, err error)
	// Orphans are identifiers sent, without an entry, perhaps still in.
	Orphans(ctx context.Context, sync int64) ([]ledger.Entry, error)
}
