package cohort

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// referred is the number of a cohort by its name; one of another project is refused.
func referred(project int64, name string) (int64, error) {
	ids, err := resource.IDs("in_cohort.cohorts", name, "projects", "cohorts")
	if err != nil {
		return 0, err
	}
	if ids[0] != project {
		return 0, fault.Field("in_cohort.cohorts", "%q is not of this project", name)
	}
	return ids[1], nil
}

// walk calls fn for each node of a definition with its path.
func walk(path string, e *typev1.Expression, fn func(path string, e *typev1.Expression)) {
	fn(path, e)
	list := func(name string, l *typev1.ExpressionList) {
		for i, o := range l.GetOperands() {
			walk(fmt.Sprintf("%s.%s[%d]", path, name, i), o, fn)
		}
	}
	switch n := e.GetNode().(type) {
	case *typev1.Expression_AllOf:
		list("all_of", n.AllOf)
	case *typev1.Expression_AnyOf:
		list("any_of", n.AnyOf)
	case *typev1.Expression_Not:
		walk(path+".not", n.Not, fn)
	}
}

// References are the names of the cohorts a definition refers to itself, each once.
func References(e *typev1.Expression) []string {
	var out []string
	walk("", e, func(_ string, e *typev1.Expression) {
		for _, name := range e.GetInCohort().GetCohorts() {
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	})
	return out
}

// CheckReferences checks what a valid definition refers to: the cohorts exist, are
// of the project, and do not lead back to it. self is the cohort that is to have it,
// ID 0 for a new one; field is where it stands, for the paths of the violations.
func CheckReferences(ctx context.Context, cohorts Cohorts, project int64, field string, self Stored) error {
	v := &validator{}
	q := &Query{Cohorts: definitionsOnly{cohorts}, Project: project}
	c := &collector{ctx: ctx, query: q, index: map[string]int{}, done: map[int64]combine{}, path: []Stored{self}}
	var failed error
	walk(field, self.Definition, func(path string, e *typev1.Expression) {
		for i, name := range e.GetInCohort().GetCohorts() {
			at := fmt.Sprintf("%s.in_cohort.cohorts[%d]", path, i)
			_, err := c.inCohorts(&typev1.CohortLeaf{Cohorts: []string{name}})
			switch {
			case err == nil:
			case fault.Is(err, fault.NotFound):
				v.add(at, "there is no %s", name)
			case fault.Is(err, fault.Invalid):
				v.add(at, "%s", strings.TrimPrefix(fault.As(err).Public, "in_cohort.cohorts: "))
			default:
				failed = err
			}
		}
	})
	if failed != nil {
		return failed
	}
	return v.err()
}

// definitionsOnly has no members: what is checked are definitions.
type definitionsOnly struct{ Cohorts }

// Members implements Cohorts.
func (definitionsOnly) Members(context.Context, int64, int64) (*roaring64.Bitmap, error) {
	return roaring64.New(), nil
}
