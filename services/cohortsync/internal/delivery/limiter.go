// Package delivery gets a batch to its destination: how many calls are in
// flight, how often and how long it is tried again, and what came of every
// record in the end.
package delivery

import (
	"context"
	"sync"
)

// Limiter bounds the calls in flight to one account. The bound adapts: a
// refusal for load lowers it by 30 %, a bound's worth of good answers raises it
// by 10 %, up to the maximum.
type Limiter struct {
	mu       sync.Mutex
	max      int
	limit    float64
	inFlight int
	good     int
	// epoch counts reductions: refusals of calls that started before the last
	// one say nothing new, or fifteen refusals at once would stop everything.
	epoch   int
	waiters []chan struct{}
}

// NewLimiter returns a limiter that starts at its maximum.
func NewLimiter(maximum int) *Limiter {
	return &Limiter{max: max(1, maximum), limit: float64(max(1, maximum))}
}

// Limit is the present bound.
func (l *Limiter) Limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.limit)
}

// Acquire waits for a slot, first come, first served. The caller gives it back
// with the returned function, saying whether the call was refused for load.
func (l *Limiter) Acquire(ctx context.Context) (release func(throttled bool), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	if len(l.waiters) == 0 && l.inFlight < int(l.limit) {
		l.inFlight++
		epoch := l.epoch
		l.mu.Unlock()
		return l.releaser(epoch), nil
	}
	ch := make(chan struct{})
	l.waiters = append(l.waiters, ch)
	l.mu.Unlock()
	select {
	case <-ch:
		l.mu.Lock()
		epoch := l.epoch
		l.mu.Unlock()
		return l.releaser(epoch), nil
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, w := range l.waiters {
			if w == ch {
				l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
				return nil, ctx.Err()
			}
		}
		// The slot was given just now: pass it on.
		l.inFlight--
		l.wake()
		return nil, ctx.Err()
	}
}

func (l *Limiter) releaser(epoch int) func(bool) {
	return func(throttled bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight--
		switch {
		case throttled && epoch == l.epoch:
			l.limit = max(1, l.limit*0.7)
			l.epoch++
			l.good = 0
		case !throttled:
			if l.good++; l.good >= int(l.limit) {
				l.limit = min(float64(l.max), l.limit*1.1)
				l.good = 0
			}
		}
		l.wake()
	}
}

func (l *Limiter) wake() {
	for len(l.waiters) > 0 && l.inFlight < int(l.limit) {
		l.inFlight++
		close(l.waiters[0])
		l.waiters = l.waiters[1:]
	}
}

// Limits has one limiter per account and group, shared by all connectors of
// the account.
type Limits struct {
	mu sync.Mutex
	m  map[string]*Limiter
}

// For returns the limiter of a key, made with maximum the first time.
func (l *Limits) For(key string, maximum int) *Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[string]*Limiter{}
	}
	if l.m[key] == nil {
		l.m[key] = NewLimiter(maximum)
	}
	return l.m[key]
}
