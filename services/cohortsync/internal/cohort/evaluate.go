package cohort

import (
	"context"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Leaf is one condition of a definition; exactly one field is set.
type Leaf struct {
	// Behavior selects by events.
	Behavior *typev1.BehaviorLeaf
	// Property selects by profile.
	Property *typev1.PropertyLeaf
}

// Answers are the users of each leaf asked, and what they are based on.
type Answers struct {
	// Users has one set a leaf, in the order asked.
	Users []*roaring64.Bitmap
	// Took is how long each leaf's query took.
	Took []time.Duration
	// Identified are the project's identified users.
	Identified *roaring64.Bitmap
	// ProfileSeq is the sequence of the newest profile change seen.
	ProfileSeq uint64
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

// Evaluate computes who a valid definition selects. Each distinct leaf is asked
// once; and, or and not run on bitmaps, not against the identified users.
func Evaluate(ctx context.Context, a Answerer, project int64, e *typev1.Expression, asOf time.Time) (_ *Result, err error) {
	start := time.Now()
	tracer := otel.Tracer("cohortbridge/cohortsync")
	ctx, sp := tracer.Start(ctx, "cohort.evaluate", trace.WithAttributes(attribute.Int64("cohortbridge.project", project)))
	defer func() {
		if err != nil {
			sp.SetStatus(codes.Error, "evaluation failed")
		}
		sp.End()
	}()
	c := &collector{index: map[string]int{}}
	root, err := c.compile(e)
	if err != nil {
		return nil, err
	}
	ans, err := a.AnswerLeaves(ctx, project, c.leaves, asOf)
	if err != nil {
		return nil, err
	}
	if len(ans.Users) != len(c.leaves) || len(ans.Took) != len(c.leaves) || ans.Identified == nil {
		return nil, fault.New(fault.Unavailable, "EVALUATION_INCOMPLETE", "the evaluation answered %d of %d conditions", len(ans.Users), len(c.leaves))
	}
	res := &Result{AsOf: asOf, ProfileSeq: ans.ProfileSeq}
	for i, l := range c.leaves {
		res.Leaves = append(res.Leaves, LeafStat{Summary: RenderLeaf(l), Users: int64(ans.Users[i].GetCardinality()), Took: ans.Took[i]})
		// The leaves ran elsewhere; their spans show how long each query took.
		_, ls := tracer.Start(ctx, "cohort.leaf", trace.WithTimestamp(start), trace.WithAttributes(
			attribute.Int("cohortbridge.leaf.index", i), attribute.Int64("cohortbridge.leaf.users", res.Leaves[i].Users)))
		ls.End(trace.WithTimestamp(start.Add(ans.Took[i])))
	}
	res.Users = root(ans)
	res.Members = roaring64.And(res.Users, ans.Identified)
	res.Took = time.Since(start)
	sp.SetAttributes(attribute.Int64("cohortbridge.users", int64(res.Users.GetCardinality())),
		attribute.Int64("cohortbridge.identified_users", int64(res.Members.GetCardinality())), attribute.Int("cohortbridge.leaves", len(c.leaves)))
	return res, nil
}

// combine is a compiled node. It never changes the answers' sets.
type combine func(*Answers) *roaring64.Bitmap

type collector struct {
	leaves []Leaf
	index  map[string]int
}

func (c *collector) leaf(l Leaf) (combine, error) {
	var m proto.Message = l.Property
	kind := "p"
	if l.Behavior != nil {
		m, kind = l.Behavior, "b"
	}
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	i, ok := c.index[kind+string(key)]
	if !ok {
		i = len(c.leaves)
		c.index[kind+string(key)] = i
		c.leaves = append(c.leaves, l)
	}
	return func(a *Answers) *roaring64.Bitmap { return a.Users[i] }, nil
}

func (c *collector) compile(e *typev1.Expression) (combine, error) {
	switch n := e.GetNode().(type) {
	case *typev1.Expression_AllOf:
		ops, err := c.all(n.AllOf)
		return func(a *Answers) *roaring64.Bitmap { return fold(ops, a, (*roaring64.Bitmap).And) }, err
	case *typev1.Expression_AnyOf:
		ops, err := c.all(n.AnyOf)
		return func(a *Answers) *roaring64.Bitmap { return fold(ops, a, (*roaring64.Bitmap).Or) }, err
	case *typev1.Expression_Not:
		op, err := c.compile(n.Not)
		return func(a *Answers) *roaring64.Bitmap { return roaring64.AndNot(a.Identified, op(a)) }, err
	case *typev1.Expression_Behavior:
		return c.leaf(Leaf{Behavior: n.Behavior})
	case *typev1.Expression_Property:
		return c.leaf(Leaf{Property: n.Property})
	}
	return nil, fault.New(fault.Invalid, "INVALID_DEFINITION", "the definition has a node without a condition")
}

func (c *collector) all(l *typev1.ExpressionList) ([]combine, error) {
	ops := make([]combine, 0, len(l.GetOperands()))
	for _, o := range l.GetOperands() {
		op, err := c.compile(o)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	if len(ops) == 0 {
		return nil, fault.New(fault.Invalid, "INVALID_DEFINITION", "the definition has a list without operands")
	}
	return ops, nil
}

func fold(ops []combine, a *Answers, with func(x, y *roaring64.Bitmap)) *roaring64.Bitmap {
	out := ops[0](a).Clone()
	for _, op := range ops[1:] {
		with(out, op(a))
	}
	return out
}
