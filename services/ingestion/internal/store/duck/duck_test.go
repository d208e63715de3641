package duck_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/duck"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/store/sqlledger"
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

func TestARebuildDropsWhatTheLedgerDoesNotHave(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := open(1000)(t, dir)
	defer func() { _ = w.Close() }()
	l, err := sqlledger.Open(ctx, "sqlite:"+filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := l.Freeze(ctx, 1, project.Simplified); err != nil {
		t.Fatal(err)
	}
	err = l.Update(ctx, 1, func(tx ledger.Tx) error {
		if _, err := tx.NewUsers([]string{"a", "b"}, time.Now()); err != nil {
			return err
		}
		return tx.PutProfiles([]ledger.Profile{{UserNo: 2, Props: []byte(`{"x":1}`), Updated: time.Now()}})
	})
	if err != nil {
		t.Fatal(err)
	}
	// A projection that has gone astray: a user and a merge the ledger knows nothing of.
	if err := w.Apply(ctx, 1, []ledger.Change{{UserNo: 1, Canonical: 1, Seq: 1, Props: []byte(`{"x":1}`)}, {UserNo: 9, Canonical: 2, Seq: 2}}, nil, 2); err != nil {
		t.Fatal(err)
	}
	f := feed.New(l, w)
	if n, err := f.Rebuild(ctx, 1); err != nil || n != 1 {
		t.Errorf("rebuilt %d profiles, %v", n, err)
	}
	ev, err := w.Evaluate(ctx, 1, nil, time.Now())
	if err != nil || ev.Identified.GetCardinality() != 1 || !ev.Identified.Contains(2) || ev.Seq != 1 {
		t.Errorf("after the rebuild: %v, %v", ev, err)
	}
}

func TestErrorsOfTheEngineQuoteNoData(t *testing.T) {
	w := open(1000)(t, t.TempDir())
	defer func() { _ = w.Close() }()
	// What the decoders never let through: JSON that the engine refuses to read.
	row := warehouse.Row{ProjectID: 1, UserNo: 1, Name: "E", Props: []byte(`{"mail":"zoe@example.org"`)}
	if _, err := w.Append(context.Background(), []warehouse.Row{row}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Evaluate(context.Background(), 1, []leaf.Leaf{{Behavior: &leaf.Behavior{Events: []string{"E"}, Measure: leaf.Sum, Property: "x", Comparator: leaf.Equal, Span: leaf.Span{To: 1}}}}, time.Now())
	if err == nil || strings.Contains(err.Error(), "zoe") {
		t.Errorf("error %v", err)
	}
}
