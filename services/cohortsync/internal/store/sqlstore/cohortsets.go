package sqlstore

import (
	"bytes"
	"context"
	"database/sql"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// CohortMembers implements store.Cohorts.
func (s *Store) CohortMembers(ctx context.Context, project, id int64) (store.Members, error) {
	return readMembers(ctx, s.db.Read(), project, id)
}

func readMembers(ctx context.Context, q queryer, project, id int64) (store.Members, error) {
	var b []byte
	var updated int64
	err := q.QueryRowContext(ctx, `SELECT coalesce(m.users, x''), coalesce(m.updated, 0) FROM cohorts c LEFT JOIN cohort_members m ON m.cohort_id = c.id
		WHERE c.project_id = $1 AND c.id = $2`, project, id).Scan(&b, &updated)
	if err != nil {
		return store.Members{}, orNotFound(err, "cohort", id)
	}
	users, err := ledger.UnmarshalSet(b)
	return store.Members{Users: users, Updated: at(updated)}, err
}

// ChangeCohortMembers implements store.Cohorts.
func (s *Store) ChangeCohortMembers(ctx context.Context, project, id int64, now time.Time, fn func(*roaring64.Bitmap) *roaring64.Bitmap) (out store.Members, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		m, err := readMembers(ctx, tx, project, id)
		if err != nil {
			return err
		}
		out = store.Members{Users: fn(m.Users), Updated: now}
		return writeMembers(ctx, tx, id, out.Users, now)
	})
	return out, err
}

func writeMembers(ctx context.Context, tx *sql.Tx, id int64, users *roaring64.Bitmap, now time.Time) error {
	b, err := ledger.MarshalSet(users)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO cohort_members (cohort_id, users, updated) VALUES ($1, $2, $3)
		ON CONFLICT (cohort_id) DO UPDATE SET users = excluded.users, updated = excluded.updated`, id, b, micros(now))
	return err
}

// ImportCohorts implements store.Cohorts.
func (s *Store) ImportCohorts(ctx context.Context, project int64, list []store.Cohort, now time.Time, resolve func(map[string]int64) ([]*typev1.Expression, error)) (out []store.Cohort, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		out = make([]store.Cohort, len(list))
		ids, stored, err := idsByName(ctx, tx, project)
		if err != nil {
			return err
		}
		for i, c := range list {
			if _, ok := ids[c.DisplayName]; ok {
				continue
			}
			out[i], err = scanCohort(tx.QueryRowContext(ctx, `INSERT INTO cohorts (project_id, display_name, description, definition, version, revision, created, updated)
				VALUES ($1, $2, $3, $4, 1, 1, $5, $5) RETURNING `+cohortColumns, project, c.DisplayName, c.Description, []byte{}, micros(now)))
			if err != nil {
				return nameTaken(err)
			}
			ids[c.DisplayName] = out[i].ID
		}
		defs, err := resolve(ids)
		if err != nil {
			return err
		}
		for i, c := range list {
			if err := importCohort(ctx, tx, &out[i], stored[c.DisplayName], c.Description, defs[i], now); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func idsByName(ctx context.Context, tx *sql.Tx, project int64) (ids map[string]int64, stored map[string]store.Cohort, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+cohortColumns+` FROM cohorts WHERE project_id = $1`, project)
	list, err := collect(rows, err, scanCohort)
	ids, stored = map[string]int64{}, map[string]store.Cohort{}
	for _, c := range list {
		ids[c.DisplayName], stored[c.DisplayName] = c.ID, c
	}
	return ids, stored, err
}

// importCohort gives a cohort, new or stored, its description and definition. It
// leaves one that has both as it is.
func importCohort(ctx context.Context, tx *sql.Tx, out *store.Cohort, stored store.Cohort, description string, def *typev1.Expression, now time.Time) error {
	version := out.Version // of a new one
	if out.ID == 0 {
		*out = stored
		same := bytes.Equal(cohort.Canonical(stored.Definition), cohort.Canonical(def))
		if same && stored.Description == description {
			return nil
		}
		if version = stored.Version; same {
			def = stored.Definition
		} else {
			version++
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(def)
	if err != nil {
		return err
	}
	added := 1
	if stored.ID == 0 {
		added = 0 // making it was its first revision
	}
	*out, err = scanCohort(tx.QueryRowContext(ctx, `UPDATE cohorts SET description = $1, definition = $2, version = $3, revision = revision + $4, updated = $5 WHERE id = $6 RETURNING `+cohortColumns,
		description, b, version, added, micros(now), out.ID))
	if err != nil {
		return err
	}
	return setReferences(ctx, tx, out)
}
