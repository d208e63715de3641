package gateway

import (
	"sync"
	"time"
)

// ReadLimits bound what one project reads over Mixpanel's routes, as Mixpanel does
// (https://developer.mixpanel.com/reference/rate-limits); 0 is no limit. Each
// gateway counts for itself.
type ReadLimits struct {
	// QueryPerHour and QueryConcurrent bound queries: profiles and cohort lists.
	QueryPerHour, QueryConcurrent int
	// ExportPerHour, ExportPerSecond and ExportConcurrent bound raw exports.
	ExportPerHour, ExportPerSecond, ExportConcurrent int
}

// limiter bounds one kind of request, by project. It is safe for concurrent use.
type limiter struct {
	perHour, perSecond, concurrent int
	now                            func() time.Time

	mu       sync.Mutex
	projects map[string]*reads
}

// reads is what a project did lately.
type reads struct {
	// times are when requests were let in, oldest first: those of the window, and no
	// more than the limit.
	times   []time.Time
	running int
}

// manyProjects is when projects that do nothing are forgotten.
const manyProjects = 1000

func newLimiter(perHour, perSecond, concurrent int) *limiter {
	return &limiter{perHour: perHour, perSecond: perSecond, concurrent: concurrent, now: time.Now, projects: map[string]*reads{}}
}

// window is how long a request is remembered.
func (l *limiter) window() time.Duration {
	if l.perHour > 0 {
		return time.Hour
	}
	return time.Second
}

// enter counts a request of a project. leave ends it; without one it was refused
// and wait is when to come back.
func (l *limiter) enter(project string) (leave func(), wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	p := l.projects[project]
	if p == nil {
		l.forget(now)
		p = &reads{}
		l.projects[project] = p
	}
	p.expire(now.Add(-l.window()))
	if l.concurrent > 0 && p.running >= l.concurrent {
		return nil, time.Second
	}
	if wait := max(p.wait(now, l.perHour, time.Hour), p.wait(now, l.perSecond, time.Second)); wait > 0 {
		return nil, wait
	}
	p.running++
	if l.perHour > 0 || l.perSecond > 0 {
		p.times = append(p.times, now)
	}
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		p.running--
	}), 0
}

// expire drops what is older than the window.
func (p *reads) expire(before time.Time) {
	i := 0
	for i < len(p.times) && !p.times[i].After(before) {
		i++
	}
	p.times = append(p.times[:0], p.times[i:]...)
}

// wait is how long it takes until fewer than n requests lie within the window.
func (p *reads) wait(now time.Time, n int, window time.Duration) time.Duration {
	if n <= 0 || len(p.times) < n {
		return 0
	}
	return p.times[len(p.times)-n].Add(window).Sub(now)
}

// forget drops projects that do nothing, when there are many.
func (l *limiter) forget(now time.Time) {
	if len(l.projects) < manyProjects {
		return
	}
	for name, p := range l.projects {
		if p.expire(now.Add(-l.window())); p.running == 0 && len(p.times) == 0 {
			delete(l.projects, name)
		}
	}
}
