package usage

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Reclassifier runs the jobs that judge stored events again. A day is one step:
// after a restart a job goes on with the first day that is not done.
type Reclassifier struct {
	registry  project.Registry
	ledger    ledger.Ledger
	warehouse warehouse.Warehouse
	rules     *mtu.Rules
	now       project.Clock

	ctx  context.Context //nolint:containedctx // the jobs' own: they outlive the calls that start them
	stop context.CancelFunc
	jobs sync.WaitGroup
}

// NewReclassifier makes a runner. Close it.
func NewReclassifier(reg project.Registry, l ledger.Ledger, w warehouse.Warehouse, rules *mtu.Rules, now project.Clock) *Reclassifier {
	r := &Reclassifier{registry: reg, ledger: l, warehouse: w, rules: rules, now: now}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// Resume goes on with the jobs that were running when the process ended.
func (r *Reclassifier) Resume(ctx context.Context) error {
	list, err := r.ledger.ListReclassifications(ctx, 0)
	for i := range list {
		r.start(&list[i]) //nolint:contextcheck // a job has the context of the runner
	}
	return err
}

// Close ends the jobs after the day they are at; they go on at the next start.
func (r *Reclassifier) Close() {
	r.stop()
	r.jobs.Wait()
}

// Create starts a job for days from to to, inclusive; empty dates are open.
func (r *Reclassifier) Create(ctx context.Context, projectID int64, from, to string) (*ledger.Reclassification, error) {
	if _, err := r.registry.ByID(ctx, projectID); err != nil {
		return nil, err
	}
	j := &ledger.Reclassification{ProjectID: projectID, State: ledger.JobRunning, FromDay: 0, ToDay: math.MaxInt32, RulesVersion: r.rules.Version, Created: r.now()}
	for _, d := range []struct {
		field, value string
		day          *int32
	}{{"from_date", from, &j.FromDay}, {"to_date", to, &j.ToDay}} {
		if d.value == "" {
			continue
		}
		t, err := time.Parse(time.DateOnly, d.value)
		if err != nil || t.Unix() < 0 {
			return nil, fault.Field(d.field, "must be a date, yyyy-mm-dd")
		}
		*d.day = int32(t.Unix() / 86_400) //nolint:gosec // four digits of a year
	}
	if j.ToDay < j.FromDay {
		return nil, fault.Field("to_date", "must not be before from_date")
	}
	days, err := r.warehouse.Days(ctx, projectID, j.FromDay, j.ToDay)
	if err != nil {
		return nil, err
	}
	for _, d := range days {
		j.Total += d.Events
	}
	j.NextDay = j.FromDay
	ok, err := r.ledger.CreateReclassification(ctx, j)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.Precondition, "RECLASSIFICATION_RUNNING", "another reclassification of this project is running; wait for it to end")
	}
	r.start(j) //nolint:contextcheck // a job has the context of the runner
	return j, nil
}

func (r *Reclassifier) start(j *ledger.Reclassification) {
	own := *j
	r.jobs.Go(func() {
		err := r.run(r.ctx, &own)
		if err != nil && r.ctx.Err() != nil {
			return // the process ends, whatever the engine calls that; the job stays running
		}
		own.State, own.Ended = ledger.JobSucceeded, r.now()
		if err != nil {
			own.State, own.Error = ledger.JobFailed, "the events could not be judged; the log says why"
			if f := fault.As(err); f != nil {
				own.Error = f.Public
			}
			slog.Error("reclassification failed", "project", own.ProjectID, "id", own.ID, "error", err)
		}
		if err := r.ledger.PutReclassification(context.WithoutCancel(r.ctx), &own); err != nil {
			slog.Error("the end of a reclassification was not stored; it runs again at the next start", "project", own.ProjectID, "id", own.ID, "error", err)
		}
	})
}

func (r *Reclassifier) run(ctx context.Context, j *ledger.Reclassification) error {
	p, err := r.registry.ByID(ctx, j.ProjectID)
	if err != nil {
		return err
	}
	days, err := r.warehouse.Days(ctx, j.ProjectID, j.NextDay, j.ToDay)
	if err != nil {
		return err
	}
	names := r.rules.Names()
	judge := func(e warehouse.Judged) mtu.Verdict {
		return r.rules.Classify(e.Name, mtu.Markers{Source: e.Source, PartnerID: e.PartnerID}, &p.MTU)
	}
	j.RulesVersion = r.rules.Version
	for _, d := range days {
		if err := ctx.Err(); err != nil {
			return err
		}
		changed, err := r.warehouse.Reclassify(ctx, j.ProjectID, d.Day, names, uint16(r.rules.Version), judge) //nolint:gosec // checked by mtu.Parse
		if err != nil {
			return err
		}
		j.NextDay, j.Done, j.Changed = d.Day+1, j.Done+d.Events, j.Changed+changed
		// The day is done, whatever ends meanwhile: it is noted.
		if err := r.ledger.PutReclassification(context.WithoutCancel(ctx), j); err != nil {
			return err
		}
	}
	return nil
}
