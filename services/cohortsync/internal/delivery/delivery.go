package delivery

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// Policy says how long a batch is tried.
type Policy struct {
	// Tries is how often a call is made that ends in 5xx or without an answer;
	// Budget is the time from the first try after which no more are made.
	Tries  int
	Budget time.Duration
	// Backoff is the longest first wait; it doubles up to MaxBackoff. The wait
	// is drawn from 0 to that (full jitter).
	Backoff, MaxBackoff time.Duration
	// ThrottleBackoff and ThrottleBudget are the same for calls refused for
	// load, which are no tries.
	ThrottleBackoff, ThrottleBudget time.Duration
}

// DefaultPolicy is 5 tries in 60 s, and ten minutes of patience with a busy account.
func DefaultPolicy() Policy {
	return Policy{Tries: 5, Budget: time.Minute, Backoff: time.Second, MaxBackoff: 20 * time.Second, ThrottleBackoff: time.Second, ThrottleBudget: 10 * time.Minute}
}

// Reasons of failure. Refused records have the reason "code_N".
const (
	ReasonNoAnswer  = "no_answer"
	ReasonServer    = "destination_error"
	ReasonThrottled = "destination_busy"
	ReasonRefused   = "refused"
)

// State is what came of a record.
type State int

// States of a record.
const (
	// Untried: no call with the record was made that could have had an effect.
	Untried State = iota
	// Delivered: confirmed.
	Delivered
	// Rejected: the destination refused it for good.
	Rejected
	// Errored: the last try failed; it may have had its effect.
	Errored
	// Unanswered: the last try got no answer; it may have had its effect.
	Unanswered
)

// Outcome is a record's state and why.
type Outcome struct {
	State  State
	Reason string
}

// Report is what came of a batch.
type Report struct {
	// Outcome is that of all records not in Except.
	Outcome Outcome
	// Except are records by position.
	Except map[int]Outcome
	// Attempts counts calls that were tries; Throttled those refused for load.
	Attempts, Throttled int
	// Stopped means that trying ended because the context did; Cut that a call
	// in flight was ended for it, which is no try.
	Stopped, Cut bool
	// Fatal is the refusal that makes further calls pointless, if any.
	Fatal *clevertap.Error
	// Last is the last failure, if any.
	Last *clevertap.Error
}

// Send makes one call with the records at the given positions and returns the
// refused ones by their position in that list.
type Send func(ctx context.Context, positions []int) ([]channel.Refusal, error)

// Deliver tries a batch of n records until each has an outcome. Once stop ends
// no new call is made; a call in flight goes on until hard ends.
func Deliver(stop, hard context.Context, p Policy, l *Limiter, n int, send Send) Report {
	r := Report{Except: map[int]Outcome{}}
	left := make([]int, n)
	for i := range left {
		left[i] = i
	}
	start, backoff, throttle := time.Now(), p.Backoff, p.ThrottleBackoff
	amends := 0
	for {
		release, err := l.Acquire(stop)
		if err != nil {
			r.Stopped = true
			return r
		}
		refused, ce := attempt(stop, hard, r.Attempts+r.Throttled+1, left, send)
		release(ce != nil && ce.Class == clevertap.Throttled)
		if ce == nil {
			r.Attempts++
			var amended bool
			if left, amended = r.settle(left, refused, n); len(left) == 0 {
				return r
			}
			r.rest(left, Outcome{Errored, "code_" + strconv.Itoa(clevertap.CodeServerSide)}, n)
			if amended {
				// These are other records than those that were refused.
				amends++
				continue
			}
		} else {
			if hard.Err() != nil && ce.Status == 0 && ce.Class == clevertap.Transient {
				// We cut the call off ourselves: that says nothing of the destination.
				r.rest(left, Outcome{Unanswered, ReasonNoAnswer}, n)
				r.Cut, r.Stopped = true, true
				return r
			}
			r.Last = ce
			switch ce.Class {
			case clevertap.Throttled:
				r.Throttled++
				if time.Since(start) > p.ThrottleBudget {
					if r.Attempts == 0 {
						r.rest(left, Outcome{Untried, ReasonThrottled}, n)
					}
					return r
				}
				if !sleep(stop, rand.N(throttle+1)) {
					r.Stopped = true
					return r
				}
				throttle = min(2*throttle, time.Minute)
				continue
			case clevertap.Transient:
				r.Attempts++
				o := Outcome{Errored, ReasonServer}
				if ce.Status == 0 {
					o = Outcome{Unanswered, ReasonNoAnswer}
					if !ce.Unanswered {
						o.State = Untried // it never got there
					}
				}
				r.rest(left, o, n)
			default:
				r.Attempts++
				r.Fatal = ce
				r.rest(left, Outcome{Rejected, ReasonRefused}, n)
				return r
			}
		}
		if r.Attempts-amends >= p.Tries || time.Since(start) > p.Budget {
			return r
		}
		if !sleep(stop, rand.N(backoff+1)) {
			r.Stopped = true
			return r
		}
		backoff = min(2*backoff, p.MaxBackoff)
	}
}

// settle notes what a call that was answered said of the records in left, and
// returns those worth another try, and whether some of them were amended.
func (r *Report) settle(left []int, refused []channel.Refusal, n int) (again []int, amended bool) {
	bad := make(map[int]channel.Refusal, len(refused))
	for _, f := range refused {
		bad[f.Index] = f
	}
	if len(left) == n {
		r.Outcome = Outcome{State: Delivered}
	}
	for i, pos := range left {
		f, isBad := bad[i]
		switch {
		case isBad && (f.Retryable || f.Amended):
			again, amended = append(again, pos), amended || f.Amended
		case isBad:
			r.Except[pos] = Outcome{Rejected, "code_" + strconv.Itoa(f.Code)}
		case r.Outcome.State == Delivered:
			delete(r.Except, pos)
		default:
			r.Except[pos] = Outcome{State: Delivered}
		}
	}
	return again, amended
}

// rest notes the outcome of the records that are still open.
func (r *Report) rest(left []int, o Outcome, n int) {
	if o.State == Untried {
		// A later try that never got there doesn't undo what an earlier one may have done.
		if r.Attempts > 1 {
			return
		}
	}
	if len(left) == n {
		r.Outcome = o
		return
	}
	for _, pos := range left {
		r.Except[pos] = o
	}
}

func attempt(stop, hard context.Context, number int, positions []int, send Send) ([]channel.Refusal, *clevertap.Error) {
	// The call carries the batch's trace but ends only with hard.
	ctx := trace.ContextWithSpan(hard, trace.SpanFromContext(stop))
	ctx, sp := otel.Tracer("cohortbridge/cohortsync").Start(ctx, "delivery.attempt", trace.WithAttributes(
		attribute.Int("cohortbridge.attempt", number), attribute.Int("cohortbridge.records", len(positions))))
	defer sp.End()
	refused, err := send(ctx, positions)
	if err == nil {
		if len(refused) > 0 {
			sp.SetAttributes(attribute.Int("cohortbridge.records_refused", len(refused)), attribute.Int("clevertap.code", refused[0].Code))
		}
		return refused, nil
	}
	var ce *clevertap.Error
	if !errors.As(err, &ce) {
		ce = &clevertap.Error{Class: clevertap.Refused, Message: "the call could not be made"}
	}
	sp.SetAttributes(attribute.String("clevertap.class", ce.Class.String()), attribute.Int("clevertap.code", max(ce.Code, ce.Status)))
	sp.SetStatus(codes.Error, ce.Class.String())
	return nil, ce
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Retry makes a call that is one whole, such as publishing a list, by the same rules.
func Retry(stop, hard context.Context, p Policy, l *Limiter, call func(ctx context.Context) error) Report {
	return Deliver(stop, hard, p, l, 1, func(ctx context.Context, _ []int) ([]channel.Refusal, error) { return nil, call(ctx) })
}
