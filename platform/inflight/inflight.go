// Package inflight bounds what a process works on at one time: how many requests,
// and how many bytes they hold. What is over the bound is refused at once, so
// that callers come back instead of filling memory.
package inflight

import "sync/atomic"

// Gate lets requests in. It is safe for concurrent use; the nil Gate has no bound.
type Gate struct {
	maxRequests, maxBytes int64
	requests, bytes       atomic.Int64
}

// New makes a gate for at most maxRequests requests with maxBytes bytes between
// them; 0 is no bound. A single request that is larger than maxBytes is let in
// while no other holds any, so that it is not refused for ever.
func New(maxRequests int, maxBytes int64) *Gate {
	return &Gate{maxRequests: int64(maxRequests), maxBytes: maxBytes}
}

// Ticket is the room of one request. It is used by one goroutine at a time.
type Ticket struct {
	gate *Gate
	held int64
}

// Enter asks for a request's place and for room for n bytes, 0 or more; false
// when there is none now. Leave gives them back.
func (g *Gate) Enter(n int64) (*Ticket, bool) {
	if g == nil {
		return &Ticket{}, true
	}
	t := &Ticket{gate: g}
	if r := g.requests.Add(1); g.maxRequests > 0 && r > g.maxRequests || !t.Grow(n) {
		g.requests.Add(-1)
		return nil, false
	}
	return t, true
}

// Grow asks for n bytes more; false when there is no room for them now.
func (t *Ticket) Grow(n int64) bool {
	g := t.gate
	if g == nil {
		return true
	}
	if b := g.bytes.Add(n); g.maxBytes > 0 && b > g.maxBytes && b > t.held+n {
		g.bytes.Add(-n)
		return false
	}
	t.held += n
	return true
}

// Leave gives everything back.
func (t *Ticket) Leave() {
	if t.gate != nil {
		t.gate.bytes.Add(-t.held)
		t.gate.requests.Add(-1)
		t.gate, t.held = nil, 0
	}
}
