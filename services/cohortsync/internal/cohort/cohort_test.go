package cohort_test

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
)

func parse(t *testing.T, js string) *typev1.Expression {
	t.Helper()
	e := &typev1.Expression{}
	require.NoError(t, protojson.Unmarshal([]byte(js), e))
	return e
}

const demo = `{"allOf":{"operands":[
	{"behavior":{"events":["Add To Cart"],"threshold":3,"window":{"last":{"amount":30,"unit":"UNIT_DAY"}}}},
	{"not":{"behavior":{"events":["Purchase"],"window":{"last":{"amount":30,"unit":"UNIT_DAY"}}}}},
	{"property":{"filter":{"property":"country","type":"VALUE_TYPE_STRING","operator":"PROPERTY_OPERATOR_EQUALS","operands":[{"stringValue":"IN"},{"stringValue":"US"}]}}}]}}`

func TestRenderingIsPlainEnglish(t *testing.T) {
	for js, want := range map[string]string{
		demo: "did Add To Cart ≥ 3 times in the last 30 days and did not do Purchase in the last 30 days and country is IN or US",
		`{"behavior":{"events":["A","B"],"comparator":"COMPARATOR_EQUAL","threshold":1}}`:                                                                                                                    "did A or B = 1 time",
		`{"behavior":{"events":["Pay"],"measure":"MEASURE_SUM","measureProperty":"amount","comparator":"COMPARATOR_BETWEEN","threshold":10,"thresholdHigh":20.5,"window":{"since":"2026-01-02T00:00:00Z"}}}`: "did Pay with sum of amount between 10 and 20.5 since 2026-01-02",
		`{"behavior":{"events":["Open"],"measure":"MEASURE_DISTINCT_DAYS","threshold":5,"window":{"last":{"amount":1,"unit":"UNIT_WEEK"}}}}`:                                                                 "did Open on ≥ 5 days in the last week",
		`{"anyOf":{"operands":[{"property":{"filter":{"property":"vip","type":"VALUE_TYPE_BOOL","operator":"PROPERTY_OPERATOR_EQUALS","operands":[{"boolValue":true}]}}},
		  {"allOf":{"operands":[{"behavior":{"events":["X"]}},{"property":{"filter":{"property":"seen","type":"VALUE_TYPE_DATETIME","operator":"PROPERTY_OPERATOR_WITHIN_LAST","within":"172800s"}}}]}}]}}`: "vip is true or (did X and seen is within the last 2 days)",
	} {
		e := parse(t, js)
		require.NoError(t, cohort.Validate("d", e))
		require.Equal(t, want, cohort.Render(e))
	}
}

func TestEachFaultIsNamedByItsPath(t *testing.T) {
	for js, want := range map[string]string{
		`{}`:           "d",
		`{"allOf":{}}`: "d.all_of",
		`{"anyOf":{"operands":[{"behavior":{"events":["x"]}},{"not":{}}]}}`:                                                                         "d.any_of[1].not",
		`{"behavior":{"events":[" "]}}`:                                                                                                             "d.behavior.events[0]",
		`{"behavior":{"events":["x"],"measure":"MEASURE_SUM"}}`:                                                                                     "d.behavior.measure_property",
		`{"behavior":{"events":["x"],"comparator":"COMPARATOR_BETWEEN","threshold":1}}`:                                                             "d.behavior.threshold_high",
		`{"behavior":{"events":["x"],"window":{"last":{"amount":0,"unit":"UNIT_DAY"}}}}`:                                                            "d.behavior.window.last.amount",
		`{"behavior":{"events":["x"],"window":{"between":{"start":"2026-01-02T00:00:00Z","end":"2026-01-01T00:00:00Z"}}}}`:                          "d.behavior.window.between.end",
		`{"behavior":{"events":["x"],"filters":[{"property":"p","type":"VALUE_TYPE_BOOL","operator":"PROPERTY_OPERATOR_CONTAINS"}]}}`:               "d.behavior.filters[0].operator",
		`{"property":{"filter":{"property":"p","type":99,"operator":"PROPERTY_OPERATOR_EQUALS"}}}`:                                                  "d.property.filter.type",
		`{"property":{"filter":{"property":"p","type":"VALUE_TYPE_NUMBER","operator":"PROPERTY_OPERATOR_BETWEEN","operands":[{"numberValue":1}]}}}`: "d.property.filter.operands",
	} {
		err := cohort.Validate("d", parse(t, js))
		require.True(t, fault.Is(err, fault.Invalid), js)
		require.Equal(t, want, fault.As(err).Violations[0].Field, js)
	}
	nan := math.NaN()
	require.Error(t, cohort.Validate("d", &typev1.Expression{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"x"}, Threshold: &nan}}}))
}

func TestTooDeepAndTooManyConditionsAreRefused(t *testing.T) {
	leaf := parse(t, `{"behavior":{"events":["x"]}}`)
	e := leaf
	for range cohort.MaxDepth - 1 {
		e = &typev1.Expression{Node: &typev1.Expression_Not{Not: e}}
	}
	require.NoError(t, cohort.Validate("d", e))
	require.Error(t, cohort.Validate("d", &typev1.Expression{Node: &typev1.Expression_Not{Not: e}}))
	many := &typev1.ExpressionList{}
	for range 3 {
		l := &typev1.ExpressionList{}
		for range 40 {
			l.Operands = append(l.Operands, leaf)
		}
		many.Operands = append(many.Operands, &typev1.Expression{Node: &typev1.Expression_AnyOf{AnyOf: l}})
	}
	require.ErrorContains(t, cohort.Validate("d", &typev1.Expression{Node: &typev1.Expression_AllOf{AllOf: many}}), "120 conditions")
}

// sets answers leaves by their event.
type sets struct {
	by         map[string]*roaring64.Bitmap
	identified *roaring64.Bitmap
	asked      int
	short      bool
}

func (s *sets) AnswerLeaves(_ context.Context, _ int64, leaves []cohort.Leaf, _ time.Time) (*cohort.Answers, error) {
	s.asked = len(leaves)
	a := &cohort.Answers{Identified: s.identified, Took: make([]time.Duration, len(leaves))}
	for _, l := range leaves {
		a.Users = append(a.Users, s.by[l.Behavior.GetEvents()[0]])
	}
	if s.short {
		a.Users = a.Users[:len(a.Users)-1]
	}
	return a, nil
}

func TestEvaluationCombinesDistinctLeavesAndNotIsAgainstIdentified(t *testing.T) {
	s := &sets{identified: roaring64.BitmapOf(1, 2, 3, 4, 5), by: map[string]*roaring64.Bitmap{"A": roaring64.BitmapOf(1, 2, 3, 9), "B": roaring64.BitmapOf(3, 4, 9)}}
	did := func(e string) string { return fmt.Sprintf(`{"behavior":{"events":["%s"]}}`, e) }
	for js, want := range map[string][]uint64{
		did("A"):                   {1, 2, 3, 9},
		`{"not":` + did("A") + `}`: {4, 5},
		`{"allOf":{"operands":[` + did("A") + `,` + did("B") + `]}}`:                  {3, 9},
		`{"anyOf":{"operands":[` + did("A") + `,` + did("B") + `,` + did("A") + `]}}`: {1, 2, 3, 4, 9},
		`{"allOf":{"operands":[` + did("A") + `,{"not":{"not":` + did("A") + `}}]}}`:  {1, 2, 3},
		`{"not":{"anyOf":{"operands":[` + did("A") + `,{"not":` + did("B") + `}]}}}`:  {4},
	} {
		res, err := cohort.Evaluate(t.Context(), s, 1, parse(t, js), time.Now())
		require.NoError(t, err)
		require.Equal(t, want, res.Users.ToArray(), js)
		require.LessOrEqual(t, s.asked, 2, "a leaf is asked once")
		require.False(t, res.Members.Contains(9), "9 is not identified")
	}
	require.Equal(t, []uint64{1, 2, 3, 9}, s.by["A"].ToArray(), "the answers stay as they were")
	s.short = true
	_, err := cohort.Evaluate(t.Context(), s, 1, parse(t, did("A")), time.Now())
	require.True(t, fault.Is(err, fault.Unavailable), "a missing answer is no empty set")
}
