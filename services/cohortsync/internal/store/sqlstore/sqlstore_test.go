package sqlstore_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store/sqlstore"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSQLiteConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		st, err := sqlstore.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "cohortsync.db"))
		require.NoError(t, err)
		return st
	})
}
