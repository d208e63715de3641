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
	warehouse.UserUsage
}

// Explain says whether the user of an id counted in a month, and why.
func (r *Reporter) Explain(ctx context.Context, projectID int64, month, id string) (*Explanation, error) {
	m, err := r.parse("month", month)
	if err != nil {
		return nil, err
	}
	var out *Explanation
	err = r.read(ctx, projectID, func(p *project.Project) error {
		user, err := r.Ledger.UserBefore(ctx, projectID, id, m.to)
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
		out = &Explanation{Month: m.name, CanonicalID: user.DistinctID, Text: explain(m.name, u), UserUsage: *u}
		return nil
	})
	return out, err
}

func explain(month string, u *warehouse.UserUsage) string {
	if u.First != nil {
		return fmt.Sprintf("counted in %s because of `%s` at %s", month, u.First.Name, time.UnixMilli(u.First.TimeMS).UTC().Format(time.RFC3339))
	}
	var exempt int64
	var parts []string
	for _, rule := range slices.Sorted(maps.Keys(u.ExemptByRule)) {
		exempt += u.ExemptByRule[rule]
		parts = append(parts, fmt.Sprintf("%d of %s", u.ExemptByRule[rule], rule))
	}
	switch exempt {
	case 0:
		return fmt.Sprintf("not counted in %s: no events", month)
	case 1:
		return fmt.Sprintf("not counted in %s: 1 exempt event (%s)", month, strings.Join(parts, ", "))
	default:
		return fmt.Sprintf("not counted in %s: %d exempt events (%s)", month, exempt, strings.Join(parts, ", "))
	}
}
