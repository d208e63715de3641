package cohort_test

import (
	"context"
	"fmt"
	"math"
	"strings"
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
		`{"behavior":{"events":["Pay"],"firstTime":true,"filters":[{"property":"n","type":"VALUE_TYPE_NUMBER","operator":"PROPERTY_OPERATOR_GREATER","operands":[{"numberValue":5}]}],"window":{"last":{"amount":30,"unit":"UNIT_DAY"}}}}`: "did Pay for the first time where n > 5 in the last 30 days",
		`{"not":{"behavior":{"events":["Pay"],"firstTime":true}}}`:                                                                "not (did Pay for the first time)",
		`{"sequence":{"steps":[{"events":["Cart"]},{"events":["Pay","Wire"]}],"window":{"last":{"amount":7,"unit":"UNIT_DAY"}}}}`: "did Cart in the last 7 days then Pay or Wire",
		`{"sequence":{"steps":[{"events":["Cart"]},{"events":["View"]},{"events":["Pay"],"didNot":true}],"within":"3600s"}}`:      "did Cart then View then did not do Pay within 1 hour",
		`{"inCohort":{"cohorts":["projects/1/cohorts/2"]}}`:                                                                       "in Buyers",
		`{"not":{"inCohort":{"cohorts":["projects/1/cohorts/2","projects/1/cohorts/3"]}}}`:                                        "not in Buyers or VIPs",
		`{"ids":{}}`: "of the uploaded ids",
		`{"allOf":{"operands":[{"ids":{"distinctIds":["a","b"]}},{"behavior":{"events":["X"]}}]}}`: "of a list of 2 ids and did X",
		`{"external":{}}`: "kept by a webhook",
	} {
		e := parse(t, js)
		require.NoError(t, cohort.Validate("d", e))
		require.Equal(t, want, cohort.Render(e, func(name string) string {
			return map[string]string{"projects/1/cohorts/2": "Buyers", "projects/1/cohorts/3": "VIPs"}[name]
		}))
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
		`{"behavior":{"events":["x"],"firstTime":true,"threshold":1}}`:                                                                              "d.behavior.first_time",
		`{"behavior":{"events":["x"],"firstTime":true,"measure":"MEASURE_COUNT"}}`:                                                                  "d.behavior.first_time",
		`{"sequence":{"steps":[{"events":["x"]}]}}`:                                                                                                 "d.sequence.steps",
		`{"sequence":{"steps":[{"events":["x"]},{"events":[]}]}}`:                                                                                   "d.sequence.steps[1].events",
		`{"sequence":{"steps":[{"events":["x"]},{"events":["y"],"didNot":true},{"events":["z"]}]}}`:                                                 "d.sequence.steps[1].did_not",
		`{"sequence":{"steps":[{"events":["x"]},{"events":["y"],"filters":[{}]}]}}`:                                                                 "d.sequence.steps[1].filters[0].property",
		`{"sequence":{"steps":[{"events":["x"]},{"events":["y"]}],"within":"0s"}}`:                                                                  "d.sequence.within",
		`{"sequence":{"steps":[{"events":["x"]},{"events":["y"]}],"window":{"last":{"unit":"UNIT_DAY"}}}}`:                                          "d.sequence.window.last.amount",
		`{"inCohort":{}}`: "d.in_cohort.cohorts",
		`{"inCohort":{"cohorts":["projects/1/cohorts/2","cohorts/3"]}}`: "d.in_cohort.cohorts[1]",
		`{"not":{"ids":{}}}`:               "d.not.ids.distinct_ids",
		`{"ids":{"distinctIds":["a",""]}}`: "d.ids.distinct_ids[1]",
		`{"anyOf":{"operands":[{"behavior":{"events":["x"]}},{"external":{}}]}}`: "d.any_of[1].external",
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
		switch {
		case l.Users != nil:
			a.Users = append(a.Users, l.Users)
		case l.IDs != nil:
			a.Users = append(a.Users, s.by["ids"])
		case l.Sequence != nil:
			a.Users = append(a.Users, s.by["sequence"])
		default:
			a.Users = append(a.Users, s.by[l.Behavior.GetEvents()[0]])
		}
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
		res, err := evaluate(t, s, js)
		require.NoError(t, err)
		require.Equal(t, want, res.Users.ToArray(), js)
		require.LessOrEqual(t, s.asked, 2, "a leaf is asked once")
		require.False(t, res.Members.Contains(9), "9 is not identified")
	}
	require.Equal(t, []uint64{1, 2, 3, 9}, s.by["A"].ToArray(), "the answers stay as they were")
	s.short = true
	_, err := evaluate(t, s, did("A"))
	require.True(t, fault.Is(err, fault.Unavailable), "a missing answer is no empty set")
}

func evaluate(t *testing.T, s *sets, js string) (*cohort.Result, error) {
	t.Helper()
	return cohort.Evaluate(t.Context(), &cohort.Query{Answerer: s, Project: 1, Cohort: cohort.Stored{Definition: parse(t, js)}, AsOf: time.Now()})
}

// shelf is a project's cohorts by number; kept are the users kept for them.
type shelf struct {
	t    *testing.T
	defs map[int64]string
	kept map[int64]*roaring64.Bitmap
}

func (s shelf) Stored(_ context.Context, project, id int64) (cohort.Stored, error) {
	if js, ok := s.defs[id]; ok && project == 1 {
		return cohort.Stored{ID: id, Name: fmt.Sprint("C", id), Definition: parse(s.t, js)}, nil
	}
	return cohort.Stored{}, fault.New(fault.NotFound, "NOT_FOUND", "cohort %d does not exist", id)
}

func (s shelf) Members(_ context.Context, _, id int64) (*roaring64.Bitmap, error) {
	if b := s.kept[id]; b != nil {
		return b, nil
	}
	return roaring64.New(), nil
}

func in(ids ...int64) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = fmt.Sprintf(`"projects/1/cohorts/%d"`, id)
	}
	return `{"inCohort":{"cohorts":[` + strings.Join(names, ",") + `]}}`
}

func TestCohortsInCohortsAreEvaluatedAtTheSameInstantAndOnce(t *testing.T) {
	s := &sets{identified: roaring64.BitmapOf(1, 2, 3, 4, 5), by: map[string]*roaring64.Bitmap{"A": roaring64.BitmapOf(1, 2, 9), "ids": roaring64.BitmapOf(5), "sequence": roaring64.BitmapOf(4)}}
	cohorts := shelf{t: t, kept: map[int64]*roaring64.Bitmap{4: roaring64.BitmapOf(2, 3), 5: roaring64.BitmapOf(9)}, defs: map[int64]string{
		1: `{"behavior":{"events":["A"]}}`, 2: `{"not":` + in(1) + `}`, 3: `{"anyOf":{"operands":[` + in(1) + `,` + in(2) + `]}}`, 4: `{"ids":{}}`, 5: `{"external":{}}`, 6: `{"ids":{}}`,
	}}
	for js, want := range map[string][]uint64{
		in(1):                   {1, 2, 9},
		in(2):                   {3, 4, 5},
		in(3):                   {1, 2, 3, 4, 5, 9},
		`{"not":` + in(3) + `}`: {},
		in(4, 5):                {2, 3, 9},
		`{"not":` + in(4) + `}`: {1, 4, 5},
		in(6):                   {},
		`{"allOf":{"operands":[` + in(1) + `,` + in(4) + `]}}`:                                                              {2},
		`{"anyOf":{"operands":[{"ids":{"distinctIds":["x"]}},{"sequence":{"steps":[{"events":["a"]},{"events":["b"]}]}}]}}`: {4, 5},
	} {
		res, err := cohort.Evaluate(t.Context(), &cohort.Query{Answerer: s, Cohorts: cohorts, Project: 1, Cohort: cohort.Stored{Definition: parse(t, js)}, AsOf: time.Now()})
		require.NoError(t, err, js)
		require.ElementsMatch(t, want, res.Users.ToArray(), js)
		require.LessOrEqual(t, s.asked, 2, "a leaf is asked once, however many cohorts have it")
	}
	kept, err := cohorts.Stored(t.Context(), 1, 4)
	require.NoError(t, err)
	res, err := cohort.Evaluate(t.Context(), &cohort.Query{Answerer: s, Cohorts: cohorts, Project: 1, Cohort: kept, AsOf: time.Now()})
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 3}, res.Users.ToArray())
	require.Equal(t, "uploaded ids", res.Leaves[0].Summary)
	_, err = evaluate(t, s, `{"ids":{}}`)
	require.ErrorContains(t, err, "save it first")
}

func TestDefinitionsThatGoRoundOrLeadNowhereAreRefused(t *testing.T) {
	defs := map[int64]string{1: in(2), 2: in(3), 3: `{"behavior":{"events":["A"]}}`, 20: `{"behavior":{"events":["A"]}}`}
	for i := int64(21); i < 35; i++ {
		defs[i] = in(i - 1)
	}
	cohorts := shelf{t: t, defs: defs}
	check := func(self int64, js string) error {
		return cohort.CheckReferences(t.Context(), cohorts, 1, "d", cohort.Stored{ID: self, Name: fmt.Sprint("C", self), Definition: parse(t, js)})
	}
	require.NoError(t, check(0, in(1)))
	require.NoError(t, check(3, in(20)))
	require.NoError(t, check(0, in(29)), "ten levels")
	for what, c := range map[string]struct {
		self      int64
		js        string
		path, say string
	}{
		"itself":          {3, in(3), "d.in_cohort.cohorts[0]", "circle"},
		"by way of two":   {3, `{"not":{"anyOf":{"operands":[` + in(20) + `,` + in(20, 1) + `]}}}`, "d.not.any_of[1].in_cohort.cohorts[1]", "C3 → C1 → C2 → C3"},
		"nobody":          {0, in(99), "d.in_cohort.cohorts[0]", "no projects/1/cohorts/99"},
		"another project": {0, `{"inCohort":{"cohorts":["projects/2/cohorts/1"]}}`, "d.in_cohort.cohorts[0]", "not of this project"},
		"too deep":        {0, in(31), "d.in_cohort.cohorts[0]", "more than 10 levels"},
	} {
		err := check(c.self, c.js)
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", what, err)
		require.Equal(t, c.path, fault.As(err).Violations[0].Field, what)
		require.Contains(t, fault.As(err).Violations[0].Description, c.say, what)
	}
	defs[3] = in(1) // as if it had been changed meanwhile
	_, err := cohort.Evaluate(t.Context(), &cohort.Query{Answerer: &sets{}, Cohorts: cohorts, Project: 1, Cohort: cohort.Stored{ID: 1, Definition: parse(t, in(2))}})
	require.ErrorContains(t, err, "circle")
}

func TestDefinitionsThatSayTheSameHaveOneForm(t *testing.T) {
	for _, pair := range [][2]string{
		{`{"behavior":{"events":["A"]}}`, `{"behavior":{"measure":"MEASURE_COUNT","threshold":1,"comparator":"COMPARATOR_GREATER_OR_EQUAL","window":{"allTime":true},"events":["A"]}}`},
		{`{"not":{"sequence":{"steps":[{"events":["A"]},{"events":["B"]}]}}}`, `{"not":{"sequence":{"window":{"allTime":true},"steps":[{"events":["A"]},{"events":["B"],"didNot":false}]}}}`},
	} {
		require.Equal(t, string(cohort.Canonical(parse(t, pair[0]))), string(cohort.Canonical(parse(t, pair[1]))))
	}
	//nolint:testifylint // the text itself is what is promised
	require.Equal(t, `{"behavior":{"comparator":"COMPARATOR_GREATER_OR_EQUAL","events":["A"],"measure":"MEASURE_COUNT","threshold":1,"window":{"all_time":true}}}`, string(cohort.Canonical(parse(t, `{"behavior":{"events":["A"]}}`))))
	require.NotEqual(t, string(cohort.Canonical(parse(t, `{"behavior":{"events":["A"]}}`))), string(cohort.Canonical(parse(t, `{"behavior":{"events":["A"],"firstTime":true}}`))))
}

func TestADocumentIsReadAsItWasWritten(t *testing.T) {
	text, err := cohort.WriteDocument([]cohort.Entry{{"Buyers", "who buy", parse(t, demo)}, {"Others", "", parse(t, `{"not":{"inCohort":{"cohorts":["Buyers"]}}}`)}})
	require.NoError(t, err)
	list, err := cohort.ParseDocument("document", text)
	require.NoError(t, err)
	again, err := cohort.WriteDocument(list)
	require.NoError(t, err)
	require.Equal(t, text, again)
	require.Equal(t, "Buyers", list[0].DisplayName)
	for doc, want := range map[string]string{
		`{`:                "document",
		`{"cohorts":[]}`:   "document.cohorts",
		`{"cohorts":[{}]}`: "document.cohorts[0].definition",
		`{"cohorts":[{"display_name":"a","definition":{"not":{}}},{"display_name":"a","definition":{}}]}`: "document.cohorts[1].display_name",
		`{"cohorts":[{"display_name":"a","definition":{"moon":1}}]}`:                                      "document.cohorts[0].definition",
		`{"cohorts":[{"display_name":"a","colour":"red"}]}`:                                               "document",
		`{"cohorts":[{"display_name":"a","definition":{"external":{}}}]} {}`:                              "document",
	} {
		_, err := cohort.ParseDocument("document", doc)
		require.True(t, fault.Is(err, fault.Invalid), "%s: %v", doc, err)
		require.Equal(t, want, fault.As(err).Violations[0].Field, doc)
	}
	_, err = cohort.ParseDocument("document", `{"cohorts":[{"display_name":"a","definition":{"ids":{"distinct_ids":"zoe@example.org"}}}]}`)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "zoe", "an error repeats nobody's id")
	_, err = cohort.ParseDocument("document", `{"cohorts":[{"display_name":"a","definition":{"moon":1}}]}`)
	require.ErrorContains(t, err, "moon")
}
