// Package sqlstore keeps the engine's state in SQL.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/sqldb"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

//go:embed migrations
var migrations embed.FS

// Store is a store.Store on a SQL database.
type Store struct{ db *sqldb.DB }

var _ store.Store = (*Store)(nil)

// Open opens and migrates the database named by dsn ("sqlite:PATH").
func Open(ctx context.Context, dsn string) (*Store, error) {
	db, err := sqldb.Open(ctx, dsn, migrations)
	if err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

type scanner interface{ Scan(dest ...any) error }

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func at(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// nullable keeps absent request ids out of the unique index.
func nullable(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

func notFound(what string, id int64) error {
	return fault.New(fault.NotFound, "NOT_FOUND", "%s %d does not exist", what, id)
}

// orNotFound turns an empty result into a NotFound fault.
func orNotFound(err error, what string, id int64) error {
	if errors.Is(err, sql.ErrNoRows) {
		return notFound(what, id)
	}
	return err
}

// collect reads all rows with scan.
func collect[T any](rows *sql.Rows, err error, scan func(scanner) (T, error)) (out []T, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // Err below has what matters
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

var errLeaseLost = fault.New(fault.Conflict, "LEASE_LOST", "another process took this run over")

// leased runs fn in a transaction that holds only while the lease does. The
// update also locks the run's row, so no one can take it over meanwhile.
func (s *Store) leased(ctx context.Context, l store.Lease, fn func(tx *sql.Tx) error) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE runs SET lease_token = lease_token WHERE id = $1 AND lease_token = $2 AND state <= 5`, l.RunID, l.Token))
		if err != nil {
			return err
		}
		if n == 0 {
			return errLeaseLost
		}
		return fn(tx)
	})
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
