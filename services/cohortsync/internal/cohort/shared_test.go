package cohort_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
)

// counting answers leaf "A<n>" with user n, when it is let, and remembers how many
// leaves each question had.
type counting struct {
	mu    sync.Mutex
	asked []int
	let   chan struct{}
	fail  func(leaves []cohort.Leaf) error
}

func (c *counting) AnswerLeaves(_ context.Context, _ int64, leaves []cohort.Leaf, _ time.Time) (*cohort.Answers, error) {
	if c.let != nil {
		<-c.let
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, len(leaves))
	if c.fail != nil {
		if err := c.fail(leaves); err != nil {
			return nil, err
		}
	}
	a := &cohort.Answers{Identified: roaring64.New(), Took: make([]time.Duration, len(leaves))}
	for _, l := range leaves {
		var n uint64
		if _, err := fmt.Sscanf(l.Key, "A%d", &n); err != nil {
			a.Users = append(a.Users, l.Users)
			continue
		}
		a.Users = append(a.Users, roaring64.BitmapOf(n))
	}
	return a, nil
}

func leaves(ns ...int) (out []cohort.Leaf) {
	for _, n := range ns {
		out = append(out, cohort.Leaf{Key: fmt.Sprint("A", n)})
	}
	return out
}

// together asks for sets of leaves at the same time.
func together(t *testing.T, s *cohort.Shared, sets ...[]cohort.Leaf) []*cohort.Answers {
	t.Helper()
	out := make([]*cohort.Answers, len(sets))
	var wg sync.WaitGroup
	for i, l := range sets {
		wg.Go(func() {
			var err error
			if out[i], err = s.AnswerLeaves(t.Context(), 1, l, time.Time{}); err != nil {
				t.Errorf("set %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return out
}

func TestEvaluationsThatBeginTogetherAskForEachLeafOnce(t *testing.T) {
	c := &counting{}
	s := cohort.NewShared(c, 200*time.Millisecond, time.Now)
	kept := cohort.Leaf{Users: roaring64.BitmapOf(70)}
	other := cohort.Leaf{Users: roaring64.BitmapOf(80)}
	got := together(t, s, leaves(1, 2), leaves(2, 3), append(leaves(3), kept), append(leaves(1), other))
	require.Equal(t, []int{5}, c.asked, "three leaves that are shared and two that can't be, in one question")
	require.Equal(t, []uint64{2}, got[1].Users[0].ToArray())
	require.Equal(t, []uint64{3}, got[1].Users[1].ToArray())
	require.Equal(t, []uint64{70}, got[2].Users[1].ToArray())
	require.Equal(t, []uint64{80}, got[3].Users[1].ToArray())
	for _, a := range got {
		require.Equal(t, got[0].AsOf, a.AsOf, "all see one instant")
	}
	together(t, s, leaves(1))
	require.Equal(t, []int{5, 1}, c.asked, "a later evaluation asks anew")
}

func TestEvaluationsThatComeMeanwhileAreAskedTogetherAfterwards(t *testing.T) {
	c := &counting{let: make(chan struct{})}
	s := cohort.NewShared(c, time.Millisecond, time.Now)
	var wg sync.WaitGroup
	ask := func(n int) {
		wg.Go(func() {
			if _, err := s.AnswerLeaves(t.Context(), 1, leaves(n), time.Time{}); err != nil {
				t.Error(err)
			}
		})
	}
	ask(1)
	c.let <- struct{}{} // the first one is being answered when the others have come
	wg.Wait()
	ask(1)
	require.Eventually(t, func() bool { return s.Asking(1) }, time.Second, time.Millisecond)
	for n := range 10 {
		ask(n)
	}
	require.Eventually(t, func() bool { return s.Waiting(1) == 10 }, time.Second, time.Millisecond)
	c.let <- struct{}{}
	c.let <- struct{}{}
	wg.Wait()
	require.Equal(t, []int{1, 1, 10}, c.asked)
}

func TestOneRefusedConditionFailsItsOwnEvaluationOnly(t *testing.T) {
	c := &counting{fail: func(leaves []cohort.Leaf) error {
		for _, l := range leaves {
			if l.Key == "A13" {
				return fault.Field("leaf", "no")
			}
		}
		return nil
	}}
	s := cohort.NewShared(c, 100*time.Millisecond, time.Now)
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, l := range [][]cohort.Leaf{leaves(1), leaves(13)} {
		wg.Go(func() { _, errs[i] = s.AnswerLeaves(t.Context(), 1, l, time.Time{}) })
	}
	wg.Wait()
	require.NoError(t, errs[0])
	require.True(t, fault.Is(errs[1], fault.Invalid), "%v", errs[1])
}

func TestWhoeverLeavesDoesNotStopTheOthers(t *testing.T) {
	c := &counting{let: make(chan struct{})}
	s := cohort.NewShared(c, time.Millisecond, time.Now)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := s.AnswerLeaves(ctx, 1, leaves(1), time.Time{})
		left <- err
	}()
	require.Eventually(t, func() bool { return s.Asking(1) || s.Waiting(1) == 1 }, time.Second, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	close(c.let)
	together(t, s, leaves(2))
}
