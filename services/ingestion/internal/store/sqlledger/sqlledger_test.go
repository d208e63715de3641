package sqlledger_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger/ledgertest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/sqlledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, dir string) ledger.Ledger {
		t.Helper()
		l, err := sqlledger.Open(context.Background(), "sqlite:"+filepath.Join(dir, "ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		return l
	})
}

// A ledger from before former users were kept knows them when it is opened.
func TestFormerUsersAreFoundInALedgerFromBefore(t *testing.T) {
	ctx, file := context.Background(), filepath.Join(t.TempDir(), "ledger.db")
	open := func() *sqlledger.Store {
		t.Helper()
		l, err := sqlledger.Open(ctx, "sqlite:"+file)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	shut := func(l *sqlledger.Store) {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := open()
	if _, err := l.Freeze(ctx, 1, project.Legacy); err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(1)
	err := l.Update(ctx, 1, func(tx ledger.Tx) error {
		if _, err := tx.NewUsers([]string{"a", "b", "c"}, at); err != nil {
			return err
		}
		return tx.Repoint("b", 1, ledger.Link{Reason: ledger.Alias, At: at})
	})
	if err != nil {
		t.Fatal(err)
	}
	shut(l)
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{`DROP TABLE former_users`, `DELETE FROM goose_db_version WHERE version_id=4`} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	l = open()
	defer shut(l)
	for id, want := range map[string]uint64{"a": 0, "b": 2, "c": 0} {
		if no, err := l.Former(ctx, 1, id); no != want || err != nil {
			t.Errorf("former user of %s: %d, %v", id, no, err)
		}
	}
}
