package engine

import (
	"context"
	"fmt"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// DryRun is what a run would do now.
type DryRun struct {
	// Evaluation is who is in the cohort, in numbers.
	Evaluation store.Evaluation
	// Channel is the channel's name; Full says that everyone would be sent.
	Channel string
	Full    bool
	// Blocked says why a guard would hold the run back, TooLarge why it would be
	// refused; the other numbers are then those of an approved run, or zero.
	Blocked, TooLarge string
	// Added, Updated and Removed are users; the others are as in a run's totals.
	Added, Updated, Removed, Unchanged, Skipped int64
	SkippedBy, Warnings                         map[string]int64
	// Calls are those that would be made, without repeated ones. DataPoints is what
	// CleverTap would count, an estimate.
	Calls, DataPoints int64
	adds              int64 // batches
}

// count adds a batch that would be sent.
func (d *DryRun) count(b *store.Batch, traits channel.Traits) {
	if b.Op != channel.Remove || traits.RemovesByCall {
		d.Calls++
	}
	if b.Op == channel.Add {
		d.adds++
	}
	for _, flags := range b.Flags {
		for _, w := range Warnings(flags) {
			d.Warnings[w]++
		}
		moved := flags&store.FlagMoved != 0
		switch {
		case b.Op == channel.Add && !moved:
			d.Added++
		case b.Op != channel.Remove:
			d.Updated++
		}
	}
}

// DryRun plans a run of a sync, stored or not (ID 0), as it would be now, without
// writing or sending anything.
func (e *Engine) DryRun(ctx context.Context, s store.Sync, full bool) (*DryRun, error) {
	c, err := e.store.Cohort(ctx, s.ProjectID, s.CohortID)
	if err != nil {
		return nil, err
	}
	d := &DryRun{Warnings: map[string]int64{}}
	x := &execution{
		Engine: e, stop: ctx, hard: ctx, drain: ctx, halt: func(error) {}, sync: s, cohort: c, dry: d,
		run:     store.Run{ProjectID: s.ProjectID, SyncID: s.ID, ConnectorID: s.ConnectorID, Full: full},
		segment: channel.Segment{ProjectID: fmt.Sprint(s.ProjectID), CohortID: fmt.Sprint(c.ID), Name: c.DisplayName, Description: c.Description},
	}
	if x.dest, err = e.connectors.Resolve(ctx, s.ProjectID, s.ConnectorID); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, fault.New(fault.NotFound, "NOT_FOUND", "connector %d does not exist", s.ConnectorID)
		}
		return nil, err
	}
	x.locate()
	d.Channel = x.dest.Channel.Name()
	res, err := Evaluate(ctx, e.store, e.users, s.ProjectID, StoredOf(c), e.cfg.Now())
	if err != nil {
		return nil, err
	}
	d.Evaluation = EvaluationOf(res)
	if n := res.Members.GetCardinality(); n > e.cfg.MaxMembers {
		d.TooLarge = tooLarge(n, e.cfg.MaxMembers)
		return d, nil
	}
	if d.Blocked, err = x.plan(res); err != nil { //nolint:contextcheck // the execution carries its contexts
		return nil, err
	}
	if d.Blocked != "" { // what it would do once it is approved
		x.run.Approved, x.run.Full, x.run.Totals = true, full, store.Totals{}
		if _, err = x.plan(res); err != nil { //nolint:contextcheck // as above
			return nil, err
		}
	}
	t := x.run.Totals
	d.Full, d.Removed, d.Unchanged, d.Skipped, d.SkippedBy = x.run.Full, t.RemovePending, t.Unchanged, t.Skipped, t.SkippedBy
	d.cost(x)
	return d, nil
}

// publishCalls are the steps of a list.
const publishCalls = 3

func (d *DryRun) cost(x *execution) {
	changes := d.Added+d.Updated+d.Removed > 0
	if _, ok := x.dest.Channel.(channel.Publisher); ok && (changes || d.Full) {
		d.Calls += publishCalls
	}
	if _, ok := x.dest.Channel.(channel.Preparer); ok {
		d.Calls += d.adds // a profile is written before its user is added
		if d.Full {
			d.Calls++
		}
	}
	c := channel.CostOf(d.Channel)
	d.DataPoints = d.Added*c.Add + d.Updated*c.Update + d.Removed*c.Remove
}
