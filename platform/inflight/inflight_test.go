package inflight_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/inflight"
)

func enter(t *testing.T, g *inflight.Gate, n int64, want bool) *inflight.Ticket {
	t.Helper()
	ticket, ok := g.Enter(n)
	if ok != want {
		t.Fatalf("room for %d bytes: %v, want %v", n, ok, want)
	}
	return ticket
}

func TestRequestsBeyondTheBoundAreRefusedUntilOneLeaves(t *testing.T) {
	g := inflight.New(2, 0)
	a := enter(t, g, 1<<40, true)
	enter(t, g, 1<<40, true)
	enter(t, g, 0, false)
	a.Leave()
	a.Leave() // twice is once
	enter(t, g, 0, true)
	enter(t, g, 0, false)
}

func TestBytesBeyondTheBoundAreRefusedUntilTheyAreGivenBack(t *testing.T) {
	g := inflight.New(0, 100)
	a := enter(t, g, 60, true)
	enter(t, g, 41, false)
	b := enter(t, g, 30, true)
	if b.Grow(11) || !b.Grow(10) {
		t.Fatal("a request grew beyond the bound, or not up to it")
	}
	a.Leave()
	if !b.Grow(60) {
		t.Fatal("what was given back is not there")
	}
	enter(t, g, 1, false)
	b.Leave()
	enter(t, g, 100, true)
}

func TestALargeRequestIsLetInAlone(t *testing.T) {
	g := inflight.New(0, 100)
	a := enter(t, g, 500, true)
	if !a.Grow(500) {
		t.Error("alone it may grow")
	}
	enter(t, g, 1, false)
	a.Leave()
	b := enter(t, g, 1, true)
	enter(t, g, 500, false)
	b.Leave()
	enter(t, g, 500, true)
}

func TestTheNilGateHasNoBound(t *testing.T) {
	var g *inflight.Gate
	a := enter(t, g, 1<<60, true)
	if !a.Grow(1 << 60) {
		t.Error("refused")
	}
	a.Leave()
}

func TestConcurrentCallersNeverExceedTheBound(t *testing.T) {
	g := inflight.New(3, 30)
	var in, most, let atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				ticket, ok := g.Enter(10)
				if !ok {
					continue
				}
				let.Add(1)
				n := in.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				in.Add(-1)
				ticket.Leave()
			}
		})
	}
	wg.Wait()
	if most.Load() > 3 || let.Load() == 0 {
		t.Errorf("%d at once, %d let in", most.Load(), let.Load())
	}
	enter(t, g, 30, true) // everything came back
}
