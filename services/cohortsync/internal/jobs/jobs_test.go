package jobs_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/jobs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestJobsArePickedUpAndSurviveARestart(t *testing.T) {
	got := make(chan int64, 100)
	cfg := jobs.Config{Path: filepath.Join(t.TempDir(), "jobs.db"), Workers: 4, Poll: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	open := func() *jobs.Queue {
		q, err := jobs.Open(t.Context(), cfg, func(_ context.Context, run int64) error { got <- run; return nil })
		require.NoError(t, err)
		return q
	}
	q := open()
	require.NoError(t, q.Enqueue(t.Context(), 1))
	require.NoError(t, q.Close())
	q = open()
	require.NoError(t, q.Start(t.Context()))
	require.EqualValues(t, 1, <-got)
	start := time.Now()
	for i := range int64(20) {
		require.NoError(t, q.Enqueue(t.Context(), 2+i))
		require.Equal(t, 2+i, <-got)
	}
	t.Logf("pickup %s", time.Since(start)/20)
	require.Less(t, time.Since(start)/20, 250*time.Millisecond)
	require.NoError(t, q.Stop(t.Context()))
	require.NoError(t, q.Close())
}

func TestStopEndsTheJobsContextAndWaits(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	q, err := jobs.Open(t.Context(), jobs.Config{Path: filepath.Join(t.TempDir(), "jobs.db"), Workers: 1, Poll: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}, func(ctx context.Context, _ int64) error {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, q.Enqueue(t.Context(), 1))
	require.NoError(t, q.Start(t.Context()))
	<-started
	require.NoError(t, q.Stop(t.Context()))
	<-ended
	require.NoError(t, q.Close())
}
