package delivery_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var fast = delivery.Policy{Tries: 5, Budget: 10 * time.Second, Backoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond, ThrottleBackoff: time.Millisecond, ThrottleBudget: 10 * time.Second}

var (
	busy   = &clevertap.Error{Class: clevertap.Throttled, Status: 429}
	broken = &clevertap.Error{Class: clevertap.Transient, Status: 503}
	silent = &clevertap.Error{Class: clevertap.Transient, Unanswered: true}
	denied = &clevertap.Error{Class: clevertap.Refused, Status: 401}
)

// play makes one call after another end as said; the last one again and again.
func play(errs ...error) (delivery.Send, *int) {
	n := 0
	return func(context.Context, []int) ([]channel.Refusal, error) {
		err := errs[min(n, len(errs)-1)]
		n++
		return nil, err
	}, &n
}

func deliver(t *testing.T, send delivery.Send) delivery.Report {
	return delivery.Deliver(t.Context(), t.Context(), fast, delivery.NewLimiter(15), 3, send)
}

func TestTransientFailuresAreTriedFiveTimes(t *testing.T) {
	send, n := play(broken)
	r := deliver(t, send)
	require.Equal(t, 5, *n)
	require.Equal(t, delivery.Outcome{State: delivery.Errored, Reason: delivery.ReasonServer}, r.Outcome)
	send, n = play(broken, silent, nil)
	r = deliver(t, send)
	require.Equal(t, 3, *n)
	require.Equal(t, delivery.Delivered, r.Outcome.State)
	send, _ = play(silent)
	require.Equal(t, delivery.Unanswered, deliver(t, send).Outcome.State)
}

func TestRefusalsForLoadAreNoTries(t *testing.T) {
	send, n := play(busy, busy, busy, busy, busy, busy, busy, nil)
	r := deliver(t, send)
	require.Equal(t, 8, *n)
	require.Equal(t, 1, r.Attempts)
	require.Equal(t, 7, r.Throttled)
	require.Equal(t, delivery.Delivered, r.Outcome.State)
}

func TestRefusalOfCredentialsIsNotRepeated(t *testing.T) {
	send, n := play(denied)
	r := deliver(t, send)
	require.Equal(t, 1, *n)
	require.Equal(t, denied, r.Fatal)
}

func TestOnlyRetryableRecordsAreSentAgain(t *testing.T) {
	var asked [][]int
	r := deliver(t, func(_ context.Context, at []int) ([]channel.Refusal, error) {
		asked = append(asked, at)
		switch len(asked) {
		case 1:
			return []channel.Refusal{{Index: 0, Code: 523}, {Index: 2, Code: 555, Retryable: true}}, nil
		case 2:
			return nil, broken
		}
		return nil, nil
	})
	require.Equal(t, [][]int{{0, 1, 2}, {2}, {2}}, asked)
	require.Equal(t, delivery.Delivered, r.Outcome.State)
	require.Equal(t, map[int]delivery.Outcome{0: {State: delivery.Rejected, Reason: "code_523"}}, r.Except)
}

// A record that was changed is another one: sending it is no second try, and is
// not waited for.
func TestAmendedRecordsAreSentAgainAtOnceAndAreNoTry(t *testing.T) {
	p := fast
	p.Tries, p.Backoff = 1, time.Hour
	var asked [][]int
	r := delivery.Deliver(t.Context(), t.Context(), p, delivery.NewLimiter(1), 3, func(_ context.Context, at []int) ([]channel.Refusal, error) {
		asked = append(asked, at)
		switch len(asked) {
		case 1:
			return []channel.Refusal{{Index: 0, Code: 523}, {Index: 2, Code: 515, Amended: true}}, nil
		case 2:
			return []channel.Refusal{{Index: 0, Code: 516, Amended: true}}, nil
		}
		return nil, nil
	})
	require.Equal(t, [][]int{{0, 1, 2}, {2}, {2}}, asked)
	require.Equal(t, 3, r.Attempts, "each is a call")
	require.Equal(t, delivery.Delivered, r.Outcome.State)
	require.Equal(t, map[int]delivery.Outcome{0: {State: delivery.Rejected, Reason: "code_523"}}, r.Except)
}

func TestStoppedDeliveryBeginsNoCallAndLetsTheOneInFlightFinish(t *testing.T) {
	stop, cancel := context.WithCancel(t.Context())
	n := 0
	r := delivery.Deliver(stop, t.Context(), fast, delivery.NewLimiter(1), 1, func(ctx context.Context, _ []int) ([]channel.Refusal, error) {
		n++
		cancel()
		require.NoError(t, ctx.Err())
		return nil, broken
	})
	require.Equal(t, 1, n)
	require.True(t, r.Stopped)
	r = delivery.Deliver(stop, t.Context(), fast, delivery.NewLimiter(1), 1, func(context.Context, []int) ([]channel.Refusal, error) {
		return nil, errors.New("must not be called")
	})
	require.True(t, r.Stopped)
	require.Zero(t, r.Attempts)
}

func TestLimiterFallsOnRefusalRisesOnSuccessAndNeverLetsMoreIn(t *testing.T) {
	l := delivery.NewLimiter(15)
	var rel []func(bool)
	for range 15 {
		f, err := l.Acquire(t.Context())
		require.NoError(t, err)
		rel = append(rel, f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := l.Acquire(ctx)
	require.Error(t, err, "the sixteenth waits")
	for _, f := range rel {
		f(true)
	}
	require.Equal(t, 10, l.Limit(), "fifteen refusals at once are one reduction by 30 %%")
	for range 200 {
		f, err := l.Acquire(t.Context())
		require.NoError(t, err)
		f(false)
	}
	require.Equal(t, 15, l.Limit())
	var mu sync.Mutex
	in, peak := 0, 0
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			f, err := l.Acquire(context.Background())
			if err != nil {
				return
			}
			mu.Lock()
			in++
			peak = max(peak, in)
			mu.Unlock()
			time.Sleep(time.Millisecond) // hold the slot
			mu.Lock()
			in--
			mu.Unlock()
			f(i%5 == 0)
		})
	}
	wg.Wait()
	require.LessOrEqual(t, peak, 15)
	require.GreaterOrEqual(t, l.Limit(), 1)
}
