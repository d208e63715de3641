package cohort

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Shared makes evaluations that begin together ask together: a leaf that several
// cohorts have is asked once, and all of them see one instant. Cohorts whose syncs
// are due at the same tick are such evaluations.
type Shared struct {
	answerer Answerer
	// gather is how long an evaluation waits for others to join.
	gather time.Duration
	now    func() time.Time

	mu      sync.Mutex
	open    map[int64]*batch        // by project: may be joined
	running map[int64]chan struct{} // by project: closed when the question under way is answered
}

// NewShared returns a Shared in front of an answerer.
func NewShared(a Answerer, gather time.Duration, now func() time.Time) *Shared {
	return &Shared{answerer: a, gather: gather, now: now, open: map[int64]*batch{}, running: map[int64]chan struct{}{}}
}

// batch is a question that several evaluations ask.
type batch struct {
	leaves []Leaf
	index  map[string]int
	joined int
	done   chan struct{}
	ans    *Answers
	err    error
}

// AnswerLeaves implements Answerer. The instant is the answer's AsOf, not before the
// call; asOf says nothing. One whose conditions are refused together with others'
// is asked again alone.
func (s *Shared) AnswerLeaves(ctx context.Context, project int64, leaves []Leaf, _ time.Time) (*Answers, error) {
	b, at, lead := s.join(project, leaves)
	if lead {
		// Others wait for it, whatever becomes of the one that began.
		go s.ask(context.WithoutCancel(ctx), project, b)
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b.err != nil {
		if b.joined > 1 && fault.Is(b.err, fault.Invalid) {
			return s.alone(ctx, project, leaves)
		}
		return nil, b.err
	}
	out := &Answers{AsOf: b.ans.AsOf, Identified: b.ans.Identified, ProfileSeq: b.ans.ProfileSeq}
	for _, i := range at {
		out.Users, out.Took = append(out.Users, b.ans.Users[i]), append(out.Took, b.ans.Took[i])
	}
	return out, nil
}

func (s *Shared) alone(ctx context.Context, project int64, leaves []Leaf) (*Answers, error) {
	asOf := s.now()
	ans, err := s.answerer.AnswerLeaves(ctx, project, leaves, asOf)
	if err == nil {
		ans.AsOf = asOf
	}
	return ans, err
}

// Asking says whether a question of a project is under way.
func (s *Shared) Asking(project int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[project] != nil
}

// Waiting is how many evaluations of a project wait to be asked together.
func (s *Shared) Waiting(project int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.open[project]; b != nil {
		return b.joined
	}
	return 0
}

// join adds leaves to the project's open batch, or opens one; at is where they are in it.
func (s *Shared) join(project int64, leaves []Leaf) (b *batch, at []int, lead bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b = s.open[project]
	if b == nil || len(b.leaves)+len(leaves) > MaxAllLeaves {
		b = &batch{index: map[string]int{}, done: make(chan struct{})}
		s.open[project], lead = b, true
	}
	b.joined++
	for n, l := range leaves {
		key := l.Key
		if key == "" { // not to be shared
			key = "\x00" + strconv.Itoa(b.joined) + ":" + strconv.Itoa(n)
		}
		i, ok := b.index[key]
		if !ok {
			i = len(b.leaves)
			b.index[key] = i
			b.leaves = append(b.leaves, l)
		}
		at = append(at, i)
	}
	return b, at, lead
}

// ask waits for others to join, and for the question before it, and asks.
func (s *Shared) ask(ctx context.Context, project int64, b *batch) {
	<-time.After(s.gather)
	ended := make(chan struct{})
	for {
		s.mu.Lock()
		before := s.running[project]
		if before == nil {
			s.running[project] = ended
			if s.open[project] == b {
				delete(s.open, project)
			}
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		<-before
	}
	asOf := s.now()
	if b.ans, b.err = s.answerer.AnswerLeaves(ctx, project, b.leaves, asOf); b.err == nil {
		b.ans.AsOf = asOf
		if len(b.ans.Users) != len(b.leaves) || len(b.ans.Took) != len(b.leaves) {
			b.err = incomplete(len(b.ans.Users), len(b.leaves))
		}
	}
	s.mu.Lock()
	delete(s.running, project)
	s.mu.Unlock()
	close(ended)
	close(b.done)
}
