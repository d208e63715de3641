package cohort

import (
	"context"
	"slices"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Leaf is one condition of a definition; exactly one field is set.
type Leaf struct {
	// Behavior selects by events.
	Behavior *typev1.BehaviorLeaf
	// Property selects by profile.
	Property *typev1.PropertyLeaf
	// Sequence selects by the order of events.
	Sequence *typev1.SequenceLeaf
	// IDs selects by distinct ids.
	IDs *typev1.IdsLeaf
	// Users selects users that are known, and who they became by merges.
	Users *roaring64.Bitmap
	// Kind is what Users are, in plain English.
	Kind string
	// Key is the same for leaves that say the same; empty for one that is not to be
	// shared between evaluations.
	Key string
}

// Answers are the users of each leaf asked, and what they are based on. They may be
// shared: nobody changes them.
type Answers struct {
	// AsOf is the instant, when it is not the one asked for.
	AsOf time.Time
	// Users has one set a leaf, in the order asked.
	Users []*roaring64.Bitmap
	// Took is how long each leaf's query took.
	Took []time.Duration
	// Identified are the project's identified users.
	Identified *roaring64.Bitmap
	// ProfileSeq is the sequence of the newest profile change seen.
	ProfileSeq uint64
}

// Stored is a cohort as evaluations need it.
type Stored struct {
	// ID is its number in the project, 0 for one that is not stored.
	ID int64
	// Name is what people call it.
	Name string
	// Definition are its conditions.
	Definition *typev1.Expression
}

// Cohorts finds the cohorts that definitions refer to.
type Cohorts interface {
	// Stored reads a cohort; a NotFound fault when there is none.
	Stored(ctx context.Context, project, id int64) (Stored, error)
	// Members are the users that were uploaded to a cohort, or that a webhook keeps
	// in it; empty for a cohort that never got any.
	Members(ctx context.Context, project, id int64) (*roaring64.Bitmap, error)
}

// Query asks who is in a cohort.
type Query struct {
	// Answerer and Cohorts are asked.
	Answerer Answerer
	Cohorts  Cohorts
	// Project is the project's number.
	Project int64
	// Cohort is who is asked for, with a valid definition.
	Cohort Stored
	// AsOf is the instant.
	AsOf time.Time
}

// Answerer answers leaves, all at one instant. It fails rather than answer in part.
type Answerer interface {
	AnswerLeaves(ctx context.Context, project int64, leaves []Leaf, asOf time.Time) (*Answers, error)
}

// LeafStat is one leaf's part in an evaluation.
type LeafStat struct {
	// Summary is the leaf in plain English.
	Summary string
	// Users is how many it selects.
	Users int64
	// Took is how long its query took.
	Took time.Duration
}

// Result is who is in a cohort at one instant.
type Result struct {
	// AsOf is the instant.
	AsOf time.Time
	// Users are those the definition selects.
	Users *roaring64.Bitmap
	// Members are those of Users who are identified.
	Members *roaring64.Bitmap
	// Took is how long it all took.
	Took time.Duration
	// Leaves has one entry a distinct leaf, in the order of the definition.
	Leaves []LeafStat
	// ProfileSeq is the sequence of the newest profile change seen.
	ProfileSeq uint64
}

// Evaluate computes who a definition selects. Each distinct leaf is asked once, of
// the cohorts it refers to as well; and, or and not run on bitmaps, not against the
// identified users.
func Evaluate(ctx context.Context, q *Query) (_ *Result, err error) {
	start := time.Now()
	tracer := otel.Tracer("cohortbridge/cohortsync")
	ctx, sp := tracer.Start(ctx, "cohort.evaluate", trace.WithAttributes(attribute.Int64("cohortbridge.project", q.Project)))
	defer func() {
		if err != nil {
			sp.SetStatus(codes.Error, "evaluation failed")
		}
		sp.End()
	}()
	c := &collector{ctx: ctx, query: q, index: map[string]int{}, done: map[int64]combine{}}
	root, err := c.cohort(q.Cohort)
	if err != nil {
		return nil, err
	}
	ans, err := q.Answerer.AnswerLeaves(ctx, q.Project, c.leaves, q.AsOf)
	if err != nil {
		return nil, err
	}
	if len(ans.Users) != len(c.leaves) || len(ans.Took) != len(c.leaves) || ans.Identified == nil {
		return nil, incomplete(len(ans.Users), len(c.leaves))
	}
	asOf := q.AsOf
	if !ans.AsOf.IsZero() {
		asOf = ans.AsOf
	}
	res := &Result{AsOf: asOf, ProfileSeq: ans.ProfileSeq}
	for i, l := range c.leaves {
		res.Leaves = append(res.Leaves, LeafStat{Summary: RenderLeaf(l), Users: int64(ans.Users[i].GetCardinality()), Took: ans.Took[i]})
		// The leaves ran elsewhere; their spans show how long each query took.
		_, ls := tracer.Start(ctx, "cohort.leaf", trace.WithTimestamp(start), trace.WithAttributes(
			attribute.Int("cohortbridge.leaf.index", i), attribute.Int64("cohortbridge.leaf.users", res.Leaves[i].Users)))
		ls.End(trace.WithTimestamp(start.Add(ans.Took[i])))
	}
	if res.Users = root(ans); slices.Contains(ans.Users, res.Users) {
		res.Users = res.Users.Clone() // the answers may be others' too
	}
	res.Members = roaring64.And(res.Users, ans.Identified)
	res.Took = time.Since(start)
	sp.SetAttributes(attribute.Int64("cohortbridge.users", int64(res.Users.GetCardinality())),
		attribute.Int64("cohortbridge.identified_users", int64(res.Members.GetCardinality())), attribute.Int("cohortbridge.leaves", len(c.leaves)))
	return res, nil
}

func incomplete(got, want int) error {
	return fault.New(fault.Unavailable, "EVALUATION_INCOMPLETE", "the evaluation answered %d of %d conditions", got, want)
}
