package sqlledger

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

const memberColumns = `SELECT u.user_no, u.distinct_id, p.props, p.updated_ms,
	EXISTS (SELECT 1 FROM former_users f WHERE f.project_id=u.project_id AND f.distinct_id=u.distinct_id)
	FROM users u LEFT JOIN profiles p ON p.project_id=u.project_id AND p.user_no=u.user_no
	WHERE u.project_id=$1 AND u.canonical=u.user_no AND u.user_no `

func scanMember(r *sql.Rows) (m ledger.Member, err error) {
	var at sql.NullInt64
	err = r.Scan(&m.UserNo, &m.DistinctID, &m.Props, &at, &m.Taken)
	m.Updated = time.UnixMilli(at.Int64).UTC()
	return m, err
}

// Members implements ledger.Ledger.
func (s *Store) Members(ctx context.Context, projectID int64, nos []uint64) ([]ledger.Member, error) {
	if len(nos) == 0 {
		return nil, nil
	}
	out := make([]ledger.Member, 0, len(nos))
	lo, hi := nos[0], nos[len(nos)-1]
	args := []any{projectID}
	query := memberColumns
	want := map[uint64]bool{}
	if hi-lo < 4*uint64(len(nos)) {
		// A dense range: reading it through beats naming every number.
		query += `BETWEEN $2 AND $3`
		args = append(args, lo, hi)
		for _, no := range nos {
			want[no] = true
		}
	} else {
		query += `IN (` + placeholders(2, len(nos)) + `)`
		for _, no := range nos {
			args = append(args, no)
		}
	}
	err := each(ctx, s.db.Read(), query+` ORDER BY u.user_no`, args, func(r *sql.Rows) error {
		m, err := scanMember(r)
		if len(want) == 0 || want[m.UserNo] {
			out = append(out, m)
		}
		return err
	})
	return out, err
}

// Profiles implements ledger.Ledger.
func (s *Store) Profiles(ctx context.Context, projectID int64, after uint64, limit int) ([]ledger.Member, error) {
	var out []ledger.Member
	err := each(ctx, s.db.Read(), `SELECT u.user_no, u.distinct_id, p.props, p.updated_ms, false FROM profiles p JOIN users u ON u.project_id=p.project_id AND u.user_no=p.user_no
		WHERE p.project_id=$1 AND p.user_no>$2 AND u.canonical=u.user_no ORDER BY p.user_no LIMIT $3`, []any{projectID, after, limit}, func(r *sql.Rows) error {
		m, err := scanMember(r)
		out = append(out, m)
		return err
	})
	return out, err
}

// Names implements ledger.Ledger.
func (s *Store) Names(ctx context.Context, projectID int64, nos []uint64) (map[uint64]ledger.Name, error) {
	out := make(map[uint64]ledger.Name, len(nos))
	err := in(ctx, s.db.Read(), projectID, `SELECT u.user_no, c.user_no, c.distinct_id, u.distinct_id FROM users u JOIN users c ON c.project_id=u.project_id AND c.user_no=u.canonical
		WHERE u.project_id=$1 AND u.user_no IN (%s)`, nos, func(r *sql.Rows) error {
		var no uint64
		var n ledger.Name
		err := r.Scan(&no, &n.Canonical, &n.DistinctID, &n.Own)
		out[no] = n
		return err
	})
	return out, err
}

// Changes implements ledger.Ledger.
func (s *Store) Changes(ctx context.Context, projectID int64, since uint64, limit int) ([]ledger.Change, error) {
	var out []ledger.Change
	err := each(ctx, s.db.Read(), `SELECT u.user_no, u.canonical, u.seq, p.props FROM users u
		LEFT JOIN profiles p ON p.project_id=u.project_id AND p.user_no=u.user_no AND u.canonical=u.user_no
		WHERE u.project_id=$1 AND u.seq>$2 AND u.seq>0 ORDER BY u.seq LIMIT $3`, []any{projectID, since, limit}, func(r *sql.Rows) error {
		var c ledger.Change
		err := r.Scan(&c.UserNo, &c.Canonical, &c.Seq, &c.Props)
		out = append(out, c)
		return err
	})
	return out, err
}

// ChangedUsers implements ledger.Ledger.
func (s *Store) ChangedUsers(ctx context.Context, projectID int64, since uint64) ([]uint64, error) {
	var out []uint64
	err := each(ctx, s.db.Read(), `SELECT user_no FROM users WHERE project_id=$1 AND seq>$2 AND seq>0`, []any{projectID, since}, func(r *sql.Rows) error {
		var no uint64
		err := r.Scan(&no)
		out = append(out, no)
		return err
	})
	return out, err
}

// Merges implements ledger.Ledger.
func (s *Store) Merges(ctx context.Context, projectID int64, since, upTo uint64) ([]ledger.Merge, error) {
	var out []ledger.Merge
	err := each(ctx, s.db.Read(), `SELECT seq, user_no, canonical, at_ms FROM merges WHERE project_id=$1 AND seq>$2 AND seq<=$3 ORDER BY seq`, []any{projectID, since, upTo}, func(r *sql.Rows) error {
		var m ledger.Merge
		err := r.Scan(&m.Seq, &m.UserNo, &m.Canonical, &m.AtMS)
		out = append(out, m)
		return err
	})
	return out, err
}

// UserBefore implements ledger.Ledger. The user of a number is the canonical one
// of its last merge before the instant; without one it is a user of its own.
func (s *Store) UserBefore(ctx context.Context, projectID int64, id string, before time.Time, literal bool) (u *ledger.PastUser, err error) {
	at := before.UnixMilli()
	err = s.db.ReadTx(ctx, func(q *sql.Tx) error {
		row, err := resolve(ctx, q, projectID, id, literal)
		if err != nil || row == nil {
			return err
		}
		u = &ledger.PastUser{Canonical: row.UserNo}
		err = q.QueryRowContext(ctx, `SELECT canonical FROM merges WHERE project_id=$1 AND user_no=$2 AND at_ms<$3 ORDER BY seq DESC LIMIT 1`, projectID, u.Canonical, at).Scan(&u.Canonical)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := q.QueryRowContext(ctx, `SELECT distinct_id FROM users WHERE project_id=$1 AND user_no=$2`, projectID, u.Canonical).Scan(&u.DistinctID); err != nil {
			return err
		}
		u.Nos = []uint64{u.Canonical}
		return each(ctx, q, `SELECT m.user_no FROM merges m WHERE m.project_id=$1 AND m.canonical=$2 AND m.at_ms<$3
			AND NOT EXISTS (SELECT 1 FROM merges n WHERE n.project_id=m.project_id AND n.user_no=m.user_no AND n.at_ms<$3 AND n.seq>m.seq)`, []any{projectID, u.Canonical, at}, func(r *sql.Rows) error {
			var no uint64
			err := r.Scan(&no)
			u.Nos = append(u.Nos, no)
			return err
		})
	})
	return u, err
}

// Projects implements ledger.Ledger.
func (s *Store) Projects(ctx context.Context) ([]int64, error) {
	var out []int64
	err := each(ctx, s.db.Read(), `SELECT project_id FROM projects ORDER BY 1`, nil, func(r *sql.Rows) error {
		var id int64
		err := r.Scan(&id)
		out = append(out, id)
		return err
	})
	return out, err
}

// Warnings implements ledger.Ledger.
func (s *Store) Warnings(ctx context.Context, projectID int64) ([]ledger.Warning, error) {
	var out []ledger.Warning
	err := each(ctx, s.db.Read(), `SELECT kind, count, first_ms, last_ms FROM warnings WHERE project_id=$1 ORDER BY kind`, []any{projectID}, func(r *sql.Rows) error {
		var w ledger.Warning
		var first, last int64
		err := r.Scan(&w.Kind, &w.Count, &first, &last)
		w.First, w.Last = time.UnixMilli(first).UTC(), time.UnixMilli(last).UTC()
		out = append(out, w)
		return err
	})
	return out, err
}

// State implements ledger.Ledger.
func (s *Store) State(ctx context.Context, projectID int64) (st ledger.State, err error) {
	var sys uint8
	err = s.db.Read().QueryRowContext(ctx, `SELECT identity_system, profile_seq,
		(SELECT count(*) FROM users WHERE project_id=$1 AND canonical=user_no),
		(SELECT count(*) FROM profiles WHERE project_id=$1) FROM projects WHERE project_id=$1`, projectID).Scan(&sys, &st.Seq, &st.Users, &st.Profiles)
	if errors.Is(err, sql.ErrNoRows) {
		return ledger.State{}, nil
	}
	st.System = project.IdentitySystem(sys)
	return st, err
}

// Seq implements ledger.Ledger.
func (s *Store) Seq(ctx context.Context, projectID int64) (seq uint64, err error) {
	err = s.db.Read().QueryRowContext(ctx, `SELECT profile_seq FROM projects WHERE project_id=$1`, projectID).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return seq, err
}

const groupColumns = `SELECT group_key, group_id, props, updated_ms FROM group_profiles WHERE project_id=$1 AND `

func scanGroup(scan func(...any) error) (g ledger.Group, err error) {
	var at int64
	err = scan(&g.Key, &g.ID, &g.Props, &at)
	g.Updated = time.UnixMilli(at).UTC()
	return g, err
}

// Group implements ledger.Ledger.
func (s *Store) Group(ctx context.Context, projectID int64, key, id string) (*ledger.Group, error) {
	return selectGroup(ctx, s.db.Read(), projectID, key, id)
}

func selectGroup(ctx context.Context, q querier, projectID int64, key, id string) (*ledger.Group, error) {
	g, err := scanGroup(q.QueryRowContext(ctx, groupColumns+`group_key=$2 AND group_id=$3`, projectID, key, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &g, err
}

// Groups implements ledger.Ledger.
func (s *Store) Groups(ctx context.Context, projectID int64, only, afterKey, afterID string, limit int) ([]ledger.Group, error) {
	query, args := groupColumns+`(group_key, group_id) > ($2, $3)`, []any{projectID, afterKey, afterID, limit}
	if only != "" {
		query += ` AND group_key=$5`
		args = append(args, only)
	}
	var out []ledger.Group
	err := each(ctx, s.db.Read(), query+` ORDER BY group_key, group_id LIMIT $4`, args, func(r *sql.Rows) error {
		g, err := scanGroup(r.Scan)
		out = append(out, g)
		return err
	})
	return out, err
}
