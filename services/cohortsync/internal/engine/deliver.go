package engine

import (
	"errors"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// breakAfter is how many batches in a row may fail before the destination is
// taken for down and the rest is left to a later run.
const breakAfter = 3

// deliver sends the plan's batches that have no result yet, in parallel up to
// the account's limit, removals first where the plan says so.
func (x *execution) deliver() error {
	if x.run.State != store.Delivering || x.interrupted() {
		return nil // taken up again after the last batch, or stopped before the first
	}
	heads, err := x.store.BatchHeads(x.write(), x.run.ID)
	if err != nil {
		return err
	}
	traits := x.dest.Channel.Traits()
	var first, second []store.BatchHead
	for _, h := range heads {
		switch {
		case h.Done || h.Op == channel.Remove && !traits.RemovesByCall:
		case h.Op == channel.Remove && x.run.Plan.RemovesFirst:
			first = append(first, h)
		default:
			second = append(second, h)
		}
	}
	for _, phase := range [][]store.BatchHead{first, second} {
		if err := x.deliverAll(phase, traits); err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) limiter(t channel.Traits) *delivery.Limiter {
	n := t.Concurrency
	if x.cfg.Concurrency > 0 {
		n = min(n, x.cfg.Concurrency)
	}
	return x.limits.For(x.dest.Account+"\x00"+t.Group, n)
}

func (x *execution) deliverAll(heads []store.BatchHead, traits channel.Traits) error {
	if len(heads) == 0 || x.interrupted() {
		return nil
	}
	limiter := x.limiter(traits)
	work, done := make(chan store.BatchHead), make(chan settled)
	var workers sync.WaitGroup
	// Two more than the limit, so that the next batch is read while calls are in flight.
	for range min(len(heads), traits.Concurrency+2) {
		workers.Go(func() {
			for h := range work {
				s, err := x.deliverOne(h, limiter)
				if err != nil {
					s = settled{err: err}
				}
				done <- s
			}
		})
	}
	go func() {
		defer func() {
			close(work)
			workers.Wait()
			close(done)
		}()
		for _, h := range heads {
			select {
			case work <- h:
			case <-x.stop.Done():
				return
			}
		}
	}()
	return x.settleAll(done)
}

// settled is a batch with its result; without one it stays as it is.
type settled struct {
	result *store.Result
	totals store.Totals
	failed bool
	report delivery.Report
	// left says that it was begun and is to be repeated by the next process.
	left bool
	err  error
}

// settleAll records results as they come, several in one transaction when they
// come fast, and stops the run when going on makes no sense.
func (x *execution) settleAll(done <-chan settled) (err error) {
	failures := 0
	for s := range done {
		group := []settled{s}
		for more := true; more && len(group) < 64; {
			select {
			case n, ok := <-done:
				if more = ok; ok {
					group = append(group, n)
				}
			default:
				more = false
			}
		}
		var results []store.Result
		var totals store.Totals
		for _, g := range group {
			if g.err != nil {
				err = errors.Join(err, g.err)
				x.halt(g.err)
				continue
			}
			totals.Add(g.totals)
			x.left = x.left || g.left
			if g.result != nil {
				results = append(results, *g.result)
			}
			if g.report.Last != nil {
				x.last = g.report.Last
			}
			switch {
			case g.report.Fatal != nil:
				x.fatal = g.report.Fatal
				x.halt(errRefused)
			case g.failed:
				if failures++; failures >= breakAfter {
					x.halt(errBroken)
				}
			case g.result != nil:
				failures = 0
			}
		}
		if err != nil {
			continue // drain
		}
		var t store.Totals
		if t, err = x.store.Confirm(x.write(), x.lease, results, totals); err != nil {
			x.halt(err)
			continue
		}
		x.run.Totals = t
		x.Hub.Notify(x.run.ID)
	}
	return err
}

// session names one operation of one run, the same each time it is sent.
func (x *execution) session(op channel.Op) string {
	return fmt.Sprintf("cb-%d-%d-%s", x.run.SyncID, x.run.ID, opNames[op])
}

var opNames = map[channel.Op]string{channel.Add: "add", channel.Remove: "remove", channel.Update: "update"}

func (x *execution) deliverOne(h store.BatchHead, limiter *delivery.Limiter) (settled, error) {
	ctx, sp := tracer.Start(x.stop, "delivery.batch")
	defer sp.End()
	sp.SetAttributes(attribute.Int("cohortbridge.batch.index", h.Index), attribute.String("cohortbridge.batch.operation", opNames[h.Op]),
		attribute.Int("cohortbridge.batch.users", h.Users), attribute.String("cohortbridge.channel", x.dest.Channel.Name()))
	b, err := x.store.Batch(ctx, x.run.ID, h.Index)
	if err != nil {
		if x.interrupted() {
			return settled{}, nil
		}
		return settled{}, err
	}
	out := &sending{execution: x, batch: b, warned: map[int]byte{}}
	report := out.deliver(ctx, limiter)
	s := settle(b, report, out.warned)
	if report.Stopped && x.drain.Err() != nil {
		// The process is stopping; the batch is repeated by the next.
		s = settled{report: report, totals: store.Totals{Calls: s.totals.Calls}, left: report.Cut || report.Attempts > 0}
	}
	sp.SetAttributes(attribute.Int("cohortbridge.batch.attempts", report.Attempts), attribute.Int("cohortbridge.batch.throttled", report.Throttled))
	if s.failed || report.Fatal != nil {
		sp.SetStatus(codes.Error, "not delivered")
	}
	return s, nil
}

// settle turns a report into the batch's result and what it adds to the totals.
// warned are flags that users got on the way, by position.
func settle(b store.Batch, r delivery.Report, warned map[int]byte) settled {
	s := settled{report: r, totals: store.Totals{Calls: int64(r.Attempts + r.Throttled)}}
	res := store.Result{Index: b.Index, Attempts: r.Attempts, Throttled: r.Throttled}
	base := outcomeOf(r.Outcome)
	res.Outcome, res.Reason = base.Outcome, base.Reason
	if r.Outcome.State == delivery.Untried {
		if r.Stopped || r.Fatal != nil {
			return s // not tried: pending
		}
		res.Outcome, res.Reason = store.FailedOne, r.Outcome.Reason
		if res.Reason == "" {
			res.Reason = delivery.ReasonNoAnswer
		}
	}
	for pos, o := range r.Except {
		if res.Except == nil {
			res.Except = map[int]store.Exception{}
		}
		res.Except[pos] = outcomeOf(o)
	}
	for pos, flags := range warned {
		if o, reason := res.Of(pos); o == store.Sent {
			if res.Except == nil {
				res.Except = map[int]store.Exception{}
			}
			res.Except[pos] = store.Exception{Outcome: o, Reason: reason, Flags: flags}
		}
	}
	s.result = &res
	s.failed = res.Outcome != store.Sent
	t := &s.totals
	t.BatchesDone = 1
	t.Warnings, t.FailedBy = map[string]int64{}, map[string]int64{}
	for i := range b.Entries {
		o, reason := res.Of(i)
		moved := b.Flags[i]&store.FlagMoved != 0
		switch {
		case b.Op == channel.Remove && moved:
		case b.Op == channel.Remove && o == store.Sent:
			t.Removed++
			t.RemovePending--
		case b.Op == channel.Remove:
			t.RemoveFailed++
			t.RemovePending--
		case o == store.Sent:
			t.Sent++
			t.Pending--
			if b.Op == channel.Update || moved {
				t.Updated++
			} else {
				t.Added++
			}
			for _, w := range Warnings(b.Flags[i] | res.FlagsOf(i)) {
				t.Warnings[w]++
			}
		default:
			t.Failed++
			t.Pending--
			t.FailedBy[reason]++
		}
	}
	return s
}

// Warnings are the kinds that a user's flags stand for.
func Warnings(flags byte) (out []string) {
	for _, w := range []string{channel.WarnEmail, channel.WarnPhone, channel.WarnValue} {
		if flags&warningFlags[w] != 0 {
			out = append(out, w)
		}
	}
	return out
}

func outcomeOf(o delivery.Outcome) store.Exception {
	switch o.State {
	case delivery.Delivered:
		return store.Exception{Outcome: store.Sent}
	case delivery.Unanswered:
		return store.Exception{Outcome: store.Unknown, Reason: o.Reason}
	default:
		return store.Exception{Outcome: store.FailedOne, Reason: o.Reason}
	}
}
