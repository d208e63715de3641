package duck

import (
	"context"
	"errors"
	"time"
)

// Bare opens a file as Open does and runs a query that returns one number n times,
// with nothing of ours around it. Benchmarks compare with it.
func Bare(ctx context.Context, cfg Config, text string, args []any, n int) (times []time.Duration, value int64, err error) {
	s, err := Open(ctx, cfg)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for range n {
		at := time.Now()
		if err := s.db.QueryRowContext(ctx, text, args...).Scan(&value); err != nil {
			return nil, 0, scrub(err)
		}
		times = append(times, time.Since(at))
	}
	return times, value, nil
}
