package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/cohortbridge/cohortbridge/platform/sqldb"
)

var migrations = fstest.MapFS{"migrations/sqlite/00001_init.sql": {Data: []byte("-- +goose Up\nCREATE TABLE t (k TEXT PRIMARY KEY);\n")}}

func open(t *testing.T, path string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.Background(), "sqlite:"+path, migrations)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestMigrationsRunOnceAndCommittedRowsSurviveReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "x.db")
	db := open(t, path)
	if err := db.Tx(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO t VALUES ('a')")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := open(t, path).Read().QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 1 {
		t.Fatalf("rows = %d, err = %v; want 1", n, err)
	}
}

func TestAFailedTransactionChangesNothingAndUniqueIsRecognised(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "x.db"))
	boom := errors.New("boom")
	err := db.Tx(context.Background(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("INSERT INTO t VALUES ('a')"); err != nil {
			return err
		}
		_, err := tx.Exec("INSERT INTO t VALUES ('a')")
		if !sqldb.IsUnique(err) {
			t.Errorf("IsUnique(%v) = false", err)
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("err = %v", err)
	}
	var n int
	if err := db.Read().QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil || n != 0 {
		t.Fatalf("rows = %d, err = %v; want 0", n, err)
	}
}

func TestTheReadPoolCannotWrite(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "x.db"))
	if _, err := db.Read().Exec("INSERT INTO t VALUES ('a')"); err == nil {
		t.Fatal("the read pool wrote")
	}
}

func TestAnUnknownSchemeIsRefusedWithoutShowingAPassword(t *testing.T) {
	_, err := sqldb.Open(context.Background(), "mysql://u:hunter2@h/db", migrations)
	if err == nil || err.Error() == "" {
		t.Fatal("no error")
	}
	if got := err.Error(); strings.Contains(got, "hunter2") {
		t.Fatalf("password shown: %s", got)
	}
}
