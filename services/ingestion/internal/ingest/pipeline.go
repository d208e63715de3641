// Package ingest is the path of a batch: decode, validate, resolve identity,
// classify for MTU, and one warehouse append per group of requests. A request is
// answered when its events are durable, not before.
package ingest

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

var tracer = otel.Tracer("github.com/cohortbridge/cohortbridge/services/ingestion")

// PipelineConfig bounds the pipeline.
type PipelineConfig struct {
	// GroupWait is how long a commit waits for requests that are on their way.
	GroupWait time.Duration
	// MaxGroup is the number of events after which a commit waits no longer.
	MaxGroup int
	// QueueDepth is the number of events that may wait; beyond it callers are told
	// to come back.
	QueueDepth int
}

// Pipeline commits validated events. Its two goroutines run until Close.
type Pipeline struct {
	cfg       PipelineConfig
	warehouse warehouse.Warehouse
	resolver  *identity.Resolver
	rules     *mtu.Rules
	system    func(*project.Project) project.IdentitySystem

	resolve, commit chan *job
	done            sync.WaitGroup

	mu     sync.RWMutex // held for reading while a job is handed over, for writing by Close
	closed bool
	queued atomic.Int64 // events that wait
	jobs   atomic.Int64 // requests between Begin and their answer
	dupes  sync.Map     // project id → *atomic.Int64
}

type job struct {
	events []*event.Event
	rest   []*event.Event // those that need the ledger
	flags  uint8
	done   chan struct{}
	err    error
	stored int
	dupes  int
	group  int // events in the commit that carried this job
}

// Result is what became of a submitted batch.
type Result struct {
	// Stored counts new events, Duplicates those that were there already.
	Stored, Duplicates int
}

// NewPipeline starts a pipeline. system gives the identity system in force.
func NewPipeline(cfg PipelineConfig, w warehouse.Warehouse, r *identity.Resolver, rules *mtu.Rules, system func(*project.Project) project.IdentitySystem) *Pipeline {
	p := &Pipeline{cfg: cfg, warehouse: w, resolver: r, rules: rules, system: system, resolve: make(chan *job, 1024), commit: make(chan *job, 1024)}
	p.done.Add(2)
	go p.runResolve()
	go p.runCommit()
	return p
}

// Begin announces a request whose events are on their way, so that a commit can
// wait for it. Call the returned function when the request has been answered.
func (p *Pipeline) Begin() (end func()) {
	p.jobs.Add(1)
	return func() { p.jobs.Add(-1) }
}

// Submit stores events whose Finish succeeded; it returns when they are durable.
// A full queue is an Exhausted fault with RetryAfter; a pipeline that is closing
// an Unavailable one. The events' memory is not used after Submit returns.
func (p *Pipeline) Submit(ctx context.Context, events []*event.Event, isImport bool) (Result, error) {
	if len(events) == 0 {
		return Result{}, nil
	}
	ctx, span := tracer.Start(ctx, "ingestion.commit", trace.WithAttributes(attribute.Int("cohortbridge.events", len(events))))
	defer span.End()
	res, err := p.submit(ctx, events, isImport, span)
	if err != nil {
		span.SetStatus(codes.Error, fault.CodeOf(err).String())
	}
	return res, err
}

func (p *Pipeline) submit(ctx context.Context, events []*event.Event, isImport bool, span trace.Span) (Result, error) {
	n := int64(len(events))
	// A queue with nothing in it takes a batch of any size.
	if q := p.queued.Add(n); q > int64(p.cfg.QueueDepth) && q > n {
		p.queued.Add(-n)
		return Result{}, fault.New(fault.Exhausted, "INGEST_QUEUE_FULL", "too many events wait to be stored; retry with exponential backoff").Retry(time.Second)
	}
	defer p.queued.Add(-n)
	j := &job{events: events, done: make(chan struct{})}
	if isImport {
		j.flags = warehouse.FlagImport
	}
	for _, ev := range events {
		v := p.rules.Classify(ev.Name, mtu.Markers{Source: string(ev.Source), PartnerID: string(ev.PartnerID)}, &ev.Project.MTU)
		ev.Rule, ev.Guardrail = v.Rule, v.Guardrail
	}
	j.rest = p.resolver.Known(events, p.system)
	to := p.commit
	if len(j.rest) > 0 {
		to = p.resolve
	}
	p.mu.RLock()
	if p.closed {
		p.mu.RUnlock()
		return Result{}, fault.New(fault.Unavailable, "SHUTTING_DOWN", "the service is shutting down").Retry(time.Second)
	}
	to <- j
	p.mu.RUnlock()
	// Once handed over the events will be stored, whatever becomes of the caller:
	// waiting for it keeps their memory ours.
	<-j.done
	span.SetAttributes(attribute.Int("cohortbridge.events.stored", j.stored), attribute.Int("cohortbridge.events.duplicate", j.dupes),
		attribute.Int("cohortbridge.commit.events", j.group), attribute.Int("cohortbridge.events.resolved", len(j.rest)))
	if j.err != nil {
		slog.ErrorContext(ctx, "events not stored", "events", len(events), "error", j.err)
		// Not the sender's fault: clients come back on 503, and the event counts once.
		return Result{}, fault.New(fault.Unavailable, "STORE_FAILED", "the events could not be stored; retry").Retry(time.Second).Wrap(j.err)
	}
	return Result{Stored: j.stored, Duplicates: j.dupes}, nil
}

func (p *Pipeline) duplicates(projectID int64) *atomic.Int64 {
	c, _ := p.dupes.LoadOrStore(projectID, new(atomic.Int64))
	n, _ := c.(*atomic.Int64)
	return n
}

// Duplicates counts the repeated events of a project since the start.
func (p *Pipeline) Duplicates(projectID int64) int64 { return p.duplicates(projectID).Load() }

// Close refuses new batches, finishes the ones that were taken, and returns.
func (p *Pipeline) Close() {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if !closed {
		close(p.resolve) // runResolve closes commit when it has passed everything on
	}
	p.done.Wait()
}

// runResolve gives events their users, one ledger transaction for all requests
// that wait.
func (p *Pipeline) runResolve() {
	defer p.done.Done()
	defer close(p.commit)
	for j := range p.resolve {
		group := []*job{j}
		events, batches := j.rest, [][]*event.Event{j.events}
		for more := true; more && len(events) < p.cfg.MaxGroup; {
			select {
			case next, ok := <-p.resolve:
				if !ok {
					more = false
					break
				}
				group = append(group, next)
				events, batches = append(events, next.rest...), append(batches, next.events)
			default:
				more = false
			}
		}
		err := p.resolver.Resolve(context.Background(), events, batches...)
		for _, j := range group {
			if err != nil {
				j.err = err
				close(j.done)
				continue
			}
			p.commit <- j
		}
	}
}

// runCommit is the one writer of events.
func (p *Pipeline) runCommit() {
	defer p.done.Done()
	var rows []warehouse.Row
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for j := range p.commit {
		group := p.gather(j, timer)
		rows = rows[:0]
		for _, j := range group {
			for _, ev := range j.events {
				rows = append(rows, p.row(ev, j.flags))
			}
		}
		out, err := p.warehouse.Append(context.Background(), rows)
		at := 0
		for _, j := range group {
			j.err, j.group = err, len(rows)
			if err == nil {
				for _, ev := range j.events {
					if out.Duplicate[at] {
						j.dupes++
						p.duplicates(ev.Project.ID).Add(1)
					} else {
						j.stored++
					}
					at++
				}
			}
			close(j.done)
		}
		clear(rows) // hold no request's memory
	}
}

// gather collects what waits; while other requests are on their way it waits
// for them, at most GroupWait, so that few callers share few commits and a lone
// caller does not wait at all.
func (p *Pipeline) gather(first *job, timer *time.Timer) []*job {
	group := []*job{first}
	n := len(first.events)
	started := false
	defer timer.Stop()
	for n < p.cfg.MaxGroup {
		select {
		case j, ok := <-p.commit:
			if !ok {
				return group
			}
			group = append(group, j)
			n += len(j.events)
			continue
		default:
		}
		if p.jobs.Load() <= int64(len(group)) {
			return group
		}
		if !started {
			timer.Reset(p.cfg.GroupWait)
			started = true
		}
		select {
		case j, ok := <-p.commit:
			if !ok {
				return group
			}
			group = append(group, j)
			n += len(j.events)
		case <-timer.C:
			return group
		}
	}
	return group
}

func (p *Pipeline) row(ev *event.Event, flags uint8) warehouse.Row {
	if ev.Generated {
		flags |= warehouse.FlagGenerated
	}
	if ev.Guardrail {
		flags |= warehouse.FlagGuardrail
	}
	return warehouse.Row{
		ProjectID: ev.Project.ID, UserNo: ev.UserNo, Name: ev.Name, TimeMS: ev.TimeMS, ReceivedMS: ev.Received,
		Day: ev.Day(), Hash: ev.Hash, InsertID: ev.InsertID, Source: ev.Source, Rule: ev.Rule,
		RulesVersion: uint16(p.rules.Version), Flags: flags, Props: ev.Props, //nolint:gosec // checked by mtu.Parse
	}
}
