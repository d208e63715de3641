package cohort

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

const (
	// MaxReferences is how deep cohorts may refer to cohorts.
	MaxReferences = 10
	// MaxAllLeaves is how many different leaves an evaluation may have, those of
	// the cohorts it refers to included.
	MaxAllLeaves = 1000
)

// combine is a compiled node. It never changes the answers' sets.
type combine func(*Answers) *roaring64.Bitmap

// collector compiles a definition and collects its leaves.
type collector struct {
	ctx    context.Context //nolint:containedctx // lives as long as one evaluation
	query  *Query
	leaves []Leaf
	index  map[string]int
	// path are the cohorts being compiled, the outermost first; done those that are.
	path []Stored
	done map[int64]combine
}

func invalid(format string, args ...any) error {
	return fault.New(fault.Invalid, "INVALID_DEFINITION", format, args...)
}

// cohort compiles a cohort; one that several refer to is compiled once.
func (c *collector) cohort(s Stored) (combine, error) {
	if op, ok := c.done[s.ID]; ok && s.ID != 0 {
		return op, nil
	}
	if slices.ContainsFunc(c.path, func(p Stored) bool { return p.ID == s.ID && s.ID != 0 }) {
		return nil, invalid("the definitions go round in a circle: %s", chain(append(c.path, s)))
	}
	if len(c.path) > MaxReferences {
		return nil, invalid("cohorts refer to cohorts more than %d levels deep: %s", MaxReferences, chain(c.path))
	}
	c.path = append(c.path, s)
	op, err := c.compile(s.Definition)
	c.path = c.path[:len(c.path)-1]
	if err == nil {
		c.done[s.ID] = op
	}
	return op, err
}

// chain names cohorts that refer to each other.
func chain(list []Stored) string {
	names := make([]string, len(list))
	for i, s := range list {
		switch names[i] = s.Name; {
		case s.ID == 0:
			names[i] = "this one"
		case s.Name == "":
			names[i] = "cohort " + strconv.FormatInt(s.ID, 10)
		}
	}
	return strings.Join(names, " → ")
}

// leaf makes a leaf's answer known under a key.
func (c *collector) leaf(key string, l Leaf) (combine, error) {
	i, ok := c.index[key]
	if !ok {
		if i = len(c.leaves); i == MaxAllLeaves {
			return nil, invalid("with the cohorts it refers to, the definition has more than %d different conditions", MaxAllLeaves)
		}
		c.index[key] = i
		if l.Users == nil { // those that are kept may be others by the next evaluation
			l.Key = key
		}
		c.leaves = append(c.leaves, l)
	}
	return func(a *Answers) *roaring64.Bitmap { return a.Users[i] }, nil
}

// kept is the set of users that is kept for the cohort being compiled.
func (c *collector) kept(kind string) (combine, error) {
	self := c.path[len(c.path)-1]
	if self.ID == 0 {
		return nil, invalid("the definition stands for users that are kept for a stored cohort; save it first")
	}
	users, err := c.query.Cohorts.Members(c.ctx, c.query.Project, self.ID)
	if err != nil {
		return nil, err
	}
	return c.leaf("kept:"+strconv.FormatInt(self.ID, 10), Leaf{Users: users, Kind: kind})
}

func (c *collector) compile(e *typev1.Expression) (combine, error) {
	key := func() string { return string(Canonical(e)) }
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
		return c.leaf(key(), Leaf{Behavior: n.Behavior})
	case *typev1.Expression_Property:
		return c.leaf(key(), Leaf{Property: n.Property})
	case *typev1.Expression_Sequence:
		return c.leaf(key(), Leaf{Sequence: n.Sequence})
	case *typev1.Expression_InCohort:
		return c.inCohorts(n.InCohort)
	case *typev1.Expression_Ids:
		if len(n.Ids.GetDistinctIds()) == 0 {
			return c.kept("uploaded ids")
		}
		return c.leaf(key(), Leaf{IDs: n.Ids})
	case *typev1.Expression_External:
		return c.kept("users kept by a webhook")
	}
	return nil, invalid("the definition has a node without a condition")
}

func (c *collector) inCohorts(l *typev1.CohortLeaf) (combine, error) {
	var ops []combine
	for _, name := range l.GetCohorts() {
		id, err := referred(c.query.Project, name)
		if err != nil {
			return nil, err
		}
		s, err := c.query.Cohorts.Stored(c.ctx, c.query.Project, id)
		if err != nil {
			return nil, err
		}
		op, err := c.cohort(s)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	if len(ops) == 0 {
		return nil, invalid("the definition refers to no cohort")
	}
	return func(a *Answers) *roaring64.Bitmap { return fold(ops, a, (*roaring64.Bitmap).Or) }, nil
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
		return nil, invalid("the definition has a list without operands")
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
