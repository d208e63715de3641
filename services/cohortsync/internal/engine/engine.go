// Package engine carries out runs: evaluate, compare with the ledger, write
// the plan, deliver it batch by batch, and record what was confirmed. A run
// may be taken up again at any point by any process that holds its lease.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/diff"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// Users is what the engine asks about people.
type Users interface {
	cohort.Answerer
	// ChangedUsers are the users whose profile or identity changed with since < sequence ≤ until.
	ChangedUsers(ctx context.Context, project int64, since, until uint64) (*roaring64.Bitmap, error)
	// Assign returns the users to whom ids belong, new ones for ids that nobody has,
	// and the positions of those that can't be anybody's. properties is nil, or JSON
	// objects of what to set on each one's profile.
	Assign(ctx context.Context, project int64, ids []string, properties [][]byte) (users *roaring64.Bitmap, refused []int, err error)
	// Resolve reads ids and columns of users and calls each for every one that
	// exists, in ascending order.
	Resolve(ctx context.Context, project int64, users *roaring64.Bitmap, columns []string, partnerProperty string, each func(m channel.Member, identified bool) error) error
}

// Destination is a connector, ready to be sent to.
type Destination struct {
	// Channel is how membership travels.
	Channel channel.Channel
	// Account names the account whose limits the calls count against.
	Account string
	// Place names where the channel's segments are: equal for two connectors
	// through which the same segments are reached.
	Place string
	// Connected says that the connector is known to work.
	Connected bool
	// Properties are the profile properties to read, in the channel's column order.
	Properties []string
	// PartnerProperty is the property that holds the partner id.
	PartnerProperty string
	// Fingerprint changes with anything that changes what is written for a user;
	// its low byte is the channel's.
	Fingerprint uint64
}

// Connectors finds destinations.
type Connectors interface {
	// Resolve returns a connector; a NotFound fault when it is gone.
	Resolve(ctx context.Context, project, connector int64) (*Destination, error)
	// ReportRefused stores that the destination refused the connector's credentials.
	ReportRefused(ctx context.Context, project, connector int64, text string) error
	// ReportConnected stores that a run was delivered through the connector.
	ReportConnected(ctx context.Context, project, connector int64) error
}

// Config are the engine's rules.
type Config struct {
	// Lease is how long a run is ours without a renewal.
	Lease time.Duration
	// Holder names this process in leases.
	Holder string
	// Policy says how long a batch is tried.
	Policy delivery.Policy
	// Guard holds back improbable removals.
	Guard diff.Guard
	// MaxMembers is the largest cohort that is exported.
	MaxMembers uint64
	// SnapshotLife is how long a ledger is trusted without a confirmed run.
	SnapshotLife time.Duration
	// KeepRuns is how many runs of a sync keep their per-user details.
	KeepRuns int
	// Concurrency, when positive, lowers the calls in flight to one account.
	Concurrency int
	// MaxBatchUsers, when positive, lowers the users in one call.
	MaxBatchUsers int
	// TempDir is where list files are spooled.
	TempDir string
	// Now is the clock.
	Now func() time.Time
	// Log gets what operators should know.
	Log *slog.Logger
}

// Engine carries out runs.
type Engine struct {
	cfg        Config
	store      store.Store
	users      Users
	connectors Connectors
	limits     delivery.Limits
	// Hub tells watchers of runs that something changed.
	Hub *Hub

	mu      sync.Mutex
	running map[int64]context.CancelCauseFunc
	// turns hold segments that a run is at.
	turns map[string]*turn
}

// New returns an engine.
func New(cfg Config, st store.Store, u Users, c Connectors) *Engine {
	return &Engine{cfg: cfg, store: st, users: u, connectors: c, Hub: NewHub(), running: map[int64]context.CancelCauseFunc{}, turns: map[string]*turn{}}
}

// turn is a segment's: one run at a time.
type turn struct {
	held chan struct{}
	// wanted counts those who hold it or wait.
	wanted int
}

// turnAt waits until no other run of this process is at the segment. Runs of a
// connector are in order already; this is for connectors that reach the same
// one. Call the function when done; it is nil when ctx ended first.
func (e *Engine) turnAt(ctx context.Context, segment string) (done func()) {
	e.mu.Lock()
	t := e.turns[segment]
	if t == nil {
		t = &turn{held: make(chan struct{}, 1)}
		e.turns[segment] = t
	}
	t.wanted++
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.wanted--; t.wanted == 0 {
			delete(e.turns, segment)
		}
	}
	select {
	case t.held <- struct{}{}:
		return func() { <-t.held; leave() }
	case <-ctx.Done():
		leave()
		return nil
	}
}

// Causes of a run's stop.
var (
	errCancelled = errors.New("cancelled on request")
	errLease     = errors.New("lease lost")
	errBroken    = errors.New("the destination does not answer")
	errRefused   = errors.New("the destination refused")
	errDrained   = errors.New("the process stops")
)

// Cancel stops a run that this process works on, if it does. The caller has
// recorded the request.
func (e *Engine) Cancel(run int64) {
	e.mu.Lock()
	stop := e.running[run]
	e.mu.Unlock()
	if stop != nil {
		stop(errCancelled)
	}
	e.Hub.Notify(run)
}

// maxAttempts is how often a run is taken up before an error of our own ends it.
const maxAttempts = 10

// Execute works on a run until it is final, blocked, or ctx ends; calls in
// flight go on until hard ends. A run that is not to be worked on now, because
// it is over, someone is at it, or an earlier run of its connector is not
// through, is left alone.
func (e *Engine) Execute(ctx, hard context.Context, runID int64) error {
	run, lease, res, err := e.store.TakeRun(ctx, runID, e.cfg.Holder, e.cfg.Now(), e.cfg.Lease)
	if err != nil && ctx.Err() != nil {
		return nil //nolint:nilerr // the process stops; the next one takes it up
	}
	if err != nil || res != store.Taken {
		return err
	}
	stop, cancel := context.WithCancelCause(ctx)
	e.mu.Lock()
	e.running[runID] = cancel
	e.mu.Unlock()
	var wg sync.WaitGroup
	// The lease is kept while a stopped run still writes down what was confirmed.
	leaseCtx, endLease := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { e.keepLease(leaseCtx, lease, cancel) })
	x := &execution{Engine: e, run: run, lease: lease, drain: ctx, stop: stop, hard: hard, halt: cancel}
	if run.CancelRequested {
		cancel(errCancelled)
	}
	err = x.execute() //nolint:contextcheck // the execution carries its two contexts, stop and hard
	if err != nil && ctx.Err() == nil && !errors.Is(context.Cause(stop), errLease) && run.Attempts >= maxAttempts {
		err = errors.Join(err, x.giveUp()) //nolint:contextcheck // as above
	}
	cancel(nil)
	endLease()
	wg.Wait()
	e.mu.Lock()
	delete(e.running, runID)
	e.mu.Unlock()
	// Harmless after a finished run; else the next process need not wait for the lease to expire.
	if rerr := e.store.ReleaseLease(context.WithoutCancel(ctx), lease); rerr != nil {
		err = errors.Join(err, rerr)
	}
	e.Hub.Notify(runID)
	if err != nil && (errors.Is(err, errLease) || ctx.Err() != nil || fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound)) {
		e.cfg.Log.InfoContext(ctx, "run left to be resumed", "run", runID)
		return nil //nolint:nilerr // the run is not ours to end: whoever takes it up next does
	}
	return err
}

// keepLease renews the lease until ctx ends, and stops the run when it is lost
// or someone asked for the run's end in another process.
func (e *Engine) keepLease(ctx context.Context, l store.Lease, stop context.CancelCauseFunc) {
	t := time.NewTicker(e.cfg.Lease / 3)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		cancelled, err := e.store.RenewLease(ctx, l, e.cfg.Now(), e.cfg.Lease)
		switch {
		case err == nil:
			last = time.Now()
			if cancelled {
				stop(errCancelled)
			}
		case ctx.Err() != nil:
			return
		case fault.Is(err, fault.Conflict) || time.Since(last) > e.cfg.Lease:
			stop(errLease)
			return
		}
	}
}
