package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// idleFor is how long a process is left alone before its memory is read.
const idleFor = 5 * time.Second

// start measures P10: time to ready, and idle memory, of standalone with sandbox.
func (b *bench) start(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var times, sizes []float64
	for i := range 5 {
		p, err := b.launch(ctx, "standalone", "--dev", "--data-dir", filepath.Join(dir, "d"), "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--sandbox-addr", "127.0.0.1:0", "--log-level", "warn")
		if err != nil {
			return err
		}
		times = append(times, p.ready.Seconds())
		if i == 0 || i == 4 {
			select {
			case <-time.After(idleFor):
			case <-ctx.Done():
				return ctx.Err()
			}
			mb, err := p.rss()
			if err != nil {
				return err
			}
			sizes = append(sizes, mb)
		}
		if err := p.stop(); err != nil {
			return err
		}
	}
	ready, rss := median(times), sizes[len(sizes)-1]
	b.add(figure{ID: "P10", Value: ready, Unit: "s to ready", Ratio: ready / 1, Against: "goal 1 s", Note: "standalone with sandbox, median of 5 starts"})
	b.add(figure{ID: "P10-rss", Value: rss, Unit: "MB idle", Ratio: rss / 120, Against: "goal 120 MB", Note: "after 5 s"})
	return nil
}
