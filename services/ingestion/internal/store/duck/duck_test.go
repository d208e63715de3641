package duck_test

import (
	"context"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse/warehousetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(budget int) warehousetest.Open {
	return func(t *testing.T, dir string) warehouse.Warehouse {
		t.Helper()
		cfg := duck.Default(filepath.Join(dir, "events.duckdb"))
		cfg.HashBudget = budget
		s, err := duck.Open(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestConformance(t *testing.T) { warehousetest.Run(t, open(1000)) }

// Without memory for hashes every duplicate is found by asking the table.
func TestConformanceWithoutHashesInMemory(t *testing.T) { warehousetest.Run(t, open(0)) }
