// Package duck keeps the warehouse in a DuckDB file. It is the only package that
// imports DuckDB: linking it is what takes long.
package duck

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	duckdb "github.com/duckdb/duckdb-go/v2"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Config is how the store uses the machine.
type Config struct {
	// Path is the file; its folder is created.
	Path string
	// MemoryLimitMB is DuckDB's buffer budget. It is no cap on the process's size.
	MemoryLimitMB int
	// Threads is how many cores a query may use; 0 means all.
	Threads int
	// HashBudget is how many dedupe hashes are kept in memory, about 12 bytes each.
	HashBudget int
}

// Default is the configuration that was measured (docs/decisions).
func Default(path string) Config {
	return Config{Path: path, MemoryLimitMB: 200, Threads: 0, HashBudget: 6_000_000}
}

// Store is a warehouse.Warehouse.
type Store struct {
	cfg Config

	life   sync.RWMutex // read while the engine is used, written while it is opened anew
	broken atomic.Bool  // a fatal error: the engine refuses everything until then
	retry  atomic.Int64 // Unix nanoseconds before which it is not tried again

	db     *sql.DB
	writer *sql.Conn // events: one writer, so that dedupe in memory is exact
	feeder *sql.Conn // projection and merges

	writeMu  sync.Mutex // one writer at a time
	dedupe   *dedupe
	appender *duckdb.Appender // of events, on writer; nil until it is needed
	args     [13]driver.Value // of its rows

	feedMu sync.Mutex // one feeder at a time
	mu     sync.RWMutex
	newest map[int64]int64  // processing time of the newest event, per project
	count  map[int64]int64  // events, per project
	merged map[int64]int64  // time of the last merge, for projects that have one
	seqs   map[int64]uint64 // applied sequence, per project
}

var _ warehouse.Warehouse = (*Store)(nil)

// schemaVersion is the layout this code writes.
const schemaVersion = 2

const schema = `
CREATE TABLE IF NOT EXISTS meta (version INTEGER NOT NULL);
-- Arrival order; no key or index: the writer deduplicates.
CREATE TABLE IF NOT EXISTS events (
  project_id    BIGINT NOT NULL,
  user_no       UBIGINT NOT NULL,
  name          VARCHAR NOT NULL,
  time_ms       BIGINT NOT NULL,
  received_ms   BIGINT NOT NULL,
  day           INTEGER NOT NULL,
  hash          UBIGINT NOT NULL,
  insert_id     VARCHAR NOT NULL,
  source        VARCHAR NOT NULL,
  rule          VARCHAR NOT NULL,
  rules_version USMALLINT NOT NULL,
  flags         UTINYINT NOT NULL,
  props         VARCHAR NOT NULL USING COMPRESSION zstd
);
-- One row per profile (property ''), property and list element.
CREATE TABLE IF NOT EXISTS projection (
  project_id BIGINT NOT NULL,
  property   VARCHAR NOT NULL,
  user_no    UBIGINT NOT NULL,
  kind       UTINYINT NOT NULL,
  str        VARCHAR,
  num        DOUBLE,
  ts         BIGINT,
  seq        UBIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS links (project_id BIGINT NOT NULL, user_no UBIGINT NOT NULL, canonical UBIGINT NOT NULL);
-- Every merge, for months that are counted as they were.
CREATE TABLE IF NOT EXISTS merges (project_id BIGINT NOT NULL, user_no UBIGINT NOT NULL, canonical UBIGINT NOT NULL, at_ms BIGINT NOT NULL, seq UBIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS feed (project_id BIGINT NOT NULL, seq UBIGINT NOT NULL);
`

// Open opens or creates the file and reads back what is kept in memory.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg}
	return s, s.open(ctx)
}

// open starts the engine; after an error nothing of it is left open.
func (s *Store) open(ctx context.Context) (err error) {
	cfg := s.cfg
	settings := []string{
		fmt.Sprintf("SET memory_limit='%dMB'", cfg.MemoryLimitMB),
		"SET wal_autocheckpoint='64MB'", // a smaller one compresses a row group several times: 127,000 events/s against 140,000
		"SET max_vacuum_tasks=0",        // merging row groups stalls commits for a second
		"SET TimeZone='UTC'",
		"SET enable_progress_bar=false",
	}
	if cfg.Threads > 0 {
		settings = append(settings, fmt.Sprintf("SET threads=%d", cfg.Threads))
	}
	// The storage version counts when the file is made, so it can't be a SET: older
	// versions know no zstd.
	connector, err := duckdb.NewConnector(cfg.Path+"?storage_compatibility_version=latest", func(e driver.ExecerContext) error {
		for _, s := range settings {
			if _, err := e.ExecContext(ctx, s, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("warehouse: %w", scrub(err))
	}
	s.db, s.dedupe = sql.OpenDB(connector), newDedupe(filepath.Dir(cfg.Path), cfg.HashBudget)
	s.mu.Lock()
	s.newest, s.count, s.merged, s.seqs = map[int64]int64{}, map[int64]int64{}, map[int64]int64{}, map[int64]uint64{}
	s.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("warehouse: %w", err), s.shut())
		}
	}()
	if err := os.Chmod(cfg.Path, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if s.writer, err = s.db.Conn(ctx); err != nil {
		return err
	}
	if s.feeder, err = s.db.Conn(ctx); err != nil {
		return err
	}
	return s.load(ctx)
}

func (s *Store) migrate(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, schema); err != nil {
		return err
	}
	if err := os.Chmod(s.cfg.Path, 0o600); err != nil {
		return err
	}
	var v sql.NullInt64
	if err := s.db.QueryRowContext(ctx, `SELECT max(version) FROM meta`).Scan(&v); err != nil {
		return err
	}
	if !v.Valid {
		_, err := s.db.ExecContext(ctx, `INSERT INTO meta VALUES ($1)`, schemaVersion)
		return err
	}
	if v.Int64 == 1 {
		// Layout 2 added merges; they are fed again, with the rest, from sequence 0.
		for _, q := range []string{`DELETE FROM projection`, `DELETE FROM links`, `DELETE FROM feed`, `DELETE FROM meta`, fmt.Sprintf(`INSERT INTO meta VALUES (%d)`, schemaVersion)} {
			if _, err := s.db.ExecContext(ctx, q); err != nil {
				return err
			}
		}
		return nil
	}
	if v.Int64 != schemaVersion {
		return fmt.Errorf("the file has layout %d, this program needs %d", v.Int64, schemaVersion)
	}
	return nil
}

// load reads the small facts that are kept in memory. It scans narrow columns
// only: 0.1 s for 5 M events.
func (s *Store) load(ctx context.Context) error {
	err := query(ctx, s.db, fmt.Sprintf(`SELECT project_id, day, max(received_ms), count(*), count(*) FILTER (flags & %d = 0) FROM events GROUP BY 1, 2`, warehouse.FlagGenerated), nil, func(r *sql.Rows) error {
		var k dayKey
		var newest, n int64
		var stored int
		err := r.Scan(&k.project, &k.day, &newest, &n, &stored)
		s.newest[k.project] = max(s.newest[k.project], newest)
		s.count[k.project] += n
		s.dedupe.stored[k] = stored
		return err
	})
	if err != nil {
		return err
	}
	err = query(ctx, s.db, `SELECT project_id, max(at_ms) FROM merges GROUP BY 1`, nil, func(r *sql.Rows) error {
		var p, at int64
		err := r.Scan(&p, &at)
		s.merged[p] = at
		return err
	})
	if err != nil {
		return err
	}
	return query(ctx, s.db, `SELECT project_id, seq FROM feed`, nil, func(r *sql.Rows) error {
		var p int64
		var seq uint64
		err := r.Scan(&p, &seq)
		s.seqs[p] = seq
		return err
	})
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func query(ctx context.Context, q querier, text string, args []any, scan func(*sql.Rows) error) (err error) {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return scrub(err)
	}
	defer func() { err = errors.Join(err, scrub(rows.Close())) }()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return scrub(rows.Err())
}

// Events implements warehouse.Warehouse.
func (s *Store) Events(_ context.Context, projectID int64) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.count[projectID], nil
}

// AppliedSeq implements warehouse.Warehouse.
func (s *Store) AppliedSeq(_ context.Context, projectID int64) (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seqs[projectID], nil
}

// Close implements warehouse.Warehouse.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	return s.shut()
}

// shut closes what is open of the engine.
func (s *Store) shut() error {
	var errs []error
	if s.dedupe != nil {
		s.dedupe.close()
	}
	if s.appender != nil {
		errs = append(errs, s.appender.Close())
	}
	for _, c := range []*sql.Conn{s.writer, s.feeder} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	s.appender, s.writer, s.feeder, s.db = nil, nil, nil, nil
	return scrub(errors.Join(errs...))
}

// inTx runs fn between BEGIN and COMMIT on a connection. Outside of an explicit
// transaction an Appender commits whenever it flushes.
func inTx(ctx context.Context, c *sql.Conn, fn func() error) (err error) {
	if _, err := c.ExecContext(ctx, "BEGIN TRANSACTION"); err != nil {
		return err
	}
	if err := fn(); err != nil {
		_, e := c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		return errors.Join(err, e)
	}
	if _, err = c.ExecContext(ctx, "COMMIT"); err != nil {
		err = scrub(err)
		// A failed COMMIT has rolled back already in most cases; a second ROLLBACK
		// then only complains, and the first error is the one to report.
		_, _ = c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	}
	return err
}

// appendRows runs fill with an Appender on table, on a connection in a transaction.
func appendRows(c *sql.Conn, table string, fill func(*duckdb.Appender) error) error {
	return c.Raw(func(dc any) error {
		conn, ok := dc.(driver.Conn)
		if !ok {
			return fmt.Errorf("unexpected driver connection %T", dc)
		}
		a, err := duckdb.NewAppenderFromConn(conn, "", table)
		if err != nil {
			return err
		}
		if err := fill(a); err != nil {
			// Nothing of it is wanted: the caller rolls back.
			return scrub(errors.Join(err, a.Clear(), a.Close()))
		}
		return scrub(a.Close())
	})
}
