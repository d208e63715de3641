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
)

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
