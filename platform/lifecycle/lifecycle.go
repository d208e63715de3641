// Package lifecycle starts the parts of a process in order and stops them in
// reverse on SIGTERM, SIGINT or when one of them fails.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// DrainTimeout is how long all parts together have to stop.
const DrainTimeout = 10 * time.Second

// Group is the parts of a process.
type Group struct {
	stops []part
	fatal chan error
	once  sync.Once
}

type part struct {
	name string
	stop func(context.Context) error
}

func (g *Group) init() { g.once.Do(func() { g.fatal = make(chan error, 1) }) }

// OnStop adds what stops a part that is running already. Parts stop in reverse order.
func (g *Group) OnStop(name string, stop func(context.Context) error) {
	g.stops = append(g.stops, part{name, stop})
}

// Go runs serve in the background; an error of it stops the whole group.
func (g *Group) Go(name string, serve func() error) {
	g.init()
	go func() {
		if err := serve(); err != nil {
			select {
			case g.fatal <- fmt.Errorf("%s: %w", name, err):
			default: // the first failure is the one that counts
			}
		}
	}()
}

// Wait blocks until a signal, the end of ctx, or a failed part, then stops all.
func (g *Group) Wait(ctx context.Context) error {
	g.init()
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	var cause error
	select {
	case <-ctx.Done():
	case cause = <-g.fatal:
	}
	cancel() // a second signal ends the process at once
	return errors.Join(cause, g.Stop(context.WithoutCancel(ctx)))
}

// Stop stops the parts in reverse, all within DrainTimeout.
func (g *Group) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, DrainTimeout)
	defer cancel()
	var errs []error
	for i := len(g.stops) - 1; i >= 0; i-- {
		p := g.stops[i]
		start := time.Now()
		if err := p.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.name, err))
		}
		slog.DebugContext(ctx, "stopped", "part", p.name, "duration", time.Since(start))
	}
	g.stops = nil
	return errors.Join(errs...)
}
