package ingest

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Rate bounds what each project sends in a rolling minute, as Mixpanel does
// (https://developer.mixpanel.com/reference/rate-limits). It is safe for
// concurrent use.
type Rate struct {
	events, bytes int64
	now           project.Clock

	mu       sync.Mutex
	projects map[int64]*window
}

const windowSeconds = 60

// window counts the last minute by seconds.
type window struct {
	slots [windowSeconds]struct{ second, events, bytes int64 }
}

// NewRate makes a limiter of events and of bytes of uncompressed JSON a project
// and minute; 0 is no limit, and without any limit it is nil.
func NewRate(events, size int64, now project.Clock) *Rate {
	if events <= 0 && size <= 0 {
		return nil
	}
	return &Rate{events: events, bytes: size, now: now, projects: map[int64]*window{}}
}

// load is what a request brings to a project.
type load struct {
	project       int64
	events, bytes int64
}

// take counts the loads, all or none. wait is how long none of them is welcome, 0
// when they were counted.
func (r *Rate) take(loads []load) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now().Unix()
	for _, l := range loads {
		w := r.projects[l.project]
		if w == nil {
			w = &window{}
			r.projects[l.project] = w
		}
		wait = max(wait, w.wait(now, l.events, r.events, l.bytes, r.bytes))
	}
	if wait > 0 {
		return wait
	}
	for _, l := range loads {
		s := &r.projects[l.project].slots[now%windowSeconds]
		if s.second != now {
			s.second, s.events, s.bytes = now, 0, 0
		}
		s.events += l.events
		s.bytes += l.bytes
	}
	return 0
}

// fits is an error when one of the loads is more than a whole minute takes: to come
// back later would not help.
func (r *Rate) fits(loads []load) error {
	for _, l := range loads {
		limit, unit := r.events, "events"
		if r.events <= 0 || l.events <= r.events {
			if limit, unit = r.bytes, "bytes"; r.bytes <= 0 || l.bytes <= r.bytes {
				continue
			}
		}
		return fault.New(fault.TooLarge, "ABOVE_PROJECT_RATE", "request exceeds the project's limit of %d %s a minute", limit, unit)
	}
	return nil
}

// wait is how long it takes until events and bytes fit.
func (w *window) wait(now, events, maxEvents, size, maxBytes int64) time.Duration {
	var e, b int64
	for i := range w.slots {
		if s := &w.slots[i]; s.second > now-windowSeconds {
			e += s.events
			b += s.bytes
		}
	}
	over := func() bool {
		return maxEvents > 0 && e+events > maxEvents || maxBytes > 0 && b+size > maxBytes
	}
	if !over() {
		return 0
	}
	// The oldest seconds leave first.
	for old := now - windowSeconds + 1; old <= now; old++ {
		if s := &w.slots[old%windowSeconds]; s.second == old {
			e -= s.events
			b -= s.bytes
		}
		if !over() {
			return time.Duration(old+windowSeconds-now) * time.Second
		}
	}
	return windowSeconds * time.Second
}

// within counts what a request brings against its projects' rates. Events that
// fail later count as well, as they cost as much.
func (in *Ingester) within(ctx context.Context, sc *scratch, proj *project.Project, size int) error {
	if in.Rate == nil {
		return nil
	}
	var loads []load
	if proj != nil {
		loads = []load{{proj.ID, int64(len(sc.events) + len(sc.failures)), int64(size)}}
	} else {
		loads = in.loads(ctx, sc)
	}
	if err := in.Rate.fits(loads); err != nil {
		return err
	}
	if wait := in.Rate.take(loads); wait > 0 {
		return fault.New(fault.Exhausted, "PROJECT_RATE", "Project exceeded rate limits. Please retry the request with exponential backoff.").Retry(wait)
	}
	return nil
}

// loads are what the events of a batch bring to the projects their tokens name.
func (in *Ingester) loads(ctx context.Context, sc *scratch) (out []load) {
	var token []byte
	at := -1
	for i := range sc.events {
		ev := &sc.events[i]
		if len(ev.Token) == 0 {
			continue
		}
		if at < 0 || !bytes.Equal(token, ev.Token) {
			p, err := in.Registry.ByToken(ctx, string(ev.Token))
			if err != nil {
				continue // it is judged where the events are
			}
			token = ev.Token
			if at = slices.IndexFunc(out, func(l load) bool { return l.project == p.ID }); at < 0 {
				at = len(out)
				out = append(out, load{project: p.ID})
			}
		}
		out[at].events++
		out[at].bytes += int64(ev.Size)
	}
	return out
}
