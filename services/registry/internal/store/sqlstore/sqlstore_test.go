package sqlstore_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/cohortbridge/cohortbridge/services/registry/internal/store"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store/sqlstore"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/store/storetest"
)

func TestSQLiteConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s, err := sqlstore.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "registry.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	})
}
