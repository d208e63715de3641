// Package feed carries profiles and merges from the ledger to the warehouse's
// projection, by sequence number.
package feed

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

var tracer = otel.Tracer("github.com/cohortbridge/cohortbridge/services/ingestion")

const (
	// batch is how many changed users one warehouse transaction carries.
	batch = 20_000
	// sortFrom is how many changes at once make it worth sorting the projection.
	sortFrom = 100_000
)

// Feeder keeps projections up to date.
type Feeder struct {
	ledger    ledger.Ledger
	warehouse warehouse.Warehouse
	mu        sync.Mutex
	projects  map[int64]*gate
}

type gate struct {
	feeding sync.Mutex   // one feeder at a time
	use     sync.RWMutex // read while the projection is read, written while it is rebuilt
}

// New makes a feeder.
func New(l ledger.Ledger, w warehouse.Warehouse) *Feeder {
	return &Feeder{ledger: l, warehouse: w, projects: map[int64]*gate{}}
}

func (f *Feeder) gate(projectID int64) *gate {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.projects[projectID]
	if g == nil {
		g = &gate{}
		f.projects[projectID] = g
	}
	return g
}

// Run brings the projections of all projects up to date again and again until ctx
// ends, so that an evaluation finds little left to do.
func (f *Feeder) Run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ids, err := f.ledger.Projects(ctx)
		for _, id := range ids {
			if err != nil {
				break
			}
			err = f.Read(ctx, id, func() error { return nil })
		}
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "the projection is behind; it is tried again, and before each evaluation", "error", err)
		}
	}
}

// Read runs fn on a projection that has everything the ledger had when Read was
// called; a rebuild waits for fn, and fn for a rebuild.
func (f *Feeder) Read(ctx context.Context, projectID int64, fn func() error) error {
	g := f.gate(projectID)
	g.use.RLock()
	defer g.use.RUnlock()
	if _, err := f.catchUp(ctx, g, projectID); err != nil {
		return err
	}
	return fn()
}

func (f *Feeder) catchUp(ctx context.Context, g *gate, projectID int64) (users int64, err error) {
	want, err := f.ledger.Seq(ctx, projectID)
	if err != nil {
		return 0, err
	}
	if have, err := f.warehouse.AppliedSeq(ctx, projectID); err != nil || have >= want {
		return 0, err
	}
	g.feeding.Lock()
	defer g.feeding.Unlock()
	have, err := f.warehouse.AppliedSeq(ctx, projectID) // another caller may have fed meanwhile
	if err != nil || have >= want {
		return 0, err
	}
	ctx, span := tracer.Start(ctx, "ingestion.feed_projection")
	defer span.End()
	for have < want {
		changes, err := f.ledger.Changes(ctx, projectID, have, batch)
		if err != nil {
			return users, err
		}
		upTo := want // numbers that a later change took over leave a gap at the end
		if len(changes) > 0 {
			upTo = changes[len(changes)-1].Seq
			if len(changes) < batch {
				upTo = max(upTo, want)
			}
		}
		// Whatever changed up to there was merged up to there: read after the changes.
		merges, err := f.ledger.Merges(ctx, projectID, have, upTo)
		if err != nil {
			return users, err
		}
		if err := f.warehouse.Apply(ctx, projectID, changes, merges, upTo); err != nil {
			return users, err
		}
		have = upTo
		users += int64(len(changes))
	}
	span.SetAttributes(attribute.Int64("cohortbridge.users", users))
	if users >= sortFrom {
		return users, f.warehouse.Sort(ctx, projectID)
	}
	return users, nil
}

// Rebuild makes a project's projection anew from the ledger and returns how many
// profiles it has. Readers wait.
func (f *Feeder) Rebuild(ctx context.Context, projectID int64) (profiles int64, err error) {
	g := f.gate(projectID)
	g.use.Lock()
	defer g.use.Unlock()
	if err := f.warehouse.Reset(ctx, projectID); err != nil {
		return 0, err
	}
	if _, err := f.catchUp(ctx, g, projectID); err != nil {
		return 0, err
	}
	if err := f.warehouse.Sort(ctx, projectID); err != nil {
		return 0, err
	}
	st, err := f.ledger.State(ctx, projectID)
	return st.Profiles, err
}
