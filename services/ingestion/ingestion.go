// Package ingestion is the service that takes events and profiles, keeps who is
// who, counts MTU, and answers the leaves of cohort definitions.
package ingestion

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/inflight"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/query"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/registryclient"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/server"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/sqlledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/usage"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

// Registry answers who may write where; see FromRegistry for the real one.
type Registry = project.Registry

type (
	// Project is one project as far as ingestion needs it.
	Project = project.Project
	// Credential is what a sender presented.
	Credential = project.Credential
	// MTU is how a project counts monthly tracked users.
	MTU = project.MTU
	// IdentitySystem says how ids become one user.
	IdentitySystem = project.IdentitySystem
)

// The identity systems.
const (
	Simplified = project.Simplified
	Original   = project.Original
	Legacy     = project.Legacy
)

// FromRegistry makes a Registry of the registry service's client.
func FromRegistry(c registryv1.CredentialServiceClient) Registry { return registryclient.New(c) }

// Option changes how New builds the service.
type Option func(*options)

type options struct{ now func() time.Time }

// WithClock makes the service tell the time by now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// Service is the running service.
type Service struct {
	ledger    ledger.Ledger
	warehouse warehouse.Warehouse
	pipeline  *ingest.Pipeline

	ingestion  *server.Ingestion
	evaluation *server.Evaluation
	data       *server.Data
	usage      *server.Usage
	identity   *server.Identity
	jobs       *usage.Reclassifier

	work sync.WaitGroup
	stop []context.CancelFunc
}

// background runs fn until stopWork; it outlives the call that starts it.
func (s *Service) background(fn func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = append(s.stop, cancel)
	s.work.Go(func() { fn(ctx) })
}

// stopWork finishes the commits in progress and ends what runs in the background.
func (s *Service) stopWork() {
	s.pipeline.Close()
	s.jobs.Close()
	for _, cancel := range s.stop {
		cancel()
	}
	s.work.Wait()
}

// New opens the stores in cfg.DataDir and starts the pipeline. Close it.
func New(ctx context.Context, cfg Config, reg Registry, opts ...Option) (_ *Service, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	o := options{now: time.Now}
	for _, opt := range opts {
		opt(&o)
	}
	rules, err := mtu.Load()
	if err != nil {
		return nil, err
	}
	s := &Service{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeStores())
		}
	}()
	if s.ledger, err = openLedger(ctx, cfg); err != nil {
		return nil, err
	}
	dc := duck.Default(filepath.Join(cfg.DataDir, "events.duckdb"))
	dc.HashBudget, dc.MemoryLimitMB = cfg.HashBudget, cfg.WarehouseMemoryMB
	if s.warehouse, err = openWarehouse(ctx, dc); err != nil {
		return nil, err
	}
	cached := project.NewCache(reg, cfg.ProjectTTL, 10_000, o.now)
	resolver := identity.NewResolver(s.ledger, identity.NewCache(cfg.IdentityCache/2), o.now)
	systems := ingest.NewSystems(s.ledger)
	//nolint:contextcheck // it outlives the context it is made in; Close ends it
	s.pipeline = ingest.NewPipeline(ingest.PipelineConfig{GroupWait: cfg.GroupWait, MaxGroup: cfg.MaxGroup, QueueDepth: cfg.QueueDepth}, s.warehouse, resolver, rules, systems.Of)
	feeder := feed.New(s.ledger, s.warehouse)
	limits := wire.Limits{Body: cfg.MaxBodyBytes, Decompressed: cfg.MaxDecompressedBytes}
	s.ingestion = &server.Ingestion{Registry: cached, Ingester: ingest.NewIngester(&ingest.Deps{
		Registry: cached, Pipeline: s.pipeline, Ledger: s.ledger, Resolver: resolver, Systems: systems, Limits: limits, Now: o.now,
		Gate: inflight.New(cfg.MaxConcurrent, cfg.MaxInFlightBytes), Rate: ingest.NewRate(cfg.ProjectEventsPerMinute, cfg.ProjectBytesPerMinute, o.now),
	})}
	s.evaluation = &server.Evaluation{Ledger: s.ledger, Warehouse: s.warehouse, Feeder: feeder, Registry: cached, Resolver: resolver, Ingester: s.ingestion.Ingester}
	s.data = &server.Data{Ledger: s.ledger, Warehouse: s.warehouse, Feeder: feeder, Pipeline: s.pipeline, Selections: query.NewSelections(o.now), Now: o.now}
	//nolint:contextcheck // as the pipeline
	s.background(func(ctx context.Context) { feeder.Run(ctx, cfg.FeedInterval) })
	s.identity = &server.Identity{Ledger: s.ledger}
	// Not the cached answers: a job is asked for right after a change of the settings.
	s.jobs = usage.NewReclassifier(reg, s.ledger, s.warehouse, rules, o.now)
	reporter := &usage.Reporter{Registry: cached, Ledger: s.ledger, Warehouse: s.warehouse, Feeder: feeder, Now: o.now}
	s.usage = &server.Usage{Reporter: reporter, Jobs: s.jobs, Ledger: s.ledger, Rules: rules}
	if err = s.jobs.Resume(ctx); err != nil {
		s.stopWork()
		return nil, err
	}
	return s, nil
}

// The two open functions return interfaces, so that a failed open leaves a nil one.

func openLedger(ctx context.Context, cfg Config) (ledger.Ledger, error) {
	l, err := sqlledger.Open(ctx, "sqlite:"+filepath.Join(cfg.DataDir, "ledger.db"))
	if err != nil {
		return nil, err
	}
	return l, nil
}

func openWarehouse(ctx context.Context, cfg duck.Config) (warehouse.Warehouse, error) {
	w, err := duck.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Register adds the service's gRPC services to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	ingestionv1.RegisterIngestionServiceServer(r, s.ingestion)
	ingestionv1.RegisterEvaluationServiceServer(r, s.evaluation)
	ingestionv1.RegisterDataServiceServer(r, s.data)
	ingestionv1.RegisterUsageServiceServer(r, s.usage)
	ingestionv1.RegisterIdentityServiceServer(r, s.identity)
}

// Close refuses new events, finishes the commits in progress and closes the
// stores. Stop the gRPC server first. When ctx ends early the stores are left to
// the process's end, which loses nothing that was acknowledged.
func (s *Service) Close(ctx context.Context) error {
	drained := make(chan struct{})
	go func() {
		s.stopWork()
		close(drained)
	}()
	select {
	case <-drained:
		return s.closeStores()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Service) closeStores() error {
	var errs []error
	if s.warehouse != nil {
		errs = append(errs, s.warehouse.Close())
	}
	if s.ledger != nil {
		errs = append(errs, s.ledger.Close())
	}
	return errors.Join(errs...)
}
