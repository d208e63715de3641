// Package cohortsync is the cohort sync engine: cohort definitions, syncs of
// cohorts to CleverTap, and the runs that keep segments equal to cohorts.
package cohortsync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/diff"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/jobs"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/server"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store/sqlstore"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/upstream"
)

// Deps are the services cohortsync calls.
type Deps struct {
	// Evaluation answers cohort conditions and reads members (ingestion).
	Evaluation ingestionv1.EvaluationServiceClient
	// Credentials finds connectors (registry).
	Credentials registryv1.CredentialServiceClient
	// Log gets what operators should know; nil means slog.Default.
	Log *slog.Logger
}

// Service is the cohort sync service.
type Service struct {
	cfg       Config
	log       *slog.Logger
	lock      *os.File
	store     store.Store
	queue     *jobs.Queue
	clevertap *clevertap.Client
	engine    *engine.Engine
	cohorts   *server.Cohorts
	receiver  *server.Receiver
	syncs     *server.Syncs
	runs      *server.Runs

	// hard ends when calls in flight must end too.
	hard     context.Context
	endHard  context.CancelFunc
	loops    sync.WaitGroup
	endLoops context.CancelFunc
	kick     chan struct{}
	started  bool
}

// New opens the service's databases. Nothing runs before Start.
func New(ctx context.Context, cfg Config, deps Deps) (_ *Service, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	s := &Service{cfg: cfg, log: deps.Log, kick: make(chan struct{}, 1)}
	s.hard, s.endHard = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	temp := filepath.Join(cfg.DataDir, "tmp")
	// Whatever is in there was left by a process that died.
	if err := errors.Join(os.RemoveAll(temp), os.MkdirAll(temp, 0o700)); err != nil {
		return nil, err
	}
	if s.lock, err = lockDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if s.store, err = sqlstore.Open(ctx, "sqlite:"+filepath.Join(cfg.DataDir, "cohortsync.db")); err != nil {
		return nil, err
	}
	// We hold the directory's lock: whoever held leases from here is gone.
	const holder = "embedded"
	if err := s.store.ReleaseHolder(ctx, holder); err != nil {
		return nil, err
	}
	s.clevertap = clevertap.New(clevertap.Options{Timeout: cfg.CallTimeout, AllowPrivate: cfg.AllowPrivateDestinations})
	users := upstream.Users{Client: deps.Evaluation}
	connectors := upstream.Connectors{Client: deps.Credentials, CleverTap: s.clevertap, PartnerURL: cfg.PartnerURL}
	s.engine = engine.New(engine.Config{
		Lease: cfg.Lease, Holder: holder,
		Policy: delivery.Policy{Tries: cfg.RetryTries, Budget: cfg.RetryBudget, Backoff: cfg.RetryBackoff, MaxBackoff: cfg.RetryMaxBackoff,
			ThrottleBackoff: cfg.ThrottleBackoff, ThrottleBudget: cfg.ThrottleBudget},
		Guard:      diff.Guard{MinMembers: cfg.GuardMinMembers, MaxRemovedShare: cfg.GuardMaxRemovedShare},
		MaxMembers: cfg.MaxMembers, SnapshotLife: cfg.SnapshotLife, KeepRuns: cfg.KeepRuns, Concurrency: cfg.AccountConcurrency, MaxBatchUsers: cfg.MaxBatchUsers,
		TempDir: temp, Now: cfg.Now, Log: deps.Log,
	}, s.store, sharedUsers{users, cohort.NewShared(users, gather, cfg.Now)}, connectors)
	s.queue, err = jobs.Open(ctx, jobs.Config{Path: filepath.Join(cfg.DataDir, "jobs.db"), Workers: cfg.Workers, Poll: cfg.Poll, Log: deps.Log}, s.work)
	if err != nil {
		return nil, err
	}
	s.cohorts = &server.Cohorts{Store: s.store, Users: users, Now: cfg.Now}
	s.receiver = &server.Receiver{Store: s.store, Users: users, Now: cfg.Now}
	s.syncs = &server.Syncs{Store: s.store, Connectors: connectors, Enqueue: s.enqueue, Cancel: s.engine.Cancel, DryRun: s.engine.DryRun,
		Interval: cfg.DefaultInterval, MaxDynamic: cfg.MaxDynamicSyncs, Now: cfg.Now}
	s.runs = &server.Runs{Store: s.store, Engine: s.engine, Enqueue: s.enqueue, Now: cfg.Now}
	return s, nil
}

// gather is how long a run's evaluation waits for those of other runs that are due at
// the same tick.
const gather = 20 * time.Millisecond

// sharedUsers lets runs evaluate together.
type sharedUsers struct {
	upstream.Users
	shared *cohort.Shared
}

// AnswerLeaves implements cohort.Answerer.
func (u sharedUsers) AnswerLeaves(ctx context.Context, project int64, leaves []cohort.Leaf, asOf time.Time) (*cohort.Answers, error) {
	return u.shared.AnswerLeaves(ctx, project, leaves, asOf)
}

// lockDir makes sure that one process at a time uses the directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "cohortsync.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory %s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}

// Register adds the service's APIs to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	cohortsyncv1.RegisterCohortServiceServer(r, s.cohorts)
	cohortsyncv1.RegisterReceiverServiceServer(r, s.receiver)
	cohortsyncv1.RegisterSyncServiceServer(r, s.syncs)
	cohortsyncv1.RegisterRunServiceServer(r, s.runs)
}

// Start begins to work on runs: those that a stopped process left, and due ones.
func (s *Service) Start(ctx context.Context) error {
	if err := s.queue.Start(ctx); err != nil {
		return err
	}
	loop, end := context.WithCancel(context.WithoutCancel(ctx))
	s.endLoops, s.started = end, true
	s.loops.Go(func() { s.attend(loop) })
	s.loops.Go(func() { s.schedule(loop) })
	return nil
}

// work is a job.
func (s *Service) work(ctx context.Context, run int64) error {
	err := s.engine.Execute(ctx, s.hard, run)
	if err != nil {
		s.log.ErrorContext(ctx, "run failed with an internal error", "run", run, "error", causes(err))
	}
	// The connector is free for its next run.
	s.poke()
	return nil
}

// causes shows the private causes of an error: this is the log, not an answer.
func causes(err error) string {
	text := err.Error()
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		text += ": " + e.Error()
	}
	return text
}

func (s *Service) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *Service) enqueue(ctx context.Context, run int64) {
	// A run whose job can't be stored is found by attend.
	if err := s.queue.Enqueue(context.WithoutCancel(ctx), run); err != nil {
		s.log.WarnContext(ctx, "job not stored", "run", run, "error", err)
	}
}

const (
	// attendEvery is how often runs without anyone working on them are looked for.
	attendEvery = 500 * time.Millisecond
	// attendAgain is how long a job has to take up its run.
	attendAgain = 5 * time.Second
	// dueAtOnce is how many due syncs are started in one transaction.
	dueAtOnce = 100
)

// attend queues runs that nobody works on: left by a process that died, or
// waiting for an earlier run of their connector that is now through.
func (s *Service) attend(ctx context.Context) {
	t := time.NewTicker(attendEvery)
	defer t.Stop()
	for {
		now := s.cfg.Now()
		runs, err := s.store.Unattended(ctx, now, now.Add(attendAgain))
		if err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "looking for unattended runs failed", "error", err)
		}
		for _, id := range runs {
			s.enqueue(ctx, id)
		}
		select {
		case <-t.C:
		case <-s.kick:
		case <-ctx.Done():
			return
		}
	}
}

// schedule starts the runs of dynamic syncs when they are due.
func (s *Service) schedule(ctx context.Context) {
	t := time.NewTicker(attendEvery)
	defer t.Stop()
	for {
		if due, err := s.store.NextDue(ctx); err == nil && !due.IsZero() && !due.After(s.cfg.Now()) {
			runs, err := s.store.StartDue(ctx, s.cfg.Now(), dueAtOnce)
			if err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "starting due syncs failed", "error", err)
			}
			for _, r := range runs {
				s.enqueue(ctx, r.ID)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// drainCalls is how long calls in flight may go on when the service closes.
const drainCalls = 7 * time.Second

// lastGrace is how long workers have to notice that their calls were ended.
const lastGrace = 2 * time.Second

// Close stops taking runs, lets calls in flight finish, records what they
// confirmed, gives the leases back, and closes the databases; within 10 s.
func (s *Service) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var err error
	if s.started {
		s.endLoops()
		s.loops.Wait()
		// What calls in flight confirmed takes some of the time to be recorded.
		calls := drainCalls
		if end, ok := ctx.Deadline(); ok {
			calls = min(calls, time.Until(end)*7/10)
		}
		t := time.AfterFunc(calls, s.endHard)
		defer t.Stop()
		if err = s.queue.Stop(ctx); err != nil {
			// Nobody may be at work when the databases close.
			s.endHard()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastGrace)
			defer cancel()
			err = s.queue.Stop(last)
		}
	}
	return errors.Join(err, s.release())
}

// release closes what New opened.
func (s *Service) release() error {
	s.endHard()
	var errs []error
	if s.queue != nil {
		errs = append(errs, s.queue.Close())
	}
	if s.clevertap != nil {
		s.clevertap.Close()
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
