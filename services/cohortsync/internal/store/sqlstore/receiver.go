package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// ExternalCohort implements store.Receiver.
func (s *Store) ExternalCohort(ctx context.Context, project int64, source string, want store.Cohort, revive bool, now time.Time) (out store.Cohort, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		var id sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT cohort_id FROM external_sources WHERE project_id = $1 AND source = $2`, project, source).Scan(&id)
		known := err == nil
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if known && !id.Valid && !revive {
			return fault.New(fault.NotFound, "COHORT_DELETED", "this cohort was deleted here, so who is in it is not known any more: send all its members (action members), or disconnect it")
		}
		if id.Valid {
			if out, err = scanCohort(tx.QueryRowContext(ctx, `SELECT `+cohortColumns+` FROM cohorts WHERE id = $1`, id.Int64)); err != nil {
				return err
			}
		}
		name, err := freeName(ctx, tx, project, id.Int64, want.DisplayName, source)
		if err != nil {
			return err
		}
		switch {
		case !id.Valid:
			def, err := proto.Marshal(&typev1.Expression{Node: &typev1.Expression_External{External: &typev1.ExternalLeaf{}}})
			if err != nil {
				return err
			}
			out, err = scanCohort(tx.QueryRowContext(ctx, `INSERT INTO cohorts (project_id, display_name, description, definition, version, revision, created, updated)
				VALUES ($1, $2, $3, $4, 1, 1, $5, $5) RETURNING `+cohortColumns, project, name, want.Description, def, micros(now)))
			if err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO external_sources (project_id, source, cohort_id) VALUES ($1, $2, $3)
				ON CONFLICT (project_id, source) DO UPDATE SET cohort_id = excluded.cohort_id`, project, source, out.ID)
			return err
		case out.DisplayName != name || out.Description != want.Description:
			out, err = scanCohort(tx.QueryRowContext(ctx, `UPDATE cohorts SET display_name = $1, description = $2, revision = revision + 1, updated = $3 WHERE id = $4 RETURNING `+cohortColumns,
				name, want.Description, micros(now), out.ID))
			return err
		}
		return nil
	})
	return out, err
}

// freeName is a name that no other cohort of the project has.
func freeName(ctx context.Context, tx *sql.Tx, project, self int64, name, source string) (string, error) {
	var one int
	err := tx.QueryRowContext(ctx, `SELECT 1 FROM cohorts WHERE project_id = $1 AND display_name = $2 AND id <> $3`, project, name, self).Scan(&one)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return name, nil
	case err != nil:
		return "", err
	}
	suffix := []rune(" (" + source + ")")
	short := []rune(name)
	return string(short[:min(len(short), max(0, 100-len(suffix)))]) + string(suffix), nil
}

// States of a session.
const (
	sessionOpen      = 0
	sessionApplied   = 1
	sessionOvertaken = 2
)

// AddPage implements store.Receiver.
func (s *Store) AddPage(ctx context.Context, project int64, p store.ExternalPage, now time.Time) (out store.ExternalProgress, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		members, err := readMembers(ctx, tx, project, p.Cohort)
		if err != nil {
			return err
		}
		out.Total = int64(members.Users.GetCardinality())
		if _, err := tx.ExecContext(ctx, `DELETE FROM external_sessions WHERE cohort_id = $1 AND updated < $2`, p.Cohort, micros(now.Add(-store.KeptSessions))); err != nil {
			return err
		}
		var state, pages int
		err = tx.QueryRowContext(ctx, `INSERT INTO external_sessions (cohort_id, session, action, pages, state, started, updated) VALUES ($1, $2, $3, $4, 0, $5, $5)
			ON CONFLICT (cohort_id, session, action) DO UPDATE SET updated = excluded.updated RETURNING state, pages`, p.Cohort, p.Session, p.Action, p.Pages, micros(now)).Scan(&state, &pages)
		switch {
		case err != nil:
			return err
		case pages != p.Pages:
			return fault.Field("total_pages", "is %d; other pages of the session said %d", p.Pages, pages)
		case state == sessionApplied:
			out.Pages, out.Complete = pages, true
			return nil
		case state == sessionOvertaken:
			return fault.New(fault.Conflict, "SESSION_OVERTAKEN", "a later session of this cohort was finished meanwhile; begin a new session")
		}
		b, err := ledger.MarshalSet(p.Users)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO external_pages (cohort_id, session, action, page, users) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (cohort_id, session, action, page) DO NOTHING`, p.Cohort, p.Session, p.Action, p.Page, b); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM external_pages WHERE cohort_id = $1 AND session = $2 AND action = $3`, p.Cohort, p.Session, p.Action).Scan(&out.Pages); err != nil {
			return err
		}
		if out.Complete = out.Pages == pages; !out.Complete {
			return nil
		}
		users, err := applySession(ctx, tx, &p, members.Users, now)
		out.Total = int64(users.GetCardinality())
		return err
	})
	return out, err
}

// applySession makes of a cohort's members what a session whose pages are all there
// says, and ends it and those that began before it.
func applySession(ctx context.Context, tx *sql.Tx, p *store.ExternalPage, members *roaring64.Bitmap, now time.Time) (*roaring64.Bitmap, error) {
	rows, err := tx.QueryContext(ctx, `SELECT users FROM external_pages WHERE cohort_id = $1 AND session = $2 AND action = $3`, p.Cohort, p.Session, p.Action)
	blobs, err := collect(rows, err, func(r scanner) (b []byte, err error) { return b, r.Scan(&b) })
	if err != nil {
		return members, err
	}
	of := roaring64.New()
	for _, b := range blobs {
		set, err := ledger.UnmarshalSet(b)
		if err != nil {
			return members, err
		}
		of.Or(set)
	}
	if members, err = takeBack(ctx, tx, p, members); err != nil {
		return members, err
	}
	base, err := ledger.MarshalSet(members)
	if err != nil {
		return members, err
	}
	switch p.Action {
	case store.ExternalReplace:
		members = of
	case store.ExternalAdd:
		members.Or(of)
	case store.ExternalRemove:
		members.AndNot(of)
	}
	if err := keepBase(ctx, tx, p, base); err != nil {
		return members, err
	}
	if err := writeMembers(ctx, tx, p.Cohort, members, now); err != nil {
		return members, err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE external_sessions SET state = $1 WHERE cohort_id = $2 AND session = $3 AND action = $4`, sessionApplied, p.Cohort, p.Session, p.Action); err != nil {
		return members, err
	}
	_, err = tx.ExecContext(ctx, `UPDATE external_sessions SET state = $1 WHERE cohort_id = $2 AND session <> $3 AND state = $4
		AND started <= (SELECT min(started) FROM external_sessions WHERE cohort_id = $2 AND session = $3)`, sessionOvertaken, p.Cohort, p.Session, sessionOpen)
	if err != nil {
		return members, err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM external_pages WHERE cohort_id = $1 AND EXISTS (SELECT 1 FROM external_sessions s
		WHERE s.cohort_id = external_pages.cohort_id AND s.session = external_pages.session AND s.action = external_pages.action AND s.state <> 0)`, p.Cohort)
	return members, err
}

// takeBack undoes an earlier session of which one half was applied and the other was
// abandoned: the sender's next session starts from before it.
func takeBack(ctx context.Context, tx *sql.Tx, p *store.ExternalPage, members *roaring64.Bitmap) (*roaring64.Bitmap, error) {
	var base []byte
	err := tx.QueryRowContext(ctx, `SELECT s.base FROM external_sessions s WHERE s.cohort_id = $1 AND s.session <> $2 AND s.base IS NOT NULL
		AND (EXISTS (SELECT 1 FROM external_sessions o WHERE o.cohort_id = s.cohort_id AND o.session = s.session AND o.action <> s.action AND o.state <> $3)
			OR EXISTS (SELECT 1 FROM external_sources x WHERE x.cohort_id = s.cohort_id AND x.pairs = 1))
		ORDER BY s.updated DESC LIMIT 1`, p.Cohort, p.Session, sessionApplied).Scan(&base)
	switch {
	case err == nil:
		if members, err = ledger.UnmarshalSet(base); err != nil {
			return members, err
		}
	case !errors.Is(err, sql.ErrNoRows):
		return members, err
	}
	_, err = tx.ExecContext(ctx, `UPDATE external_sessions SET base = NULL WHERE cohort_id = $1 AND session <> $2 AND base IS NOT NULL`, p.Cohort, p.Session)
	return members, err
}

// keepBase remembers who was in the cohort before the first half of a session, until
// the second one is applied.
func keepBase(ctx context.Context, tx *sql.Tx, p *store.ExternalPage, base []byte) error {
	if p.Action == store.ExternalReplace {
		return nil
	}
	other := store.ExternalAdd + store.ExternalRemove - p.Action
	done, err := affected(tx.ExecContext(ctx, `UPDATE external_sessions SET base = NULL WHERE cohort_id = $1 AND session = $2 AND action = $3 AND state = $4`, p.Cohort, p.Session, other, sessionApplied))
	if err != nil {
		return err
	}
	if done == 0 {
		_, err = tx.ExecContext(ctx, `UPDATE external_sessions SET base = $1 WHERE cohort_id = $2 AND session = $3 AND action = $4`, base, p.Cohort, p.Session, p.Action)
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE external_sources SET pairs = 1 WHERE cohort_id = $1`, p.Cohort)
	return err
}
