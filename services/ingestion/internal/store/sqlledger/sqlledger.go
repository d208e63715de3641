// Package sqlledger keeps the ledger in a SQL database opened by platform/sqldb.
package sqlledger

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/sqldb"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

//go:embed migrations
var migrations embed.FS

// chunk is how many ids or numbers one statement names. SQLite looks numbered
// parameters up one by one, so that long lists cost their square.
const chunk = 64

// Store is a ledger.Ledger.
type Store struct{ db *sqldb.DB }

var _ ledger.Ledger = (*Store)(nil)

// Open opens and migrates the database named by dsn, e.g. "sqlite:PATH".
func Open(ctx context.Context, dsn string) (*Store, error) {
	db, err := sqldb.Open(ctx, dsn, migrations)
	if err != nil {
		return nil, fmt.Errorf("ingestion ledger: %w", err)
	}
	return &Store{db: db}, nil
}

// Close implements ledger.Ledger.
func (s *Store) Close() error { return s.db.Close() }

// querier is what *sql.DB and *sql.Tx share.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// in runs query once per chunk of keys; %s stands for the list of placeholders,
// which start at $2 ($1 is the project). Full chunks share a prepared statement.
func in[K any](ctx context.Context, q querier, projectID int64, query string, keys []K, scan func(*sql.Rows) error) (err error) {
	var full *sql.Stmt
	if len(keys) >= 2*chunk {
		if full, err = q.PrepareContext(ctx, fmt.Sprintf(query, placeholders(2, chunk))); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, full.Close()) }()
	}
	args := make([]any, 0, chunk+1)
	for part := range slices.Chunk(keys, chunk) {
		args = append(args[:0], projectID)
		for _, k := range part {
			args = append(args, k)
		}
		var rows *sql.Rows
		if full != nil && len(part) == chunk {
			rows, err = full.QueryContext(ctx, args...)
		} else {
			rows, err = q.QueryContext(ctx, fmt.Sprintf(query, placeholders(2, len(part))), args...)
		}
		if err == nil {
			err = drain(rows, scan)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func each(ctx context.Context, q querier, query string, args []any, scan func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	return drain(rows, scan)
}

func drain(rows *sql.Rows, scan func(*sql.Rows) error) (err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func placeholders(from, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", from+i)
	}
	return b.String()
}

// Freeze implements ledger.Ledger.
func (s *Store) Freeze(ctx context.Context, projectID int64, asked project.IdentitySystem) (project.IdentitySystem, error) {
	var sys uint8
	const query = `SELECT identity_system FROM projects WHERE project_id=$1`
	err := s.db.Read().QueryRowContext(ctx, query, projectID).Scan(&sys)
	if !errors.Is(err, sql.ErrNoRows) {
		return project.IdentitySystem(sys), err
	}
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO projects (project_id, identity_system) VALUES ($1,$2) ON CONFLICT DO NOTHING`, projectID, uint8(asked)); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, query, projectID).Scan(&sys)
	})
	return project.IdentitySystem(sys), err
}

// Update implements ledger.Ledger.
func (s *Store) Update(ctx context.Context, projectID int64, fn func(ledger.Tx) error) error {
	return s.db.Tx(ctx, func(sqlTx *sql.Tx) error {
		t := &tx{ctx: ctx, q: sqlTx, p: projectID}
		// On an engine with concurrent writers this row is the project's lock.
		if err := sqlTx.QueryRowContext(ctx, `SELECT next_user_no, profile_seq FROM projects WHERE project_id=$1`, projectID).Scan(&t.next, &t.seq); err != nil {
			return fmt.Errorf("project %d: %w", projectID, err)
		}
		next, seq := t.next, t.seq
		if err := fn(t); err != nil {
			return err
		}
		if t.next == next && t.seq == seq {
			return nil
		}
		_, err := sqlTx.ExecContext(ctx, `UPDATE projects SET next_user_no=$2, profile_seq=$3 WHERE project_id=$1`, projectID, t.next, t.seq)
		return err
	})
}

func selectIDs(ctx context.Context, q querier, projectID int64, ids []string) (map[string]ledger.ID, error) {
	out := make(map[string]ledger.ID, len(ids))
	err := in(ctx, q, projectID, `SELECT i.distinct_id, i.user_no, u.canonical, i.reason, i.at_ms, i.linked_to, u.distinct_id<>i.distinct_id FROM ids i JOIN users u ON u.project_id=i.project_id AND u.user_no=i.user_no WHERE i.project_id=$1 AND i.distinct_id IN (%s)`, ids, func(r *sql.Rows) error {
		var alias bool
		id, err := scanID(r, &alias)
		id.Alias = alias
		out[id.DistinctID] = id
		return err
	})
	return out, err
}

func scanID(r *sql.Rows, more ...any) (id ledger.ID, err error) {
	var at int64
	err = r.Scan(append([]any{&id.DistinctID, &id.UserNo, &id.Canonical, &id.Reason, &at, &id.LinkedTo}, more...)...)
	id.At = time.UnixMilli(at).UTC()
	return id, err
}

// IDs implements ledger.Ledger.
func (s *Store) IDs(ctx context.Context, projectID int64, ids []string) (map[string]ledger.ID, error) {
	return selectIDs(ctx, s.db.Read(), projectID, ids)
}

// Cluster implements ledger.Ledger.
func (s *Store) Cluster(ctx context.Context, projectID int64, id string, literal bool) (*ledger.Cluster, error) {
	var c *ledger.Cluster
	err := s.db.ReadTx(ctx, func(q *sql.Tx) error {
		row, err := resolve(ctx, q, projectID, id, literal)
		if err != nil || row == nil {
			return err
		}
		no := row.Canonical
		users, err := selectUsers(ctx, q, projectID, []uint64{no})
		if err != nil {
			return err
		}
		c = &ledger.Cluster{User: users[no]}
		const cols = `SELECT i.distinct_id, i.user_no, u.canonical, i.reason, i.at_ms, i.linked_to, coalesce((SELECT f.user_no FROM former_users f WHERE f.project_id=i.project_id AND f.distinct_id=i.distinct_id), 0) FROM users u JOIN ids i ON i.project_id=u.project_id AND `
		// The first ids of the cluster's numbers, then the aliases of each number.
		err = each(ctx, q, cols+`i.distinct_id=u.distinct_id WHERE u.project_id=$1 AND (u.user_no=$2 OR (u.canonical=$2 AND u.canonical<>u.user_no)) AND i.reason=1
			UNION ALL `+cols+`i.user_no=u.user_no AND i.reason<>1 WHERE u.project_id=$1 AND (u.user_no=$2 OR (u.canonical=$2 AND u.canonical<>u.user_no)) ORDER BY 5, 1`,
			[]any{projectID, no}, func(r *sql.Rows) error {
				var former uint64
				id, err := scanID(r, &former)
				id.Former = former
				c.IDs = append(c.IDs, id)
				return err
			})
		if err != nil {
			return err
		}
		err = each(ctx, q, `SELECT x.property, x.value, coalesce(o.distinct_id, '') FROM identifier_conflicts x
			LEFT JOIN ids i ON i.project_id=x.project_id AND i.distinct_id=x.value AND x.value<>''
			LEFT JOIN users u ON u.project_id=i.project_id AND u.user_no=i.user_no LEFT JOIN users o ON o.project_id=u.project_id AND o.user_no=u.canonical
			WHERE x.project_id=$1 AND x.user_no=$2 ORDER BY x.property`, []any{projectID, no}, func(r *sql.Rows) error {
			var x ledger.Conflict
			err := r.Scan(&x.Property, &x.Value, &x.Owner)
			c.Conflicts = append(c.Conflicts, x)
			return err
		})
		if err != nil {
			return err
		}
		return q.QueryRowContext(ctx, `SELECT EXISTS(SELECT 1 FROM profiles WHERE project_id=$1 AND user_no=$2)`, projectID, no).Scan(&c.Identified)
	})
	return c, err
}

// resolve finds the row of an id, nil for an unknown one. literal prefers the user
// who had it before: a row as it was for that user.
func resolve(ctx context.Context, q querier, projectID int64, id string, literal bool) (*ledger.ID, error) {
	found, err := selectIDs(ctx, q, projectID, []string{id})
	row, ok := found[id]
	if err != nil || !ok {
		return nil, err
	}
	if literal {
		no, err := former(ctx, q, projectID, id)
		if err != nil {
			return nil, err
		}
		if no != 0 {
			row.UserNo, row.Canonical = no, no
		}
	}
	return &row, nil
}

// Former implements ledger.Ledger.
func (s *Store) Former(ctx context.Context, projectID int64, id string) (uint64, error) {
	return former(ctx, s.db.Read(), projectID, id)
}

func former(ctx context.Context, q querier, projectID int64, id string) (no uint64, err error) {
	err = q.QueryRowContext(ctx, `SELECT user_no FROM former_users WHERE project_id=$1 AND distinct_id=$2`, projectID, id).Scan(&no)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return no, err
}

func selectUsers(ctx context.Context, q querier, projectID int64, nos []uint64) (map[uint64]ledger.User, error) {
	out := make(map[uint64]ledger.User, len(nos))
	err := in(ctx, q, projectID, `SELECT user_no, canonical, distinct_id, ids, seq FROM users WHERE project_id=$1 AND user_no IN (%s)`, nos, func(r *sql.Rows) error {
		var u ledger.User
		err := r.Scan(&u.No, &u.Canonical, &u.DistinctID, &u.IDs, &u.Seq)
		out[u.No] = u
		return err
	})
	return out, err
}
