package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

var tracer = otel.Tracer("cohortbridge/cohortsync")

// execution is one process's work on one run.
type execution struct {
	*Engine
	run   store.Run
	lease store.Lease
	// drain ends when the process stops, stop when no more should be begun, hard
	// when calls in flight should end too. halt ends stop with a cause.
	drain, stop, hard context.Context
	halt              context.CancelCauseFunc
	// left says that batches were begun and left without a result, for the next
	// process to repeat.
	left bool

	sync    store.Sync
	cohort  store.Cohort
	dest    *Destination
	segment channel.Segment
	// key names the segment whatever way leads there.
	key   string
	fatal *clevertap.Error
	last  *clevertap.Error
	// dry, when set, gets what would be done: nothing is written, and nobody called.
	dry *DryRun
}

// Traceparent is the W3C form of the span in ctx; empty when there is none.
func Traceparent(ctx context.Context) string {
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, c)
	return c["traceparent"]
}

func remote(traceparent string) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	return trace.SpanContextFromContext(ctx)
}

// startSpan puts the run into its trace: below the request that asked for it,
// or, on a schedule, into a new one that links to the request that made the
// sync. A run that is taken up again continues below its first span.
func (x *execution) startSpan() trace.Span {
	attrs := trace.WithAttributes(
		attribute.Int64("cohortbridge.project", x.run.ProjectID), attribute.Int64("cohortbridge.sync", x.run.SyncID),
		attribute.Int64("cohortbridge.run", x.run.ID), attribute.Int64("cohortbridge.connector", x.run.ConnectorID),
		attribute.Int("cohortbridge.run.attempt", x.run.Attempts))
	opts := []trace.SpanStartOption{attrs, trace.WithSpanKind(trace.SpanKindConsumer)}
	ctx := x.stop
	parent := x.run.Span
	if parent == "" {
		parent = x.run.Parent
	}
	switch sc := remote(parent); {
	case sc.IsValid():
		ctx = trace.ContextWithRemoteSpanContext(ctx, sc)
	default:
		opts = append(opts, trace.WithNewRoot())
		if origin := remote(x.sync.Origin); origin.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: origin}))
		}
	}
	ctx, sp := tracer.Start(ctx, "sync.run", opts...)
	x.stop = ctx
	x.hard = trace.ContextWithSpan(x.hard, sp)
	if x.run.Span == "" && sp.SpanContext().IsValid() {
		x.run.Span, x.run.TraceID = Traceparent(ctx), sp.SpanContext().TraceID().String()
	}
	return sp
}

// save stores the run and tells its watchers.
func (x *execution) save(st store.RunState) error {
	x.run.State = st
	if err := x.store.SaveRun(x.write(), x.lease, x.run); err != nil {
		return err
	}
	x.Hub.Notify(x.run.ID)
	return nil
}

// write is the context of writes: they are short, and what was confirmed must
// be recorded although the run is being stopped.
func (x *execution) write() context.Context { return context.WithoutCancel(x.stop) }

func (x *execution) execute() (err error) {
	// A run that is to stop is ended in order, and for that has to be known.
	if x.sync, err = x.store.Sync(x.write(), x.run.ProjectID, x.run.SyncID); err != nil {
		return err
	}
	if x.cohort, err = x.store.Cohort(x.write(), x.run.ProjectID, x.sync.CohortID); err != nil {
		return err
	}
	sp := x.startSpan()
	defer func() {
		sp.SetAttributes(attribute.Int("cohortbridge.run.state", int(x.run.State)), attribute.Int64("cohortbridge.users.evaluated", x.run.Totals.Evaluated),
			attribute.Int64("cohortbridge.users.sent", x.run.Totals.Sent), attribute.Int64("cohortbridge.users.removed", x.run.Totals.Removed),
			attribute.Int64("cohortbridge.users.failed", x.run.Totals.Failed), attribute.Int64("cohortbridge.calls", x.run.Totals.Calls))
		if err != nil || x.run.State == store.Failed {
			sp.SetStatus(codes.Error, x.run.Reason)
		}
		sp.End()
	}()
	if x.run.Started.IsZero() {
		x.run.Started = x.cfg.Now()
	}
	x.segment = channel.Segment{ProjectID: fmt.Sprint(x.run.ProjectID), CohortID: fmt.Sprint(x.cohort.ID), Name: x.cohort.DisplayName, Description: x.cohort.Description}

	err = retryUnavailable(x.stop, func() (err error) {
		x.dest, err = x.connectors.Resolve(x.stop, x.run.ProjectID, x.run.ConnectorID)
		return err
	})
	switch {
	case err == nil:
	case fault.Is(err, fault.NotFound):
		return x.endPaused(store.PauseConnectorMissing, "the connector does not exist any more")
	case x.interrupted():
		return x.endInterrupted(err)
	case fault.Is(err, fault.Invalid):
		return x.endPaused(store.PauseRefused, fault.As(err).Public)
	default:
		return x.end(store.Finish{State: store.Failed, Reason: "CONNECTOR_UNAVAILABLE", ReasonText: publicText(err), KeepLedger: true})
	}
	x.locate()
	sp.SetAttributes(attribute.String("cohortbridge.channel", x.dest.Channel.Name()))
	if done := x.turnAt(x.stop, x.key); done != nil {
		defer done()
	} else if x.run.Plan == nil {
		return x.endInterrupted(x.stop.Err())
	}

	if x.run.Plan == nil {
		done, err := x.prepare()
		if err != nil || done {
			return err
		}
	} else if p := x.run.Plan; p.Channel != x.dest.Channel.Name() || p.Segment != "" && p.Segment != x.key {
		// The plan's records are in another channel's form, or the rest of them
		// would go to another segment than the first.
		x.halt(errBroken)
		return x.confirm("CONNECTOR_CHANGED", "the connector's channel or destination changed during the run")
	}
	if err := x.open(); err != nil {
		return err
	}
	if err := x.deliver(); err != nil {
		return err
	}
	return x.confirm("", "")
}

// locate names the segment that the run is for.
func (x *execution) locate() {
	known := x.segment.CohortID
	if _, lists := x.dest.Channel.(channel.Publisher); lists {
		// A list is known by its name: under a new one it has to be put again.
		known = x.segment.Name
		x.dest.Fingerprint ^= xxhash.Sum64String(known) << 8
	}
	key := sha256.Sum256([]byte(x.dest.Place + "\x00" + x.dest.Channel.Name() + "\x00" + known))
	x.key = hex.EncodeToString(key[:])
}

// leave is the cause why the run is not to be ended here but taken up again by
// the next process; nil when it may be ended.
func (x *execution) leave() error {
	cause := context.Cause(x.stop)
	over := cause == nil || x.fatal != nil || errors.Is(cause, errCancelled) || errors.Is(cause, errBroken) || errors.Is(cause, errRefused)
	switch {
	case !over:
		return cause
	case x.left:
		// Ending it would forget that those calls may have had their effect.
		return errDrained
	}
	return nil
}

// interrupted reports whether the run has been asked to stop, for any cause.
func (x *execution) interrupted() bool { return x.stop.Err() != nil }

// endInterrupted ends a run that was cancelled before its plan was written; a
// run stopped for another cause is left to be resumed.
func (x *execution) endInterrupted(err error) error {
	if errors.Is(context.Cause(x.stop), errCancelled) {
		return x.end(store.Finish{State: store.Cancelled, Reason: "REQUESTED", ReasonText: "cancelled on request", KeepLedger: true})
	}
	return errors.Join(context.Cause(x.stop), err)
}

// prepare evaluates and plans. done means that the run ended here.
func (x *execution) prepare() (done bool, err error) {
	x.run.Totals, x.run.Evaluation = store.Totals{}, nil
	if err := x.save(store.Evaluating); err != nil {
		return true, err
	}
	if err := x.store.ClearPlan(x.write(), x.lease); err != nil {
		return true, err
	}
	var res *cohort.Result
	asOf := x.cfg.Now()
	err = retryUnavailable(x.stop, func() (err error) {
		asOf = x.cfg.Now()
		res, err = Evaluate(x.stop, x.store, x.users, x.run.ProjectID, StoredOf(x.cohort), asOf)
		return err
	})
	if err != nil {
		if x.interrupted() {
			return true, x.endInterrupted(err)
		}
		// Nobody is removed because an evaluation failed: the ledger stays.
		x.cfg.Log.WarnContext(x.stop, "evaluation failed", "run", x.run.ID, "error", err)
		failed := store.EvaluationRecord{AsOf: asOf, Version: x.cohort.Version, Reason: "EVALUATION_FAILED", ReasonText: publicText(err)}
		if err := x.store.SetEvaluationFailed(x.write(), x.run.ProjectID, x.cohort.ID, failed); err != nil {
			return true, err
		}
		return true, x.end(store.Finish{State: store.Failed, Reason: "EVALUATION_FAILED", ReasonText: publicText(err), KeepLedger: true})
	}
	ev := EvaluationOf(res)
	x.run.Evaluation = &ev
	if err := x.store.SetEvaluation(x.write(), x.run.ProjectID, x.cohort.ID, ev); err != nil {
		return true, err
	}
	if n := res.Members.GetCardinality(); n > x.cfg.MaxMembers {
		return true, x.endPaused(store.PauseTooLarge, tooLarge(n, x.cfg.MaxMembers))
	}
	if err := x.save(store.Planning); err != nil {
		return true, err
	}
	blocked, err := x.plan(res)
	if err != nil {
		if x.interrupted() {
			return true, x.endInterrupted(err)
		}
		x.cfg.Log.WarnContext(x.stop, "planning failed", "run", x.run.ID, "error", err)
		return true, x.end(store.Finish{State: store.Failed, Reason: "PLANNING_FAILED", ReasonText: publicText(err), KeepLedger: true})
	}
	if blocked != "" {
		return true, x.end(store.Finish{State: store.Blocked, Reason: "TOO_MANY_REMOVALS", ReasonText: blocked, KeepLedger: true})
	}
	return false, nil
}

func tooLarge(n, most uint64) string {
	return fmt.Sprintf("the cohort has %d members; at most %d can be exported", n, most)
}

// EvaluationOf is a result in numbers.
func EvaluationOf(r *cohort.Result) store.Evaluation {
	e := store.Evaluation{AsOf: r.AsOf, Users: int64(r.Users.GetCardinality()), Identified: int64(r.Members.GetCardinality()), Took: r.Took, ProfileSeq: r.ProfileSeq}
	for _, l := range r.Leaves {
		e.Leaves = append(e.Leaves, store.LeafStat{Summary: l.Summary, Users: l.Users, Took: l.Took})
	}
	return e
}

func (x *execution) endPaused(reason, text string) error {
	return x.end(store.Finish{State: store.Failed, Reason: reason, ReasonText: text, KeepLedger: true,
		SyncState: store.SyncPaused, Pause: &store.Pause{Reason: reason, Text: text, Actor: "system", Since: x.cfg.Now()}})
}

// end writes the run's end.
func (x *execution) end(f store.Finish) error {
	// A plan that was begun and not finished is no report.
	if x.run.Plan == nil {
		if err := x.store.ClearPlan(x.write(), x.lease); err != nil {
			return err
		}
		if f.State != store.Blocked {
			x.run.Totals = store.Totals{}
		}
		if err := x.store.SaveRun(x.write(), x.lease, x.run); err != nil {
			return err
		}
	}
	if x.run.Plan != nil {
		f.Segment = x.run.Plan.Segment
	}
	r, err := x.store.FinishRun(x.write(), x.lease, f, x.cfg.Now(), x.cfg.KeepRuns)
	if err != nil {
		return err
	}
	x.run = r
	log := x.cfg.Log.InfoContext
	if f.State != store.Succeeded && f.State != store.Cancelled {
		log = x.cfg.Log.WarnContext
	}
	log(x.stop, "run ended", "project", r.ProjectID, "sync", r.SyncID, "run", r.ID, "state", r.State.String(), "reason", r.Reason,
		"evaluated", r.Totals.Evaluated, "sent", r.Totals.Sent, "removed", r.Totals.Removed, "failed", r.Totals.Failed, "calls", r.Totals.Calls)
	if f.Pause != nil {
		x.cfg.Log.WarnContext(x.stop, "sync paused", "project", r.ProjectID, "sync", r.SyncID, "reason", f.Pause.Reason, "text", f.Pause.Text)
	}
	return nil
}

// publicText is what may be shown of an error.
func publicText(err error) string {
	if f := fault.As(err); f != nil {
		return f.Public
	}
	return "an internal error; see the log of the run's trace"
}

// retryUnavailable repeats a call to another service of ours while it is away.
func retryUnavailable(ctx context.Context, call func() error) error {
	wait := 100 * time.Millisecond
	for try := 1; ; try++ {
		err := call()
		if err == nil || try == 4 || !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		wait *= 3
	}
}
