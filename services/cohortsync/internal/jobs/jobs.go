// Package jobs hands runs to workers. A job carries only a run's id: what the
// run is and how far it came is the store's, so a job that is lost, doubled or
// late does no harm.
package jobs

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// Handler works on a run. Its error is logged; whether the run needs another
// job is for the handler's owner to find out.
type Handler func(ctx context.Context, run int64) error

// Config of a queue.
type Config struct {
	// Path is the queue's database file.
	Path string
	// Workers is how many runs are worked on at once.
	Workers int
	// Poll is how often new jobs are looked for.
	Poll time.Duration
	// Log gets the queue's own messages.
	Log *slog.Logger
}

// Queue is a durable queue of runs, by river.
type Queue struct {
	db     *sql.DB
	client *river.Client[*sql.Tx]
}

// runArgs are a job's arguments.
type runArgs struct {
	Run int64 `json:"run"`
}

// Kind implements river.JobArgs.
func (runArgs) Kind() string { return "sync_run" }

type worker struct {
	river.WorkerDefaults[runArgs]
	handle Handler
}

// Timeout implements river.Worker: a run takes as long as it takes; its lease
// says whether someone is at it.
func (*worker) Timeout(*river.Job[runArgs]) time.Duration { return -1 }

// Work implements river.Worker.
func (w *worker) Work(ctx context.Context, job *river.Job[runArgs]) error {
	return w.handle(ctx, job.Args.Run)
}

// Open opens the queue and its database. Nothing is worked on before Start.
func Open(ctx context.Context, cfg Config, handle Handler) (_ *Queue, err error) {
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, err
	}
	params := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(NORMAL)", "busy_timeout(10000)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+cfg.Path+"?"+params.Encode())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	// river's SQLite driver needs one connection: it writes from several goroutines.
	db.SetMaxOpenConns(1)
	driver := riversqlite.New(db)
	quiet := slog.New(levelFilter{cfg.Log.Handler(), slog.LevelWarn})
	m, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet})
	if err != nil {
		return nil, fmt.Errorf("job queue: %w", err)
	}
	if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fmt.Errorf("job queue: %w", err)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{handle: handle})
	client, err := river.NewClient(driver, &river.Config{
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: cfg.Workers}}, Workers: workers, Logger: quiet,
		FetchCooldown: max(time.Millisecond, cfg.Poll/2), FetchPollInterval: cfg.Poll, JobTimeout: -1,
		// A job whose process died is not worth rescuing: the engine finds runs
		// that nobody works on by their lease and queues them anew.
		RescueStuckJobsAfter: 24 * time.Hour, MaxAttempts: 1,
		CompletedJobRetentionPeriod: time.Hour, CancelledJobRetentionPeriod: time.Hour, DiscardedJobRetentionPeriod: time.Hour,
	})
	if err != nil {
		return nil, fmt.Errorf("job queue: %w", err)
	}
	return &Queue{db: db, client: client}, nil
}

// Start begins work. Jobs get a context that ends with Stop, not with ctx.
func (q *Queue) Start(ctx context.Context) error { return q.client.Start(context.WithoutCancel(ctx)) }

// Enqueue asks for a run to be worked on.
func (q *Queue) Enqueue(ctx context.Context, run int64) error {
	_, err := q.client.Insert(ctx, runArgs{Run: run}, nil)
	if err != nil {
		return fmt.Errorf("job queue: %w", err)
	}
	return nil
}

// Stop cancels the jobs' contexts and waits for them, at most until ctx ends.
func (q *Queue) Stop(ctx context.Context) error { return q.client.StopAndCancel(ctx) }

// Close closes the database.
func (q *Queue) Close() error { return q.db.Close() }

// levelFilter keeps river's informational messages out of the log.
type levelFilter struct {
	slog.Handler
	min slog.Level
}

// Enabled implements slog.Handler.
func (f levelFilter) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= f.min && f.Handler.Enabled(ctx, l)
}
