package engine

import (
	"context"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/delivery"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// sending gets one batch through.
type sending struct {
	*execution
	batch store.Batch
	// warned are the flags of users of whom a field was left out, by position.
	warned map[int]byte
}

func (s *sending) deliver(ctx context.Context, limiter *delivery.Limiter) delivery.Report {
	all := make([]int, len(s.batch.Entries))
	for i := range all {
		all[i] = i
	}
	prep, prepares := s.dest.Channel.(channel.Preparer)
	if !prepares || s.batch.Op == channel.Remove {
		return s.send(ctx, limiter, all)
	}
	// Where profiles are written apart, that is done first: who is not taken there
	// does not come into the segment.
	written := s.try(ctx, s.limiter(prep.PrepareTraits()), all, func(ctx context.Context, at []int) ([]channel.Refusal, error) {
		return prep.Prepare(ctx, s.records(at))
	})
	var in []int
	for _, pos := range all {
		if of(written, pos).State == delivery.Delivered {
			in = append(in, pos)
		}
	}
	switch {
	case s.batch.Op == channel.Update || len(in) == 0:
		return written
	case written.Stopped || written.Fatal != nil:
		// Profiles are there and nobody is in the segment.
		written.Outcome, written.Except = delivery.Outcome{}, nil
		return written
	}
	return join(written, s.send(ctx, limiter, in), all, in)
}

// send makes the batch's own call for the users at some positions.
func (s *sending) send(ctx context.Context, limiter *delivery.Limiter, in []int) delivery.Report {
	b := s.batch
	msg := channel.Batch{Op: b.Op, Replace: s.run.Full && b.Op == channel.Add, SessionID: s.session(b.Op), Page: b.Page, Pages: s.run.Plan.Pages[b.Op]}
	return s.try(ctx, limiter, in, func(ctx context.Context, at []int) ([]channel.Refusal, error) {
		m := msg
		m.Records = s.records(at)
		for _, pos := range at {
			m.Identifiers = append(m.Identifiers, b.Entries[pos].Identifier)
		}
		return s.dest.Channel.Send(ctx, s.segment, m)
	})
}

func (s *sending) records(at []int) [][]byte {
	if len(s.batch.Records) == 0 {
		return nil
	}
	out := make([][]byte, 0, len(at))
	for _, pos := range at {
		out = append(out, s.batch.Records[pos])
	}
	return out
}

// try makes a call for the users at some positions until each has an outcome. A
// record that is refused for a field is sent again without it: a bad address must
// not cost a user.
func (s *sending) try(ctx context.Context, limiter *delivery.Limiter, in []int, call func(ctx context.Context, at []int) ([]channel.Refusal, error)) delivery.Report {
	amender, _ := s.dest.Channel.(channel.Amender)
	// A batch without users is one call all the same.
	return delivery.Deliver(ctx, s.hard, s.cfg.Policy, limiter, max(1, len(in)), func(ctx context.Context, left []int) ([]channel.Refusal, error) {
		var at []int
		for _, i := range left {
			if i < len(in) {
				at = append(at, in[i])
			}
		}
		refused, err := call(ctx, at)
		if err != nil || amender == nil {
			return refused, err
		}
		for i, r := range refused {
			pos := at[r.Index]
			if rec, warning := amender.Amend(s.batch.Records[pos], r.Code); rec != nil {
				s.batch.Records[pos], refused[i].Amended = rec, true
				s.warned[pos] |= warningFlags[warning]
			}
		}
		return refused, nil
	})
}

// of is the outcome of a record by its position.
func of(r delivery.Report, pos int) delivery.Outcome {
	if o, ok := r.Except[pos]; ok {
		return o
	}
	return r.Outcome
}

// join is the report of two calls after each other: the second, for the users of
// in, says what came of them; the first of the others of all.
func join(first, second delivery.Report, all, in []int) delivery.Report {
	r := second
	r.Attempts, r.Throttled = first.Attempts+second.Attempts, first.Throttled+second.Throttled
	if r.Last == nil {
		r.Last = first.Last
	}
	r.Except = map[int]delivery.Outcome{}
	next := 0
	for _, pos := range all {
		o := of(first, pos)
		if next < len(in) && in[next] == pos {
			o = of(second, next)
			next++
		}
		if o != r.Outcome {
			r.Except[pos] = o
		}
	}
	return r
}
