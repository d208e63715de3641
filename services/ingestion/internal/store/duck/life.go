package duck

import (
	"context"
	"log/slog"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// reopenEvery is how long an engine that could not be opened is left alone.
const reopenEvery = time.Second

// use keeps the engine open until done is called with the outcome of the work. The
// work gets a context that does not end with the caller's: an interrupted statement
// was seen to keep the engine's instance alive after Close, and opening the file
// again then waits for ever. Statements are short, and an export ends when its
// callback fails.
//
// After a fatal error, such as a disk that fills up during a checkpoint, DuckDB
// refuses everything until it is closed and opened again, which reads back what
// was committed. The next caller does that; while it does not succeed, callers
// are told to come back.
func (s *Store) use(ctx context.Context) (_ context.Context, done func(*error), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx = context.WithoutCancel(ctx)
	for {
		if s.broken.Load() {
			if err := s.reopen(ctx); err != nil {
				return nil, nil, err
			}
		}
		s.life.RLock()
		if !s.broken.Load() {
			break
		}
		s.life.RUnlock() // it broke in between
	}
	return ctx, func(err *error) {
		if fatal(*err) && s.broken.CompareAndSwap(false, true) {
			slog.ErrorContext(ctx, "the warehouse's engine failed; it is opened anew", "error", *err)
		}
		s.life.RUnlock()
	}, nil
}

func (s *Store) reopen(ctx context.Context) error {
	later := fault.New(fault.Unavailable, "WAREHOUSE_UNAVAILABLE", "the event store is not available; retry").Retry(reopenEvery)
	// Whoever still uses the broken engine gets its error and lets go; nobody new
	// comes in, so there is no need to block.
	if time.Now().UnixNano() < s.retry.Load() || !s.life.TryLock() {
		return later
	}
	defer s.life.Unlock()
	if !s.broken.Load() {
		return nil // another caller was faster
	}
	if err := s.shut(); err != nil {
		slog.WarnContext(ctx, "closing the failed engine", "error", err)
	}
	start := time.Now()
	// The engine outlives the caller that opens it.
	if err := s.open(context.WithoutCancel(ctx)); err != nil {
		s.retry.Store(time.Now().Add(reopenEvery).UnixNano())
		slog.ErrorContext(ctx, "the warehouse can't be opened", "error", err)
		return later.Wrap(err)
	}
	s.broken.Store(false)
	slog.InfoContext(ctx, "the warehouse is open again", "took", time.Since(start))
	return nil
}
