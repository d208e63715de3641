// Package lifecycle stops the parts of a process in the reverse of the order they
// started in: on SIGTERM, on SIGINT, or when one of them fails.
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

// Signals returns a context that ends with the first SIGTERM or SIGINT; the
// second one ends the process at once. Call it before anything starts: a signal
// that comes before would end the process without a drain.
func Signals(ctx context.Context) context.Context {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx
}

// Wait blocks until ctx ends or a part fails, then stops all.
func (g *Group) Wait(ctx context.Context) error {
	g.init()
	var cause error
	select {
	case <-ctx.Done():
	case cause = <-g.fatal:
	}
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
