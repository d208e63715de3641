// Package usage reports monthly tracked users: figures by month and its parts, why
// a user counted, and the job that judges stored events again.
package usage

import (
	"context"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// layout is how a month is written.
const layout = "2006-01"

// DefaultMonths is how many months a list has unless asked otherwise.
const DefaultMonths = 12

// Reporter reads usage.
type Reporter struct {
	// Registry knows how a project counts; Ledger, Warehouse and Feeder are what is read.
	Registry  project.Registry
	Ledger    ledger.Ledger
	Warehouse warehouse.Warehouse
	Feeder    *feed.Feeder
	// Now tells the current month.
	Now project.Clock
}

// Month is a month's figures.
type Month struct {
	// Name is yyyy-mm.
	Name string
	// MTU is what is billed; Guarded says that events decided and not users.
	MTU     int64
	Guarded bool
	// Closed says that the month is over: later merges of users change nothing. Never
	// of a month of event time.
	Closed bool
	warehouse.Usage
}

// span is a UTC calendar month.
type span struct {
	name     string
	from, to time.Time
}

func monthOf(t time.Time) span {
	from := time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	return span{name: from.Format(layout), from: from, to: from.AddDate(0, 1, 0)}
}

// parse reads yyyy-mm; empty means the current month.
func (r *Reporter) parse(field, s string) (span, error) {
	if s == "" {
		return monthOf(r.Now().UTC()), nil
	}
	t, err := time.Parse(layout, s)
	if err != nil {
		return span{}, fault.Field(field, "must be yyyy-mm")
	}
	return monthOf(t), nil
}

func (r *Reporter) closed(m span) bool { return !r.Now().Before(m.to) }

// query asks for a month of a project. Users of a month that is over are counted as
// they were at its end. A month of event time has no end: late events enter it, and
// what links their ids comes as late as they do.
func (r *Reporter) query(p *project.Project, m span) warehouse.UsageQuery {
	q := warehouse.UsageQuery{ProjectID: p.ID, FromMS: m.from.UnixMilli(), ToMS: m.to.UnixMilli(), ByEventTime: p.MTU.ByEventTime}
	if !q.ByEventTime {
		q.MergedBeforeMS = m.to.UnixMilli()
	}
	return q
}

// read runs fn with a project's settings on a warehouse that knows all merges.
func (r *Reporter) read(ctx context.Context, projectID int64, fn func(*project.Project) error) error {
	p, err := r.Registry.ByID(ctx, projectID)
	if err != nil {
		return err
	}
	return r.Feeder.Read(ctx, projectID, func() error { return fn(p) })
}

// Month reports one month; empty means the current one.
func (r *Reporter) Month(ctx context.Context, projectID int64, month string) (*Month, error) {
	m, err := r.parse("month", month)
	if err != nil {
		return nil, err
	}
	var out *Month
	err = r.read(ctx, projectID, func(p *project.Project) error {
		out, err = r.month(ctx, p, m)
		return err
	})
	return out, err
}

func (r *Reporter) month(ctx context.Context, p *project.Project, m span) (*Month, error) {
	u, err := r.Warehouse.Usage(ctx, r.query(p, m))
	if err != nil {
		return nil, err
	}
	out := &Month{Name: m.name, Usage: *u, Closed: !p.MTU.ByEventTime && r.closed(m)}
	out.MTU, out.Guarded = mtu.Count(u.Users, u.Guardrail)
	return out, nil
}

// Months reports n months up to one, oldest first.
func (r *Reporter) Months(ctx context.Context, projectID int64, until string, n int) ([]*Month, error) {
	last, err := r.parse("until", until)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		n = DefaultMonths
	}
	out := make([]*Month, 0, n)
	err = r.read(ctx, projectID, func(p *project.Project) error {
		for i := n - 1; i >= 0; i-- {
			m, err := r.month(ctx, p, monthOf(last.from.AddDate(0, -i, 0)))
			if err != nil {
				return err
			}
			out = append(out, m)
		}
		return nil
	})
	return out, err
}

// ProjectMonth is one project's part of an organisation's month.
type ProjectMonth struct {
	ProjectID int64
	Month     *Month
}

// Organization reports a month of every project that ever had data. A person
// active in two projects counts twice
// (https://docs.mixpanel.com/docs/pricing/legacy-mtu-billing).
func (r *Reporter) Organization(ctx context.Context, month string) (name string, total int64, parts []ProjectMonth, err error) {
	m, err := r.parse("month", month)
	if err != nil {
		return "", 0, nil, err
	}
	ids, err := r.Ledger.Projects(ctx)
	if err != nil {
		return "", 0, nil, err
	}
	for _, id := range ids {
		u, err := r.Month(ctx, id, m.name)
		if fault.Is(err, fault.NotFound) {
			continue // removed from the registry: nobody is billed for it
		}
		if err != nil {
			return "", 0, nil, err
		}
		total += u.MTU
		parts = append(parts, ProjectMonth{id, u})
	}
	return m.name, total, parts, nil
}

// maxGroups bounds a breakdown.
const maxGroups = 10_000

// BreakDown splits a month.
func (r *Reporter) BreakDown(ctx context.Context, projectID int64, month string, by warehouse.GroupBy) (name string, groups []warehouse.UsageGroup, err error) {
	m, err := r.parse("month", month)
	if err != nil {
		return "", nil, err
	}
	err = r.read(ctx, projectID, func(p *project.Project) error {
		groups, err = r.Warehouse.BreakDown(ctx, r.query(p, m), by, maxGroups)
		return err
	})
	if by == warehouse.ByDay {
		for i := range groups {
			groups[i].Key = time.UnixMilli(groups[i].Day * 86_400_000).UTC().Format(time.DateOnly)
		}
	}
	return m.name, groups, err
}
