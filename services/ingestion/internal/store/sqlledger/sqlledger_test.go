package sqlledger_test

import (
	"context"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger/ledgertest"
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
