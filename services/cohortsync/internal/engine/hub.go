package engine

import "sync"

// Hub tells those who watch a run that it changed. It carries no data:
// watchers read the run from the store.
type Hub struct {
	mu sync.Mutex
	m  map[int64]map[chan struct{}]bool
}

// NewHub returns an empty hub.
func NewHub() *Hub { return &Hub{m: map[int64]map[chan struct{}]bool{}} }

// Watch returns a channel that gets a value after each change; changes close
// together are one value. Call the function when done.
func (h *Hub) Watch(run int64) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	if h.m[run] == nil {
		h.m[run] = map[chan struct{}]bool{}
	}
	h.m[run][ch] = true
	h.mu.Unlock()
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.m[run], ch)
		if len(h.m[run]) == 0 {
			delete(h.m, run)
		}
	}
}

// Notify tells the watchers of a run.
func (h *Hub) Notify(run int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.m[run] {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
