package engine

import (
	"context"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// Definitions reads the cohorts that definitions refer to from the store.
type Definitions struct{ Store store.Cohorts }

var _ cohort.Cohorts = Definitions{}

// Stored implements cohort.Cohorts.
func (d Definitions) Stored(ctx context.Context, project, id int64) (cohort.Stored, error) {
	c, err := d.Store.Cohort(ctx, project, id)
	return StoredOf(c), err
}

// Members implements cohort.Cohorts.
func (d Definitions) Members(ctx context.Context, project, id int64) (*roaring64.Bitmap, error) {
	m, err := d.Store.CohortMembers(ctx, project, id)
	return m.Users, err
}

// StoredOf is a cohort as evaluations need it.
func StoredOf(c store.Cohort) cohort.Stored {
	return cohort.Stored{ID: c.ID, Name: c.DisplayName, Definition: c.Definition}
}

// Evaluate computes who is in a cohort.
func Evaluate(ctx context.Context, st store.Cohorts, u Users, project int64, c cohort.Stored, asOf time.Time) (*cohort.Result, error) {
	return cohort.Evaluate(ctx, &cohort.Query{Answerer: u, Cohorts: Definitions{st}, Project: project, Cohort: c, AsOf: asOf})
}
