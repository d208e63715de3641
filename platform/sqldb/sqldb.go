// Package sqldb opens and migrates the transactional stores. A store package
// writes its SQL once in the dialect both engines share ($1 placeholders,
// ON CONFLICT, RETURNING) and asks Dialect where they differ; its migrations
// live in one embedded folder per dialect.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/pressly/goose/v3"
	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Dialect names an engine.
type Dialect string

// SQLite is the embedded engine.
const SQLite Dialect = "sqlite"

// DB is one store's database: a pool for reading and one for writing. With
// SQLite the writer has exactly one connection, so writers queue in Go instead
// of failing with "database is locked".
type DB struct {
	Dialect Dialect
	r, w    *sql.DB
}

// Open opens the database named by dsn ("sqlite:PATH") and runs the migrations
// found in migrations/<dialect> of fsys. The file and its folder are created
// with modes 0600 and 0700.
func Open(ctx context.Context, dsn string, fsys fs.FS) (*DB, error) {
	scheme, path, ok := strings.Cut(dsn, ":")
	if !ok || scheme != string(SQLite) || path == "" {
		return nil, fmt.Errorf("database %q: want sqlite:PATH", redact(dsn))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	// synchronous=FULL with WAL: a commit that was acknowledged survives power loss.
	params := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(10000)", "foreign_keys(1)", "temp_store(MEMORY)", "cache_size(-32000)"}, "_txlock": {"immediate"}}
	w, err := sql.Open("sqlite", "file:"+path+"?"+params.Encode())
	if err != nil {
		return nil, err
	}
	w.SetMaxOpenConns(1)
	rp := url.Values{"_pragma": append([]string{"query_only(1)"}, params["_pragma"]...)}
	r, err := sql.Open("sqlite", "file:"+path+"?"+rp.Encode())
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	r.SetMaxOpenConns(max(4, 2*runtime.NumCPU()))
	db := &DB{Dialect: SQLite, r: r, w: w}
	sub, err := fs.Sub(fsys, "migrations/"+string(SQLite))
	if err == nil {
		err = migrate(ctx, w, sub)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func migrate(ctx context.Context, db *sql.DB, fsys fs.FS) error {
	p, err := goose.NewProvider(goose.DialectSQLite3, db, fsys)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	return nil
}

// Read returns the pool for queries outside a transaction.
func (d *DB) Read() *sql.DB { return d.r }

// Writer returns the writing pool, for libraries that manage their own transactions.
func (d *DB) Writer() *sql.DB { return d.w }

// Tx runs fn in one writing transaction: commit when fn returns nil, else roll back.
func (d *DB) Tx(ctx context.Context, fn func(tx *sql.Tx) error) (err error) {
	tx, err := d.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // the first error is the one to report
		}
	}()
	if err = fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// ReadTx runs fn on one consistent snapshot.
func (d *DB) ReadTx(ctx context.Context, fn func(tx *sql.Tx) error) error {
	tx, err := d.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing was written
	return fn(tx)
}

// Close closes both pools.
func (d *DB) Close() error { return errors.Join(d.r.Close(), d.w.Close()) }

// IsUnique reports whether err is a violated primary key or unique constraint.
func IsUnique(err error) bool {
	se, ok := errors.AsType[*sqlite.Error](err)
	return ok && (se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

func redact(dsn string) string {
	if u, err := url.Parse(dsn); err == nil {
		return u.Redacted()
	}
	return "(unreadable)"
}
