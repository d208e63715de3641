package usage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Explanation says how a user counted in a month.
type Explanation struct {
	// Month is yyyy-mm, CanonicalID the user, as of the month's end when it is over.
	Month, CanonicalID string
	// Text is the reason in a sentence.
	Text string
	// Guarded says that events and not users decided the month's MTU; ByEventTime
	// that an event's own time decides its month, not that of its processing.
	Guarded, ByEventTime bool
	warehouse.UserUsage
}

// Explain says whether the user of an id counted in a month, and why. literal
// prefers the user who had the id before it became an alias.
func (r *Reporter) Explain(ctx context.Context, projectID int64, month, id string, literal bool) (*Explanation, error) {
	m, err := r.parse("month", month)
	if err != nil {
		return nil, err
	}
	var out *Explanation
	err = r.read(ctx, projectID, func(p *project.Project) error {
		until := m.to
		if p.MTU.ByEventTime {
			until = r.Now().AddDate(1, 0, 0) // all merges there are
		}
		user, err := r.Ledger.UserBefore(ctx, projectID, id, until, literal)
		if err != nil {
			return err
		}
		if user == nil {
			return fault.New(fault.NotFound, "IDENTITY_NOT_FOUND", "no user has this id")
		}
		u, err := r.Warehouse.UserUsage(ctx, r.query(p, m), user.Nos)
		if err != nil {
			return err
		}
		all, err := r.month(ctx, p, m)
		if err != nil {
			return err
		}
		out = &Explanation{Month: m.name, CanonicalID: user.DistinctID, Text: explain(m, u, p.MTU.ByEventTime), Guarded: all.Guarded, ByEventTime: p.MTU.ByEventTime, UserUsage: *u}
		if all.Guarded {
			out.Text += fmt.Sprintf("; the month's MTU of %d is a thousandth of its %d events, rounded up, which is more than its users (%d)", all.MTU, all.Guardrail, all.Users)
		}
		return nil
	})
	return out, err
}

func explain(m span, u *warehouse.UserUsage, byEventTime bool) string {
	if u.First != nil {
		at := func(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }
		text := fmt.Sprintf("counted in %s because of `%s` at %s", m.name, u.First.Name, at(u.First.TimeMS))
		if !byEventTime && monthOf(time.UnixMilli(u.First.TimeMS).UTC()).name != m.name {
			text += ", processed at " + at(u.First.ReceivedMS)
		}
		return text
	}
	var exempt int64
	var parts []string
	for _, rule := range slices.Sorted(maps.Keys(u.ExemptByRule)) {
		exempt += u.ExemptByRule[rule]
		parts = append(parts, fmt.Sprintf("%d of %s", u.ExemptByRule[rule], rule))
	}
	switch exempt {
	case 0:
		return fmt.Sprintf("not counted in %s: no events", m.name)
	case 1:
		return fmt.Sprintf("not counted in %s: 1 exempt event (%s)", m.name, strings.Join(parts, ", "))
	default:
		return fmt.Sprintf("not counted in %s: %d exempt events (%s)", m.name, exempt, strings.Join(parts, ", "))
	}
}
